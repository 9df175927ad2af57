"""Tables of modular arithmetic against Python's integers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.data import modular_table, noisy_modular


def operands(x):
    p = x.shape[1] // 2
    assert (np.sort(np.asarray(x).reshape(-1, 2, p), axis=-1)[..., :-1] == 0).all()
    np.testing.assert_array_equal(np.asarray(x).reshape(-1, 2, p).sum(-1), 1.0)
    return np.asarray(x)[:, :p].argmax(-1), np.asarray(x)[:, p:].argmax(-1)


@pytest.mark.parametrize(("operation", "result"), [("add", np.add), ("multiply", np.multiply)])
def test_every_entry_is_there_once_and_right(operation, result):
    table = modular_table(jax.random.key(0), 7, train_fraction=0.3, operation=operation)
    assert len(table.train_y) == 15  # 0.3 * 49 = 14.7
    x, y = np.concatenate([table.train_x, table.test_x]), np.concatenate([table.train_y, table.test_y])
    m, n = operands(x)
    assert sorted(zip(m.tolist(), n.tolist(), strict=True)) == [(i, j) for i in range(7) for j in range(7)]
    np.testing.assert_array_equal(y, result(m, n) % 7)
    assert not table.corrupted.any()


def test_keys_choose_other_parts():
    first, second = (modular_table(jax.random.key(seed), 7).train_x for seed in (0, 1))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("noise", [0.0, 0.25, 1.0])
def test_noise_is_in_the_training_labels_alone(noise):
    p = 23
    table = noisy_modular(jax.random.key(1), p, train_fraction=0.6, noise=noise)
    m, n = operands(table.train_x)
    wrong = np.asarray(table.train_y) != (m + n) % p
    np.testing.assert_array_equal(table.corrupted, wrong)
    # Of the labels drawn anew one in 23 hits the truth.
    redrawn = int(noise * len(wrong))
    assert wrong.sum() <= redrawn
    np.testing.assert_allclose(wrong.sum(), redrawn * (1 - 1 / p), atol=4 * np.sqrt(redrawn / p) + 1e-9)
    m, n = operands(table.test_x)
    np.testing.assert_array_equal(table.test_y, (m + n) % p)


def test_random_labels_are_uniform():
    """Chi-square with 22 degrees of freedom: below 48.3 with probability 0.999."""
    table = noisy_modular(jax.random.key(2), 23, train_fraction=1.0, noise=1.0)
    counts = np.bincount(np.asarray(table.train_y), minlength=23)
    assert np.sum((counts - 23) ** 2 / 23) < 48.3


def test_noise_may_be_traced():
    rates = jnp.array([0.1, 0.5])
    together = jax.jit(jax.vmap(lambda noise: noisy_modular(jax.random.key(0), 11, noise=noise)))(rates)
    for i, noise in enumerate([0.1, 0.5]):
        alone = noisy_modular(jax.random.key(0), 11, noise=noise)
        np.testing.assert_array_equal(together.train_y[i], alone.train_y)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(modulus=1), r"modulus must be in \[2, inf\), got 1"),
        (dict(modulus=5, train_fraction=1.5), r"train_fraction must be in \[0, 1\], got 1.5"),
        (dict(modulus=5, noise=-0.1), r"noise must be in \[0, 1\], got -0.1"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        noisy_modular(jax.random.key(0), **arguments)
