"""Telemetry against NumPy on a transformer in training, and streams of norms by hand."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from jaxreg.layers import QKNormAttention
from jaxreg.metrics import read_telemetry, telemetry, telemetry_init
from jaxreg.optim import spike_score

OUTPUTS = np.array([[0.0, 1.0, 2.0], [-20.0, -21.0, -22.0]], np.float32)


class Inner(nn.Module):
    @nn.compact
    def __call__(self, x):
        return QKNormAttention(2, qk_norm=False, name="attention")(nn.Dense(8, name="dense")(x))


class Model(nn.Module):
    """Two attention layers at different depths, one of them without normalization, and an output."""

    @nn.compact
    def __call__(self, x, *, loud=1.0):
        x = QKNormAttention(2, name="first")(x)
        x = Inner(name="inner")(loud * x)
        return nn.Dense(4, name="out")(x)


X = jax.random.normal(jax.random.key(0), [3, 5, 8])
PARAMS = jax.jit(Model().init)(jax.random.key(1), X)


def logits_by_hand(x):
    """Of both layers, in NumPy."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), PARAMS["params"])

    def heads(z, kernel):
        return (z @ kernel["kernel"]).reshape(*z.shape[:-1], 2, 4).swapaxes(-2, -3)

    def attend(z, part, norm):
        q, k, v = (heads(z, part[name]) for name in ("query", "key", "value"))
        if norm:
            q, k = ((y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6) for y in (q, k))
        logits = q @ k.swapaxes(-1, -2) / 2
        weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        return logits, (weights @ v).swapaxes(-2, -3).reshape(z.shape) @ part["out"]["kernel"]

    first, h = attend(np.asarray(x, np.float64), p["first"], True)
    dense, attention = p["inner"]["dense"], p["inner"]["attention"]
    second, _ = attend(h @ dense["kernel"] + dense["bias"], attention, False)
    return first, second


def gradient_of(norm):
    return {"a": jnp.array([0.6 * norm]), "b": jnp.array([[0.8 * norm]])}


def stream(norms, **options):
    state, scores = telemetry_init(), []
    read = jax.jit(lambda state, norm: read_telemetry(state, OUTPUTS, gradients=gradient_of(norm), **options))
    for norm in norms:
        seen, state = read(state, jnp.float32(norm))
        np.testing.assert_allclose(seen.gradient_norm, norm, rtol=1e-6)
        scores.append(float(seen.spike_score))
    return scores, state


def test_one_call_in_a_training_loop_sees_everything():
    """Under jit and scan, and the same as from the model's own outputs and intermediates."""

    def loss(params):
        return jnp.mean(jnp.square(Model().apply(params, X) - 1))

    def step(carry, _):
        params, state = carry
        gradients = jax.grad(loss)(params)
        seen, state = telemetry(state, Model().apply, params, X, gradients=gradients)
        outputs, sown = Model().apply(params, X, mutable=["intermediates"])
        read, _ = read_telemetry(carry[1], outputs, gradients=gradients, intermediates=sown)
        return (jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients), state), (seen, read, loss(params))

    (_, state), (seen, read, _) = jax.jit(lambda: jax.lax.scan(step, (PARAMS, telemetry_init()), length=3))()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), seen, read)
    assert int(state.count) == 3

    expected = max(logits.max() for logits in logits_by_hand(X))
    np.testing.assert_allclose(seen.max_attention_logit[0], expected, rtol=1e-4)
    log_z = logsumexp(np.asarray(jax.jit(Model().apply)(PARAMS, X), np.float64), -1)
    np.testing.assert_allclose(seen.log_z[0], log_z.mean(), rtol=1e-5)
    np.testing.assert_allclose(seen.max_abs_log_z[0], np.abs(log_z).max(), rtol=1e-5)
    squares = sum((np.asarray(g, np.float64) ** 2).sum() for g in jax.tree.leaves(jax.jit(jax.grad(loss))(PARAMS)))
    np.testing.assert_allclose(seen.gradient_norm[0], np.sqrt(squares), rtol=1e-5)


@pytest.mark.parametrize(
    ("apply_fn", "attention", "expected"),
    [
        (partial(Model().apply, loud=2.0), "attention_logits", True),
        (Model().apply, "something_else", False),
        (lambda params, x: Model().apply(params, x), "attention_logits", False),
        (jax.jit(lambda params, x: x @ params["params"]["out"]["kernel"]), "attention_logits", False),
    ],
    ids=["partial", "other_name", "lambda", "jitted"],
)
def test_any_function_is_measured_with_attention_if_it_tells(apply_fn, attention, expected):
    measure = jax.jit(
        lambda params: telemetry(telemetry_init(), apply_fn, params, X, gradients=params, attention=attention)
    )
    seen, _ = measure(PARAMS)
    assert (seen.max_attention_logit is not None) == expected
    np.testing.assert_allclose(seen.log_z, logsumexp(jax.jit(apply_fn)(PARAMS, X), -1).mean(), rtol=1e-5)


