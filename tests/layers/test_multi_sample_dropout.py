"""Multi-sample dropout against loops over samples, hand-worked numbers and the variance of averages."""

import functools

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from jaxreg.layers import MultiSampleDropout, antithetic_masks, multi_sample_dropout, multi_sample_loss

cross_entropy = optax.softmax_cross_entropy_with_integer_labels

FEATURES = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
LABELS = np.array([0, 2, 1, 2, 0])


def numpy_cross_entropy(logits, label):
    logits = logits.astype(np.float64)
    return np.log(np.sum(np.exp(logits - logits.max()))) + logits.max() - logits[label]


class Head(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(6)(x))
        return nn.Dense(3)(x)


LAYER = MultiSampleDropout(Head(), num_samples=4, rate=0.5)


@pytest.fixture(scope="module")
def variables():
    return LAYER.init(jax.random.key(0), FEATURES, deterministic=True)


def numpy_head(variables, x):
    first, second = (variables["params"]["head"][name] for name in ("Dense_0", "Dense_1"))
    hidden = np.maximum(x @ np.asarray(first["kernel"]) + np.asarray(first["bias"]), 0)
    return hidden @ np.asarray(second["kernel"]) + np.asarray(second["bias"])


class TestMultiSampleDropout:
    @pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 0.9])
    def test_one_sample_is_inverted_dropout(self, rate):
        key = jax.random.key(0)
        ours = multi_sample_dropout(key, FEATURES, num_samples=1, rate=rate)
        expected = FEATURES * np.asarray(jax.random.bernoulli(key, 1 - rate, (1, 5, 7))) / np.float32(1 - rate)
        np.testing.assert_allclose(ours, expected, rtol=1e-6)

    def test_every_sample_has_its_own_mask(self):
        samples = multi_sample_dropout(jax.random.key(0), jnp.ones((5, 40)), rate=0.5)
        assert samples.shape == (8, 5, 40)
        assert len(np.unique(samples.reshape(8 * 5, 40), axis=0)) == 40

    @pytest.mark.parametrize("antithetic", [False, True])
    @pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
    def test_features_are_kept_or_dropped_at_the_rate_and_unbiased(self, rate, antithetic):
        size = 8 * 100 * 100
        samples = multi_sample_dropout(
            jax.random.key(1), jnp.ones((100, 100)), rate=jnp.float32(rate), antithetic=antithetic
        )
        values = np.unique(samples)
        np.testing.assert_allclose(values, [0, 1 / (1 - rate)], rtol=1e-6)
        np.testing.assert_allclose(np.mean(samples == 0), rate, atol=4.5 * np.sqrt(rate * (1 - rate) / size))
        np.testing.assert_allclose(np.mean(samples), 1.0, atol=4.5 * np.sqrt(rate / (1 - rate) / size))

    @pytest.mark.parametrize("antithetic", [False, True])
    def test_rate_zero_drops_nothing(self, antithetic):
        samples = multi_sample_dropout(jax.random.key(0), FEATURES, rate=0, antithetic=antithetic)
        np.testing.assert_array_equal(samples, np.broadcast_to(FEATURES, (8, 5, 7)))

    def test_batches_may_have_any_number_of_dimensions(self):
        for shape in [(7,), (5, 7), (2, 3, 5, 7)]:
            assert multi_sample_dropout(jax.random.key(0), jnp.ones(shape), num_samples=3).shape == (3, *shape)

    def test_half_precision_features_stay_so(self):
        samples = multi_sample_dropout(jax.random.key(0), jnp.ones((5, 7), jnp.bfloat16), rate=jnp.float32(0.5))
        assert samples.dtype == jnp.bfloat16
        assert set(np.unique(samples.astype(jnp.float32))) == {0.0, 2.0}

    def test_rates_can_be_vmapped_under_jit(self):
        rates = jnp.array([0.0, 0.25, 0.5])
        ours = jax.jit(jax.vmap(lambda rate: multi_sample_dropout(jax.random.key(0), FEATURES, rate=rate)))(rates)
        expected = [multi_sample_dropout(jax.random.key(0), FEATURES, rate=float(rate)) for rate in rates]
        np.testing.assert_allclose(ours, expected, rtol=1e-6)

    def test_a_dropped_feature_gets_no_gradient_and_a_kept_one_the_scale(self):
        def total(features):
            samples = multi_sample_dropout(jax.random.key(0), features, num_samples=1, rate=0.75)
            return jnp.sum(samples), samples[0]

        gradient, samples = jax.grad(total, has_aux=True)(jnp.asarray(FEATURES))
        np.testing.assert_array_equal(gradient, np.where(samples == 0, 0.0, 4.0))


