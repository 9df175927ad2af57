"""SalUn's mask against NumPy, its optimizer against plain ones, its losses by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import log_softmax

from jaxreg.unlearning import (
    NoisedBatch,
    forget_gradients,
    masked,
    random_label_loss,
    random_labels,
    saliency_mask,
    salun_diffusion_loss,
)


def tree(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "a": jnp.asarray(rng.normal(size=(7, 5)), jnp.float32),
        "b": {"c": jnp.asarray(10 * rng.normal(size=11), jnp.float32), "d": jnp.asarray(rng.normal(), jnp.float32)},
    }


def flat(t):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(t)])


class TestSaliencyMask:
    @pytest.mark.parametrize("keep", [0.0, 0.1, 0.33, 0.5, 0.999, 1.0])
    @pytest.mark.parametrize("traced", [False, True])
    def test_exactly_the_largest_of_the_whole_network_are_marked(self, keep, traced):
        gradients = tree()
        mask = jax.jit(saliency_mask)(gradients, keep=keep) if traced else saliency_mask(gradients, keep=keep)
        sizes = np.abs(flat(gradients))
        count = int(sizes.size * keep)
        assert flat(mask).sum() == count
        assert set(np.flatnonzero(flat(mask))) == set(np.argsort(-sizes, kind="stable")[:count])
        assert jax.tree.map(jnp.shape, mask) == jax.tree.map(jnp.shape, gradients)

    def test_ranking_is_global_not_per_array(self):
        mask = saliency_mask({"small": jnp.full(10, 0.1), "large": jnp.full(10, -5.0)}, keep=0.5)
        assert not mask["small"].any()
        assert mask["large"].all()

    def test_of_equal_ones_the_first_are_marked(self):
        assert saliency_mask(jnp.zeros(5), keep=0.5).tolist() == [True, True, False, False, False]

    def test_without_weights_nothing_is_marked(self):
        assert saliency_mask({}) == {}

    def test_bad_share_is_named(self):
        with pytest.raises(ValueError, match=r"keep must be in \[0, 1\], got 1.5"):
            saliency_mask(jnp.zeros(3), keep=1.5)


def test_forget_gradients_are_the_signed_mean_over_batches():
    """The gradient of (w x - 1)^2 is 2 x (w x - 1); opposite batches cancel."""
    x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    gradients = forget_gradients(lambda w, batch: jnp.mean((w * batch - 1) ** 2), jnp.array(0.7), x)
    np.testing.assert_allclose(gradients, np.mean(2 * x * (0.7 * x - 1)), rtol=1e-5)
    opposite = jnp.array([[3.0], [-3.0]])
    np.testing.assert_array_equal(forget_gradients(lambda w, batch: w * batch[0], jnp.array(1.0), opposite), 0.0)
    half = forget_gradients(lambda w, batch: w * batch[0], jnp.array(1.0, jnp.bfloat16), opposite.astype(jnp.bfloat16))
    assert half.dtype == jnp.float32


class TestMasked:
    def train(self, optimizer, steps=100):
        start, target = tree(), tree(1)

        def loss(params):
            return sum(jnp.sum((p - t) ** 2) for p, t in zip(*map(jax.tree.leaves, (params, target)), strict=True))

        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.jit(lambda: jax.lax.scan(step, (start, optimizer.init(start)), length=steps)[0])()

    def test_frozen_weights_stay_bit_for_bit_under_decay_and_momentum(self):
        mask = saliency_mask(tree(2), keep=0.4)
        params, state = self.train(masked(optax.adamw(0.01, weight_decay=0.1), mask))
        marks = flat(mask)
        np.testing.assert_array_equal(flat(params)[~marks], flat(tree())[~marks])
        assert (flat(params)[marks] != flat(tree())[marks]).all()
        np.testing.assert_array_equal(flat(state[0].mu)[~marks], 0.0)

    def test_all_weights_marked_is_the_plain_optimizer(self):
        everything = saliency_mask(tree(), keep=1.0)
        ours, _ = self.train(masked(optax.adamw(0.01), everything))
        plain, _ = self.train(optax.adamw(0.01))
        np.testing.assert_array_equal(flat(ours), flat(plain))

    def test_no_weight_marked_changes_nothing(self):
        params, _ = self.train(masked(optax.adamw(0.01), saliency_mask(tree(), keep=0.0)))
        np.testing.assert_array_equal(flat(params), flat(tree()))

    def test_global_norms_are_those_of_the_marked_entries(self):
        optimizer = masked(optax.clip_by_global_norm(1.0), jnp.array([True, True, False]))
        updates, _ = optimizer.update(jnp.array([3.0, 4.0, 100.0]), optimizer.init(jnp.zeros(3)))
        np.testing.assert_allclose(updates, [0.6, 0.8, 0.0], rtol=1e-6)

    def test_updates_keep_their_dtype_and_nan_outside_is_dropped(self):
        optimizer = masked(optax.sgd(1.0), jnp.array([True, False]))
        gradients = jnp.array([1.0, jnp.nan], jnp.bfloat16)
        updates, _ = optimizer.update(gradients, optimizer.init(gradients), value=1.0)
        assert updates.dtype == jnp.bfloat16
        np.testing.assert_array_equal(updates.astype(jnp.float32), [-1.0, 0.0])


class TestRandomLabels:
    def test_the_other_classes_are_alike_probable(self):
        labels = jnp.arange(40_000) % 4
        drawn = random_labels(jax.random.key(0), labels, num_classes=4)
        counts = np.zeros((4, 4))
        np.add.at(counts, (labels, drawn), 1)
        np.testing.assert_allclose(counts / 10_000, (1 - np.eye(4)) / 3, atol=0.02)

    def test_all_classes_if_asked_for(self):
        labels = jnp.zeros(40_000, jnp.uint8)
        drawn = random_labels(jax.random.key(0), labels, num_classes=4, exclude_true=False)
        assert drawn.dtype == jnp.uint8
        np.testing.assert_allclose(np.bincount(drawn) / 40_000, np.full(4, 0.25), atol=0.02)

    def test_one_class_leaves_no_other(self):
        with pytest.raises(ValueError, match="num_classes must be in"):
            random_labels(jax.random.key(0), jnp.zeros(3, int), num_classes=1)


def test_random_label_loss_is_the_sum_of_two_cross_entropies():
    rng = np.random.default_rng(0)
    params, key = jnp.asarray(rng.normal(size=(3, 2)), jnp.float32), jax.random.key(1)
    forget_x, retain_x = rng.normal(size=(2, 6, 3)).astype(np.float32)
    forget_y, retain_y = rng.integers(0, 2, (2, 6))
    losses = random_label_loss(
        lambda w, x: x @ w, params, (forget_x, forget_y), (retain_x, retain_y), key, num_classes=2, alpha=0.3
    )
    # With two classes the random label is the other one.
    expected = -np.take_along_axis(log_softmax(forget_x @ params, -1), 1 - forget_y[:, None], -1)[:, 0]
    expected -= 0.3 * np.take_along_axis(log_softmax(retain_x @ params, -1), retain_y[:, None], -1)[:, 0]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


class TestDiffusionLoss:
    """A linear denoiser: the noise is ``w x + c``."""

    rng = np.random.default_rng(0)
    x_t, retain_x, noise = jnp.asarray(rng.normal(size=(3, 4, 2)), jnp.float32)
    t, c, other = jnp.zeros(4, int), jnp.full([4, 1], 2.0), jnp.full([4, 1], -1.0)
    retain = NoisedBatch(retain_x, t, other, noise)

    def loss(self, w, w0, beta=0.5):
        return salun_diffusion_loss(
            lambda w, x, t, c: w * x + c, w, w0, self.x_t, self.t, self.c, self.other, self.retain, beta=beta
        )

    def test_by_hand(self):
        w, w0 = jnp.array(0.5), jnp.array(0.25)
        forget = np.mean((0.25 * self.x_t + 3) ** 2, axis=1)
        keep = np.mean((0.5 * self.retain_x - 1 - self.noise) ** 2, axis=1)
        np.testing.assert_allclose(self.loss(w, w0), forget + 0.5 * keep, rtol=1e-5)

    def test_no_gradient_through_the_target(self):
        """With the target taken from the same weights: d/dw mean((w x + c - target)^2) = 2 mean(3 x)."""
        gradient = jax.grad(lambda w: jnp.sum(self.loss(w, w, beta=0.0)))(jnp.array(0.5))
        np.testing.assert_allclose(gradient, np.sum(np.mean(2 * 3 * self.x_t, axis=1)), rtol=1e-4)

    def test_negative_weights_are_refused(self):
        with pytest.raises(ValueError, match=r"beta must be in \[0, inf\)"):
            self.loss(jnp.array(1.0), jnp.array(1.0), beta=-1.0)
