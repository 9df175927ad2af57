"""Experts against SGD written out in NumPy for a linear softmax model, and representatives against scikit-learn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from sklearn.cluster import KMeans

from jaxreg.data import clip_coefficients, input_gradient_penalty, representative_init, train_expert

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(6, 4)).astype(np.float32), np.array([0, 1, 2, 1, 0, 2])
W = RNG.normal(size=(4, 3)).astype(np.float32)


def linear(w, x):
    return x @ w


penalty = jax.jit(jax.value_and_grad(lambda w, x: input_gradient_penalty(linear, w, x, Y).mean()))


def test_coefficients_rise_from_a_half_to_one():
    values = np.asarray(clip_coefficients(jnp.arange(15)))
    assert (np.diff(values) >= 0).all()
    np.testing.assert_allclose(values[[0, 1, 2, 3, 4, 10, 11, 14]], [0.5, 0.5, 0.55, 0.55, 0.6, 0.9, 1, 1])
    assert float(clip_coefficients(5)) == pytest.approx(0.65)


def test_penalty_of_a_linear_model():
    """The slope of cross-entropy in x is W (p - y)."""
    residual = softmax(X.astype(np.float64) @ W, -1) - np.eye(3)[Y]
    expected = (np.linalg.norm(residual @ W.T, axis=-1) - 1) ** 2
    value, gradient = penalty(W, X)
    np.testing.assert_allclose(value, expected.mean(), rtol=1e-4)
    for sure in (1e4, 0.0):
        assert np.isfinite(penalty(W, sure * X)[1]).all()
    ends = [penalty((1 + side * 1e-2) * W, X)[0] for side in (1, -1)]
    np.testing.assert_allclose(np.vdot(gradient, W), (ends[0] - ends[1]) / 2e-2, rtol=1e-2)


class TestExpert:
    def by_hand(self, *, epochs, clip, rate=0.1, momentum=0.9, decay=1e-2):
        """One batch an epoch, so that its order does not matter."""
        w, v, path = W.astype(np.float64), 0, [W]
        for e in range(epochs):
            gradient = X.T @ (softmax(X @ w, -1) - np.eye(3)[Y]) / len(X)
            v = momentum * v + (0.5 if clip else 1.0) * gradient + decay * w
            w = w - rate * (1.0 if e < epochs / 2 else 0.7) * v
            path.append(w)
        return np.stack(path)

    @pytest.mark.parametrize("clip", [False, True])
    def test_path_by_hand(self, clip):
        """The first two epochs have the coefficient 1/2, the second of two 0.7 of the rate."""
        options = dict(learning_rate=0.1, weight_decay=1e-2, clip=clip)
        path = train_expert(jax.random.key(0), linear, W, X, Y, epochs=2, batch_size=6, **options)
        np.testing.assert_allclose(path, self.by_hand(epochs=2, clip=clip), rtol=1e-5, atol=1e-6)

    def test_half_precision_stays_so_whatever_is_traced(self):
        @jax.jit
        def trained(rate, decay):
            options = dict(learning_rate=rate, weight_decay=decay, clip=False)
            return train_expert(
                jax.random.key(0), linear, W.astype(jnp.bfloat16), X, Y, epochs=2, batch_size=6, **options
            )

        path = trained(np.float32(0.1), np.float32(1e-2))
        assert path.dtype == jnp.bfloat16
        np.testing.assert_allclose(path.astype(np.float32), self.by_hand(epochs=2, clip=False), atol=2e-2)

    def test_every_example_is_seen_once_an_epoch(self):
        """Example i moves row i only, by rate times 1/2 over the batch of 2 at weights of almost zero."""
        x, y = np.eye(6, dtype=np.float32), np.zeros(6, int)
        path = train_expert(
            jax.random.key(1), linear, np.zeros((6, 2), np.float32), x, y, epochs=1, batch_size=2,
            learning_rate=1e-3, momentum=0.0, weight_decay=0.0, clip=False,
        )  # fmt: skip
        np.testing.assert_allclose(path[1], np.tile([0.25e-3, -0.25e-3], (6, 1)), rtol=1e-3)

    def test_penalty_is_weighted(self):
        def step(weight):
            return train_expert(
                jax.random.key(0), linear, W, X, Y, epochs=1, batch_size=6, learning_rate=1.0, momentum=0.0,
                gradient_penalty=weight,
            )[1]  # fmt: skip

        np.testing.assert_allclose(step(0.0) - step(jnp.asarray(0.3)), 0.3 * penalty(W, X)[1], atol=1e-5)

    @pytest.mark.parametrize(("name", "value"), [("epochs", 0), ("batch_size", 7), ("momentum", 1.0)])
    def test_bad_numbers_are_named(self, name, value):
        with pytest.raises(ValueError, match=rf"^{name} must be in .*, got {value}"):
            train_expert(jax.random.key(0), linear, W, X, Y, **{"epochs": 1, "batch_size": 2, name: value})


representatives = jax.jit(functools.partial(representative_init, per_class=3, num_classes=2))


class TestRepresentatives:
    LABELS = np.repeat([0, 1], 60)
    CENTRES = np.array([[0, 0], [9, 0], [0, 9]])
    POINTS = (CENTRES[np.arange(120) % 3] + RNG.normal(0, 0.4, (120, 2)) + 40 * LABELS[:, None]).astype(np.float32)

    def test_they_are_next_to_the_centres_of_k_means(self):
        ours = np.asarray(representatives(jax.random.key(0), self.POINTS, self.LABELS))
        for c in range(2):
            members = self.POINTS[60 * c : 60 * c + 60]
            centres = KMeans(3, n_init=10, random_state=0).fit(members).cluster_centers_
            nearest = members[np.linalg.norm(members[:, None] - centres, axis=-1).argmin(0)]
            np.testing.assert_array_equal(np.sort(ours[c], axis=0), np.sort(nearest, axis=0))

    def test_no_example_twice_and_all_of_their_class(self):
        """Two places only in the first class, three examples asked for."""
        places = np.concatenate([np.zeros(59), [1.0], np.repeat([5.0, 6.0, 7.0], 20)]).astype(np.float32)
        ours = representatives(jax.random.key(0), np.stack([places, places], axis=-1), self.LABELS)
        np.testing.assert_array_equal(np.sort(ours[..., 0], -1), [[0, 0, 1], [5, 6, 7]])

    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
    def test_they_are_the_same_in_float64_mode(self, dtype):
        points = np.float32([[0, 1], [2, 3], [40, 41], [42, 43]]).astype(dtype)
        with jax.enable_x64(True):
            ours = representative_init(jax.random.key(0), points, np.array([0, 0, 1, 1]), 2, num_classes=2)
        assert ours.dtype == dtype
        np.testing.assert_array_equal(np.sort(ours, axis=1).reshape(4, 2), points)

    def test_a_class_with_too_few_is_refused_or_repeats_its_own(self):
        points, labels = self.POINTS[58:63], self.LABELS[58:63]
        with pytest.raises(ValueError, match=r"^every class must have at least per_class=3 examples, got 2 of class 0"):
            representative_init(jax.random.key(0), points, labels, 3, num_classes=2)
        ours = np.asarray(representatives(jax.random.key(0), points, labels))
        assert {tuple(row) for row in ours[0]} == {tuple(row) for row in points[:2]}
        np.testing.assert_array_equal(np.sort(ours[1], axis=0), np.sort(points[2:], axis=0))

    def test_too_many_are_refused(self):
        with pytest.raises(ValueError, match=r"^per_class must be in \[1, 6\], got 7"):
            representative_init(jax.random.key(0), X, Y, 7, num_classes=3)