def test_log_z_by_hand():
    """log(1 + e + e^2) is 2.4076, and the second row is the first minus 22."""
    seen, _ = read_telemetry(telemetry_init(), OUTPUTS, gradients=gradient_of(1.0))
    row = np.log(1 + np.e + np.e**2)
    np.testing.assert_allclose((seen.log_z, seen.max_abs_log_z), (row - 11, 22 - row), rtol=1e-5)


def test_masked_logits_do_not_count():
    layer, x = QKNormAttention(2), jax.random.normal(jax.random.key(2), [2, 8])
    params = jax.jit(layer.init)(jax.random.key(0), x)
    alone = jnp.eye(2, dtype=bool)
    _, sown = jax.jit(lambda params: layer.apply(params, x, alone, mutable=["intermediates"]))(params)
    seen, _ = read_telemetry(telemetry_init(), x, gradients=params, intermediates=sown)
    diagonal = sown["intermediates"]["attention_logits"][0][:, [0, 1], [0, 1]]
    np.testing.assert_allclose(seen.max_attention_logit, diagonal.max(), rtol=1e-6)


class TestSpikeScore:
    norms = np.array([1.0, 3.0, 2.0, 100.0, 2.0, 0.5])

    def test_it_is_the_norm_over_the_mean_of_all_before(self):
        scores, state = stream(self.norms, decay=1.0)
        before = [self.norms[:t].mean() for t in range(1, 6)]
        np.testing.assert_allclose(scores, [1.0, *(self.norms[1:] / before)], rtol=1e-5)
        np.testing.assert_allclose(state.mean_norm, self.norms.mean(), rtol=1e-5)

    def test_on_a_long_run_it_agrees_with_the_offline_score(self):
        """A spike of 60 among 2000 ones: the mean that includes it is 3% larger."""
        norms = np.ones(2001)
        norms[-1] = 60.0
        offline = spike_score(jnp.asarray(norms, jnp.float32))[-1]
        update = jax.jit(lambda state, norm: read_telemetry(state, OUTPUTS, gradients=gradient_of(norm), decay=1.0))

        def step(state, norm):
            seen, state = update(state, norm)
            return state, seen.spike_score

        _, scores = jax.lax.scan(step, telemetry_init(), jnp.asarray(norms, jnp.float32))
        np.testing.assert_allclose(scores[:-1], 1.0, rtol=1e-4)
        np.testing.assert_allclose(scores[-1], 60.0, rtol=1e-4)
        np.testing.assert_allclose(offline * (2060 / 2001), scores[-1], rtol=1e-3)

    def test_with_decay_the_mean_is_first_plain_then_exponential(self):
        """Weights 1, 1/2, 1/3 and then 0.3."""
        scores, state = stream(self.norms, decay=0.7)
        mean, expected = self.norms[0], [1.0]
        for norm, weight in zip(self.norms[1:], [1 / 2, 1 / 3, 0.3, 0.3, 0.3], strict=True):
            expected.append(norm / mean)
            mean += weight * (norm - mean)
        np.testing.assert_allclose(scores, expected, rtol=1e-5)
        np.testing.assert_allclose(state.mean_norm, mean, rtol=1e-5)

    @pytest.mark.parametrize("broken", [np.nan, np.inf])
    def test_norms_that_are_not_finite_leave_no_trace(self, broken):
        scores, state = stream([broken, 2.0, broken, 6.0])
        assert not np.isfinite(scores[2])
        np.testing.assert_allclose((scores[1], scores[3]), (1.0, 3.0), rtol=1e-6)
        np.testing.assert_allclose((state.count, state.mean_norm), (2, 4.0), rtol=1e-6)

    def test_gradients_of_zero_are_usual_where_all_were(self):
        scores, _ = stream([0.0, 0.0, 1.0])
        assert scores == [1.0, 1.0, np.inf]

    def test_half_precision_gradients_do_not_overflow(self):
        gradient = jnp.full([4], 3e4, jnp.float16)
        seen, _ = read_telemetry(telemetry_init(), OUTPUTS, gradients=gradient)
        np.testing.assert_allclose(seen.gradient_norm, 6e4, rtol=1e-3)


def test_bad_decay_is_named():
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\], got 1.5"):
        read_telemetry(telemetry_init(), OUTPUTS, gradients=gradient_of(1.0), decay=1.5)
