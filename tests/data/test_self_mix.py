"""SelfMix: what is pasted is a rectangle, counted pixel by pixel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.data import self_mix

ZEROS, ONES = np.zeros((2, 6, 10, 3), np.float32), np.ones((2, 6, 10, 3), np.float32)
TARGET_A, TARGET_B = np.array([[0.8, 0.2], [0.5, 0.5]], np.float32), np.array([[0.1, 0.9], [0.3, 0.7]], np.float32)

draw = jax.jit(jax.vmap(lambda key: self_mix(key, ZEROS, ONES, TARGET_A, TARGET_B)))


@pytest.fixture(scope="module")
def mixed():
    return jax.device_get(draw(jax.random.split(jax.random.key(0), 2000)))


def test_a_rectangle_is_pasted_the_same_in_all_examples_and_channels(mixed):
    boxes = mixed.inputs[:, 0, :, :, 0]
    np.testing.assert_array_equal(mixed.inputs, np.broadcast_to(boxes[:, None, :, :, None], mixed.inputs.shape))
    np.testing.assert_array_equal(boxes, boxes.max(2, keepdims=True) * boxes.max(1, keepdims=True))
    assert (np.abs(np.diff(boxes.max(2), axis=1)).sum(1) <= 2).all(), "rows without a gap"


def test_the_weight_is_the_share_of_pixels_kept_and_mixes_the_targets(mixed):
    np.testing.assert_allclose(mixed.weight, 1 - mixed.inputs.mean((1, 2, 3, 4)), rtol=1e-5, atol=1e-6)
    w = mixed.weight[:, None, None]
    np.testing.assert_allclose(mixed.targets, w * TARGET_A + (1 - w) * TARGET_B, rtol=1e-5)


def test_boxes_are_those_of_a_simulation(mixed):
    """Means of pasted area over independent draws with NumPy."""
    rng, areas = np.random.default_rng(0), []
    for _ in range(20_000):
        side = np.sqrt(1 - rng.beta(1.0, 1.0))
        lengths = []
        for length in (6, 10):
            half, centre = int(side * length) // 2, rng.integers(length)
            lengths.append(min(centre + half, length) - max(centre - half, 0))
        areas.append(lengths[0] * lengths[1] / 60)
    spread = np.std(areas)
    np.testing.assert_allclose(
        1 - mixed.weight.mean(), np.mean(areas), atol=4.5 * spread * np.sqrt(1 / 2000 + 1 / 20_000)
    )


def test_a_crop_mixed_with_itself_stays():
    crop = np.random.default_rng(0).normal(size=(2, 6, 10, 3)).astype(np.float32)
    mixed = self_mix(jax.random.key(0), crop, crop, TARGET_A, TARGET_A)
    np.testing.assert_array_equal(mixed.inputs, crop)
    np.testing.assert_allclose(mixed.targets, TARGET_A, rtol=1e-6)


def test_half_precision_stays_so_and_alpha_can_be_traced():
    half = jnp.asarray(ONES, jnp.bfloat16)
    mixed = jax.jit(lambda alpha: self_mix(jax.random.key(0), half, half, TARGET_A, TARGET_B, alpha=alpha))(0.5)
    assert mixed.inputs.dtype == jnp.bfloat16


def test_bad_alpha_is_named():
    with pytest.raises(ValueError, match=r"alpha must be in \(0, inf\), got 0"):
        self_mix(jax.random.key(0), ZEROS, ONES, TARGET_A, TARGET_B, alpha=0)