class TestAntitheticMasks:
    @settings(max_examples=20, deadline=None)
    @given(st.sampled_from([0.0, 0.2, 0.5, 0.7]), st.sampled_from([1, 2, 5]), st.integers(0, 2**32 - 1))
    def test_no_feature_is_kept_or_dropped_twice_where_the_rate_allows_it(self, rate, num_samples, seed):
        masks = np.asarray(antithetic_masks(jax.random.key(seed), (4, 6), num_samples=num_samples, rate=rate))
        assert masks.shape == (num_samples, 4, 6)
        for first, second in zip(masks[0::2], masks[1::2], strict=False):
            assert np.all(first | second) or rate > 0.5
            assert not np.any(first & second) or rate < 0.5

    @pytest.mark.parametrize("rate", [0.2, 0.5, 0.7])
    def test_pairs_correlate_as_their_joint_distribution_says(self, rate):
        masks = np.asarray(antithetic_masks(jax.random.key(0), (200, 200), num_samples=5, rate=rate), float)
        correlation = np.corrcoef(masks.reshape(5, -1))
        both = max(0.0, 1 - 2 * rate)  # kept twice
        paired = (both - (1 - rate) ** 2) / (rate * (1 - rate))
        expected = np.eye(5)
        for i, j in [(0, 1), (2, 3)]:
            expected[i, j] = expected[j, i] = paired
        np.testing.assert_allclose(correlation, expected, atol=4.5 / 200)

    def test_at_rate_one_half_a_pair_averages_to_the_features(self):
        samples = multi_sample_dropout(jax.random.key(0), FEATURES, num_samples=6, rate=0.5, antithetic=True)
        np.testing.assert_allclose(np.mean(samples, axis=0), FEATURES, rtol=1e-6)


