"""Fast certified training: the law of its initialization, its penalties by hand and in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxreg.robustness import Bounds, fast_ibp_loss, ibp_init, relu_balance_penalty, tightness_penalty

RNG = np.random.default_rng(0)


class TestInit:
    def test_radii_are_kept_on_average(self):
        """The gain of a layer and its ReLU: mean over units, inputs and draws. Kaiming's is 4.65 at width 64."""

        def gain(kernel):
            centre = RNG.normal(size=(200, len(kernel))).astype(np.float32)
            low, high = (np.maximum(centre @ kernel + side * 0.1 * np.abs(kernel).sum(0), 0) for side in (-1, 1))
            return (high - low).mean() / 0.2

        for width in (64, 300):
            gains = [gain(np.asarray(ibp_init(key, (width, width)))) for key in jax.random.split(jax.random.key(0), 4)]
            np.testing.assert_allclose(np.mean(gains), 1.0, rtol=0.05)
        np.testing.assert_allclose(gain(RNG.normal(0, np.sqrt(2 / 64), (64, 64))), 4.65, rtol=0.1)

    def test_spread_counts_all_inputs_of_a_unit(self):
        kernel = ibp_init(jax.random.key(0), (3, 3, 2, 100), jnp.bfloat16)
        assert kernel.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.std(np.asarray(kernel, np.float32)), np.sqrt(2 * np.pi) / 18, rtol=0.05)
        with pytest.raises(ValueError, match=r"shape must have at least 2 axes, got \(3,\)"):
            ibp_init(jax.random.key(0), (3,))


class TestPenalties:
    def test_tightness_by_hand(self):
        """Radius 1 at first, then 4 and 1.5: ratios 1/4 and 2/3, of which the first lacks 1/4 of 1/2."""
        inputs = Bounds(np.zeros(3), np.full(3, 2.0))
        layers = [Bounds(np.full(5, -4.0), np.full(5, 4.0)), Bounds(np.zeros(2), np.full(2, 3.0))]
        np.testing.assert_allclose(tightness_penalty(inputs, layers), 0.25, rtol=1e-6)
        np.testing.assert_allclose(tightness_penalty(inputs, layers, tolerance=0.25), 0.0, atol=1e-7)

    def reference(self, lower, upper, tolerance):
        centre = (lower + upper) / 2
        deviation = (centre - centre.mean()) ** 2
        active, inactive = lower > 0, upper < 0
        ratios = [
            (centre * active).mean() / -(centre * inactive).mean(),
            (deviation * active).sum() / (deviation * inactive).sum(),
        ]
        return sum(max(0, tolerance - min(q, 1 / q)) for q in ratios) / tolerance

    def test_balance_follows_its_equation(self):
        layers = []
        for shift in (0.0, 0.5, 1.0):
            ends = np.sort(RNG.normal(shift, 1, (2, 40)), axis=0)
            layers.append(Bounds(*ends))
        expected = np.mean([self.reference(*ends, 0.5) for ends in layers])
        assert expected > 0.1
        np.testing.assert_allclose(relu_balance_penalty(layers), expected, rtol=1e-5)

    def test_layers_without_sides_or_with_one(self):
        """Undecided units alone give no penalty, active ones alone the largest; gradients are finite for both."""
        undecided = np.array([-1.0, -2.0]), np.array([1.0, 2.0])
        active = np.array([1.0, 2.0]), np.array([3.0, 3.0])
        both = jax.jit(jax.value_and_grad(lambda ends: relu_balance_penalty([Bounds(*ends)])))
        for ends, expected in ((undecided, 0.0), (active, 2.0)):
            value, gradient = both(ends)
            np.testing.assert_allclose(value, expected)
            assert np.isfinite(gradient).all()

    def test_networks_without_activations_are_refused(self):
        with pytest.raises(ValueError, match="preactivations must not be empty"):
            tightness_penalty(Bounds(np.zeros(1), np.ones(1)), [])
        with pytest.raises(ValueError, match="preactivations must not be empty"):
            relu_balance_penalty([])

    def test_tolerance_is_checked(self):
        with pytest.raises(ValueError, match=r"tolerance must be in \(0, 1\], got 0.0"):
            relu_balance_penalty([Bounds(np.zeros(1), np.ones(1))], tolerance=0.0)


class TestLoss:
    inputs, labels = RNG.uniform(size=(6, 3)).astype(np.float32), np.array([0, 1, 2, 3, 1, 0])
    params = RNG.normal(size=(3, 5)).astype(np.float32)
    kernel, bias = RNG.normal(size=(5, 4)).astype(np.float32), RNG.normal(size=4).astype(np.float32)

    @staticmethod
    def features(params, x):
        return jax.nn.relu(x @ params)

    def test_is_cross_entropy_without_radius_and_the_worst_margins_with_full_radius(self):
        def loss(params, epsilon, strength):
            arguments = self.features, params, self.kernel, self.bias, self.inputs, self.labels
            return fast_ibp_loss(*arguments, epsilon=epsilon, max_epsilon=0.2, strength=strength, bounds=(0.0, 1.0))

        run = jax.jit(loss)
        logits = np.maximum(self.inputs @ self.params, 0) @ self.kernel + self.bias
        expected = optax.softmax_cross_entropy_with_integer_labels(logits, self.labels)
        np.testing.assert_allclose(run(self.params, 0.0, 0.0), expected, rtol=1e-4, atol=1e-5)
        # NumPy: the box cut at 0 and 1, one affine layer, ReLU, margins of the merged last layer.
        for epsilon in (0.1, 0.2, 0.3):
            low, high = np.clip(self.inputs - epsilon, 0, 1), np.clip(self.inputs + epsilon, 0, 1)
            positive, negative = np.maximum(self.params, 0), np.minimum(self.params, 0)
            before = Bounds(low @ positive + high @ negative, high @ positive + low @ negative)
            ends = np.maximum(before, 0)
            margins = np.array(
                [
                    [
                        (d * np.where(d > 0, ends[0][i], ends[1][i])).sum() + self.bias[y] - self.bias[k]
                        for k, d in enumerate((self.kernel[:, [y]] - self.kernel).T)
                    ]
                    for i, y in enumerate(self.labels)
                ]
            )
            worst = optax.softmax_cross_entropy_with_integer_labels(-margins, self.labels)
            penalty = tightness_penalty(Bounds(low, high), [before]) + relu_balance_penalty([before])
            np.testing.assert_allclose(
                run(self.params, epsilon, 0.5), worst + 0.5 * max(1 - epsilon / 0.2, 0) * penalty, rtol=1e-4
            )
        gradient = jax.jit(jax.grad(lambda params, epsilon: loss(params, epsilon, 0.5).sum()))
        for epsilon in (0.0, 0.1):
            assert np.isfinite(gradient(self.params, epsilon)).all()

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"epsilon": -1.0}, r"epsilon must be in \[0, inf\), got -1.0"),
            ({"max_epsilon": 0.0}, r"max_epsilon must be in \(0, inf\), got 0.0"),
            ({"strength": -1.0}, r"strength must be in \[0, inf\), got -1.0"),
        ],
    )
    def test_wrong_settings_are_refused(self, wrong, message):
        with pytest.raises(ValueError, match=message):
            fast_ibp_loss(
                self.features, self.params, self.kernel, self.bias, self.inputs, self.labels,
                **{"epsilon": 0.1, "max_epsilon": 0.2, **wrong},
            )  # fmt: skip
