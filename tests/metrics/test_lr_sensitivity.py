"""LR sensitivity, attention logits and forecasts against values by hand, enumeration and NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jaxtyping import TypeCheckError

from jaxreg.metrics import extrapolate_instability, lr_sensitivity, max_attention_logit

SENSITIVITY = jax.jit(lr_sensitivity)


class TestLrSensitivity:
    def test_by_hand(self):
        """Capped at 4: (3, 2, 2.5, 4, 4), with mean 3.1 and least 2."""
        assert float(
            lr_sensitivity(np.array([3.0, 2.0, 2.5, 4.5, np.inf], np.float32), np.float32(4))
        ) == pytest.approx(1.1)

    def test_equal_losses_are_not_sensitive(self):
        assert float(lr_sensitivity(jnp.full([7], 1.7), jnp.array(4.0))) == 0.0

    @pytest.mark.parametrize("diverged", [np.nan, np.inf, 1e30, 5.0])
    def test_a_diverged_run_counts_as_untrained(self, diverged):
        """Whatever its loss is, at one rate of four it adds (4 - 2) / 4."""
        losses = np.array([2.0, diverged, 2.0, 2.0], np.float32)
        assert float(lr_sensitivity(losses, np.float32(4))) == 0.5

    def test_where_all_diverge_nothing_is_sensitive(self):
        assert float(lr_sensitivity(jnp.array([jnp.nan, jnp.inf, 9.0]), jnp.array(4.0))) == 0.0

    def test_runs_do_not_mix(self):
        losses = np.random.default_rng(0).uniform(1, 5, (6, 2, 3)).astype(np.float32)
        initial = np.array([[3.0, 4.0, 5.0]], np.float32)
        capped = np.minimum(losses, initial)
        np.testing.assert_allclose(SENSITIVITY(losses, initial), capped.mean(0) - capped.min(0), rtol=1e-5, atol=1e-7)

    @settings(max_examples=50, deadline=None)
    @given(hnp.arrays(np.float32, 5, elements=st.floats(0, 10, width=32)), st.floats(-3, 3, width=32))
    def test_it_is_bounded_and_ignores_a_shift_of_all_losses(self, losses, shift):
        initial = np.float32(6)
        value = float(SENSITIVITY(losses, initial))
        assert -1e-5 <= value <= max(0.0, 6 - losses.min()) * 0.8 + 1e-5  # the best of five rates adds nothing
        np.testing.assert_allclose(SENSITIVITY(losses + shift, initial + np.float32(shift)), value, atol=1e-5)

    def test_half_precision_is_averaged_in_float32(self):
        assert lr_sensitivity(jnp.array([2.0, 3.0], jnp.bfloat16), jnp.array(4.0)).dtype == jnp.float32

    def test_initial_losses_must_fit(self):
        with pytest.raises(TypeCheckError, match="initial_loss"):
            lr_sensitivity(jnp.ones([7, 3]), jnp.ones([2]))


class TestMaxAttentionLogit:
    q = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    k = np.random.default_rng(1).normal(size=(2, 5, 4)).astype(np.float32)

    def largest(self, mask):
        pairs = itertools.product(range(3), range(5))
        allowed = [(i, j) for i, j in pairs if mask[i, j]]
        return [max(float(q[i] @ k[j]) / 2 for i, j in allowed) for q, k in zip(self.q, self.k, strict=True)]

    def test_it_is_the_largest_of_all_pairs_that_are_seen(self):
        everything, some = np.ones((3, 5), bool), np.tri(3, 5, dtype=bool)
        np.testing.assert_allclose(max_attention_logit(self.q, self.k), self.largest(everything), rtol=1e-5)
        np.testing.assert_allclose(max_attention_logit(self.q, self.k, mask=some), self.largest(some), rtol=1e-5)

    def test_normalized_queries_and_keys_are_bounded_by_the_root_of_the_size(self):
        def normalized(x):
            return (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)

        q = normalized(self.q)
        assert (np.abs(max_attention_logit(q, normalized(self.k))) <= 2 + 1e-5).all()
        np.testing.assert_allclose(max_attention_logit(q, q), [2.0, 2.0], rtol=1e-5)

    def test_where_nobody_sees_anything_it_is_minus_infinity(self):
        np.testing.assert_array_equal(max_attention_logit(self.q, self.k, mask=np.zeros((3, 5), bool)), [-np.inf] * 2)

    def test_half_precision_is_multiplied_in_float32(self):
        q, k = (jnp.asarray(x, jnp.bfloat16) for x in (self.q, self.k))
        ours = max_attention_logit(q, k)
        assert ours.dtype == jnp.float32
        wide = max_attention_logit(q.astype(jnp.float32), k.astype(jnp.float32))
        np.testing.assert_array_equal(ours, wide)


class TestExtrapolateInstability:
    log_n = np.log(np.array([2e6, 1e7, 5e7, 3e8], np.float32))

    @pytest.mark.parametrize("degree", [1, 2, 3])
    def test_polynomials_of_its_degree_are_continued_exactly(self, degree):
        coefficients = [0.2, -0.05, 0.01, 0.003][: degree + 1]
        where = np.log(np.array([[2e9], [1e10]], np.float32))
        stat, expected = (
            np.polynomial.Polynomial(coefficients, domain=[14, 20], window=[-1, 1])(x.astype(np.float64))
            for x in (self.log_n, where)
        )
        forecast = jax.jit(lambda *a: extrapolate_instability(*a, degree=degree))(
            self.log_n, stat.astype(np.float32), where
        )
        np.testing.assert_allclose(forecast, expected, rtol=2e-4, atol=1e-4)

    def test_noisy_points_are_fitted_by_least_squares(self):
        stat = np.array([1.0, 2.5, 2.0, 4.0], np.float32)
        where = np.log(np.array([1e9, 1e10], np.float32))
        for degree in (1, 2):
            fit = np.polynomial.Polynomial.fit(self.log_n.astype(np.float64), stat, degree)
            np.testing.assert_allclose(
                extrapolate_instability(self.log_n, stat, where, degree=degree), fit(where), rtol=1e-4
            )

    @pytest.mark.parametrize("degree", [0, 4])
    def test_degrees_without_enough_models_are_refused(self, degree):
        with pytest.raises(ValueError, match=rf"degree must be in \[1, 3\], got {degree}"):
            extrapolate_instability(self.log_n, self.log_n, self.log_n[0], degree=degree)