class TestMultiSampleLoss:
    def test_by_hand(self):
        """h = (2, 4), rate 1/2, masks (1, 1) and (1, 0), identity head, class 0: (log(1+e^4) + log(1+e^-4)) / 2."""
        logits = np.array([2.0, 4.0], np.float32) * np.array([[[1, 1]], [[1, 0]]], np.float32) / 0.5
        loss = multi_sample_loss(logits.astype(np.float32), np.array([0]), cross_entropy)
        np.testing.assert_allclose(loss, [2.018150], rtol=1e-6)

    def test_it_is_a_loop_over_samples_and_examples(self):
        masks = np.random.default_rng(1).integers(0, 2, size=(4, 5, 7))
        weights = np.random.default_rng(2).normal(size=(7, 3)).astype(np.float32)
        expected = np.zeros(5)
        for mask in masks:
            for b in range(5):
                expected[b] += numpy_cross_entropy((FEATURES[b] * mask[b] / 0.6) @ weights, LABELS[b]) / 4
        logits = jnp.asarray(FEATURES * masks / 0.6, jnp.float32) @ weights
        np.testing.assert_allclose(multi_sample_loss(logits, LABELS, cross_entropy), expected, rtol=2e-6)

    def test_labels_may_be_distributions(self):
        logits = jax.random.normal(jax.random.key(0), (4, 5, 3))
        soft = multi_sample_loss(logits, jax.nn.one_hot(LABELS, 3), optax.softmax_cross_entropy)
        np.testing.assert_allclose(soft, multi_sample_loss(logits, LABELS, cross_entropy), rtol=1e-6)

    @settings(max_examples=20, deadline=None)
    @given(st.integers(0, 2**32 - 1), st.sampled_from([0.1, 1.0, 30.0]))
    def test_it_is_at_least_the_loss_of_the_mean_logits(self, seed, scale):
        logits = scale * np.random.default_rng(seed).normal(size=(4, 5, 3)).astype(np.float32)
        loss = multi_sample_loss(logits, LABELS, cross_entropy)
        of_mean = [numpy_cross_entropy(row, label) for row, label in zip(logits.mean(axis=0), LABELS, strict=True)]
        assert np.all(np.asarray(loss) >= np.array(of_mean) * (1 - 1e-5) - 1e-6)

    def test_equal_samples_give_the_plain_loss_and_half_precision_is_averaged_in_float32(self):
        logits = jax.random.normal(jax.random.key(0), (5, 3)).astype(jnp.bfloat16)
        loss = multi_sample_loss(jnp.stack([logits] * 3), LABELS, cross_entropy)
        assert loss.dtype == jnp.float32
        np.testing.assert_allclose(loss, cross_entropy(logits, LABELS).astype(jnp.float32), rtol=1e-6)

    def test_labels_of_another_batch_are_refused(self):
        with pytest.raises(TypeCheckError, match="labels"):
            multi_sample_loss(jnp.zeros((4, 5, 3)), LABELS[:4], cross_entropy)


