import jax
import numpy as np
import pytest

from experiments.harness.data import digits
from experiments.harness.frechet import SPLIT_SEED, digit_features, frechet_to, pooled_features


@pytest.fixture(scope="module")
def split():
    return digits(jax.random.key(SPLIT_SEED))


def pictures(flat):
    return 2 * np.asarray(flat).reshape(-1, 8, 8, 1) - 1


@pytest.fixture(scope="module")
def features():
    return jax.jit(digit_features())


def test_held_out_digits_lie_nearest_to_their_own_class(split, features):
    train, test = (np.asarray(features(pictures(x))) for x in (split.train_x, split.test_x))
    means = np.stack([train[split.train_y == digit].mean(0) for digit in range(10)])
    nearest = np.linalg.norm(test[:, None] - means, axis=-1).argmin(1)
    assert (nearest == split.test_y).mean() > 0.93  # of pixels: 0.90


def test_worse_images_are_further_from_held_out_digits(split, features):
    distance = jax.jit(frechet_to(pictures(split.test_x), features=features))
    real = pictures(split.train_x)
    noise = np.random.default_rng(0).normal(size=real.shape).astype(np.float32)
    without_threes = np.where((split.train_y == 3)[:, None, None, None], real[:1], real)
    distances = [float(distance(images)) for images in (real, real + 0.5 * noise, noise)]
    assert 0 < 4 * distances[0] < 2 * distances[1] < distances[2]
    assert distance(without_threes) > 4 * distances[0]


def test_beyond_black_and_white_there_is_nothing(split, features):
    black_and_white = np.sign(pictures(split.train_x))
    np.testing.assert_array_equal(features(5 * black_and_white), features(black_and_white))


def test_a_shift_costs_its_square_in_every_feature():
    rng = np.random.default_rng(0)
    images = rng.normal(size=[50, 4, 4, 2]).astype(np.float32)
    distance = frechet_to(images, features=pooled_features(2))
    assert float(distance(images + 3)) == pytest.approx(2 * 2 * 2 * 3**2, rel=1e-4)


def test_pooled_features_are_the_means_of_tiles():
    images = np.random.default_rng(0).normal(size=[3, 4, 6, 2]).astype(np.float32)
    pooled = np.asarray(pooled_features(2)(images)).reshape(3, 2, 2, 2)
    np.testing.assert_allclose(pooled[1, 0, 1], images[1, :2, 3:].mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(pooled[2, 1, 0], images[2, 2:, :3].mean((0, 1)), rtol=1e-5)


def test_tiles_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="side must divide height and width of the images, 4 x 6, got 4"):
        pooled_features(4)(np.zeros([1, 4, 6, 1]))
    with pytest.raises(ValueError, match="side must be in"):
        pooled_features(0)