class TestModule:
    def test_there_is_one_set_of_weights_whatever_the_number_of_samples(self, variables):
        shapes = {
            "Dense_0": {"bias": (6,), "kernel": (7, 6)},
            "Dense_1": {"bias": (3,), "kernel": (6, 3)},
        }
        assert jax.tree.map(jnp.shape, variables) == {"params": {"head": shapes}}
        keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        in_training = LAYER.init(keys, FEATURES, deterministic=False)
        assert jax.tree.map(jnp.shape, in_training) == jax.tree.map(jnp.shape, variables)

    def test_evaluation_is_one_pass_without_masks_or_random_stream(self, variables):
        logits = LAYER.apply(variables, FEATURES, deterministic=True)
        np.testing.assert_allclose(logits, numpy_head(variables, FEATURES), rtol=1e-5, atol=1e-6)

    def test_every_sample_goes_through_the_same_head(self, variables):
        seen = []

        def spy(x):
            seen.append(x)
            return Head(parent=None).apply({"params": variables["params"]["head"]}, x)

        layer = MultiSampleDropout(spy, num_samples=4, rate=0.5)
        logits = layer.apply({}, FEATURES, deterministic=False, rngs={"dropout": jax.random.key(1)})
        (dropped,) = seen
        ratio = np.asarray(dropped) / FEATURES
        assert set(np.unique(ratio)) == {0.0, 2.0}
        assert len(np.unique(ratio.reshape(4, -1), axis=0)) == 4
        expected = [numpy_head(variables, sample) for sample in np.asarray(dropped)]
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)

        module = LAYER.apply(variables, FEATURES, deterministic=False, rngs={"dropout": jax.random.key(1)})
        np.testing.assert_allclose(module, logits, rtol=1e-6)

    def test_rate_zero_repeats_evaluation(self, variables):
        layer = LAYER.clone(rate=0.0)
        logits = layer.apply(variables, FEATURES, deterministic=False, rngs={"dropout": jax.random.key(1)})
        expected = numpy_head(variables, FEATURES)
        np.testing.assert_allclose(logits, np.broadcast_to(expected, (4, 5, 3)), rtol=1e-5, atol=1e-6)
        loss = multi_sample_loss(logits, LABELS, cross_entropy)
        plain = [numpy_cross_entropy(row, label) for row, label in zip(expected, LABELS, strict=True)]
        np.testing.assert_allclose(loss, plain, rtol=1e-5)

    def test_deterministic_is_said_once_here_or_there(self, variables):
        fixed = LAYER.clone(deterministic=True)
        np.testing.assert_array_equal(
            fixed.apply(variables, FEATURES), LAYER.apply(variables, FEATURES, deterministic=True)
        )
        with pytest.raises(ValueError, match="deterministic"):
            LAYER.apply(variables, FEATURES)
        with pytest.raises(ValueError, match="deterministic"):
            fixed.apply(variables, FEATURES, deterministic=True)

    def test_training_needs_the_dropout_stream(self, variables):
        with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
            LAYER.apply(variables, FEATURES, deterministic=False)

    def test_rates_can_be_vmapped_under_jit(self, variables):
        def logits(rate):
            layer = LAYER.clone(rate=rate)
            return layer.apply(variables, FEATURES, deterministic=False, rngs={"dropout": jax.random.key(1)})

        ours = jax.jit(jax.vmap(logits))(jnp.array([0.25, 0.5]))
        np.testing.assert_allclose(ours, [logits(0.25), logits(0.5)], rtol=1e-5, atol=1e-6)

    def test_antithetic_masks_reach_the_head(self):
        layer = MultiSampleDropout(lambda x: x, num_samples=4, rate=0.5, antithetic=True)
        samples = layer.apply({}, FEATURES, deterministic=False, rngs={"dropout": jax.random.key(0)})
        np.testing.assert_allclose(samples[0] + samples[1], 2 * FEATURES, rtol=1e-6)

    def test_gradients_have_the_same_mean_and_an_mth_of_the_variance(self, variables):
        """The variance of a mean of M independent gradients; ratio of total variances within 10% from 4000 draws."""
        draws = 4000

        @functools.partial(jax.jit, static_argnums=1)
        def gradients(keys, num_samples):
            layer = LAYER.clone(num_samples=num_samples)

            def loss(params, key):
                logits = layer.apply({"params": params}, FEATURES, deterministic=False, rngs={"dropout": key})
                return jnp.mean(multi_sample_loss(logits, LABELS, cross_entropy))

            tree = jax.vmap(jax.grad(loss), in_axes=(None, 0))(variables["params"], keys)
            return jnp.concatenate([leaf.reshape(draws, -1) for leaf in jax.tree.leaves(tree)], axis=1)

        moments = {}
        for num_samples in (1, 8):
            keys = jax.random.split(jax.random.key(num_samples), draws)
            sample = np.asarray(gradients(keys, num_samples), np.float64)
            moments[num_samples] = sample.mean(axis=0), sample.var(axis=0)
        ratio = moments[1][1].sum() / moments[8][1].sum()
        np.testing.assert_allclose(ratio, 8.0, rtol=0.1)
        error = np.sqrt((moments[1][1] + moments[8][1]) / draws)
        assert np.all(np.abs(moments[1][0] - moments[8][0]) <= 4.5 * error + 1e-9)


@pytest.mark.parametrize(
    ("name", "value", "interval"),
    [("rate", 1.0, "[0, 1)"), ("rate", -0.1, "[0, 1)"), ("num_samples", 0, "[1, inf)")],
)
def test_bad_hyperparameters_are_named(name, value, interval):
    key = jax.random.key(0)
    for call in (
        lambda: multi_sample_dropout(key, FEATURES, **{name: value}),
        lambda: antithetic_masks(key, (2,), **{name: value}),
        lambda: MultiSampleDropout(lambda x: x, **{name: value}).apply({}, FEATURES, deterministic=True),
    ):
        with pytest.raises(ValueError, match="must be in") as error:
            call()
        assert str(error.value) == f"{name} must be in {interval}, got {value}"
