"""Modular arithmetic: a table to be completed from a part of it, with some of that part's entries wrong.

Networks that fit their part of the table may or may not find the rule behind it, which here is to be told apart
exactly: test labels are clean, and it is known which training labels are not.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.typing import Array, Bool, Float, Int, PRNGKeyArray, ScalarLike, checked
from jaxreg.validation import check_range

Operation = Literal["add", "multiply"]


class ModularTable(NamedTuple):
    """The entries of a table of modular arithmetic, split at random.

    Attributes:
        train_x: both operands of the training entries, one-hot, side by side.
        train_y: their results, in :func:`noisy_modular` partly wrong.
        test_x: the operands of all other entries.
        test_y: their results, never wrong.
        corrupted: which training labels are wrong.
    """

    train_x: Float[Array, "train twice_modulus"]
    train_y: Int[Array, "train"]
    test_x: Float[Array, "test twice_modulus"]
    test_y: Int[Array, "test"]
    corrupted: Bool[Array, "train"]


@checked
def modular_table(
    key: PRNGKeyArray, modulus: int, *, train_fraction: float | int = 0.5, operation: Operation = "add"
) -> ModularTable:
    r"""The table of :math:`(m \circ n) \bmod p`, a random part of it for training.

    Args:
        key: decides which part.
        modulus: ``p >= 2``; the table has its square of entries.
        train_fraction: in [0, 1], part of the entries that is for training (paper: 0.5).
        operation: what is done with the operands.

    Returns:
        Training and test entries, inputs of width ``2 p``; no label is wrong.

    Raises:
        ValueError: ``modulus`` is below 2 or ``train_fraction`` outside [0, 1].

    References:
        Doshi et al., *To grok or not to grok: Disentangling generalization and memorization on corrupted algorithmic
        datasets*, ICLR 2024, arXiv 2310.13061.
    """
    check_range("modulus", modulus, "[2, inf)")
    check_range("train_fraction", train_fraction, "[0, 1]")
    pairs = jnp.stack(jnp.meshgrid(jnp.arange(modulus), jnp.arange(modulus)), axis=-1).reshape(-1, 2)
    pairs = jax.random.permutation(key, pairs)
    x = jax.nn.one_hot(pairs, modulus).reshape(-1, 2 * modulus)
    y = (pairs.sum(-1) if operation == "add" else pairs.prod(-1)) % modulus
    split = round(train_fraction * len(y))
    return ModularTable(x[:split], y[:split], x[split:], y[split:], corrupted=jnp.zeros([split], bool))


@checked
def noisy_modular(
    key: PRNGKeyArray,
    modulus: int,
    *,
    train_fraction: float | int = 0.5,
    noise: ScalarLike = 0.35,
    operation: Operation = "add",
) -> ModularTable:
    r"""A table of modular arithmetic, a part of whose training labels are random.

    >>> import jax
    >>> from jaxreg.data import noisy_modular
    >>> table = noisy_modular(jax.random.key(0), 11, noise=0.2)
    >>> table.train_x.shape, table.test_x.shape, int(table.corrupted.sum())
    ((60, 22), (61, 22), 11)

    Args:
        key: decides which entries are for training, and the noise.
        modulus: ``p >= 2``.
        train_fraction: in [0, 1], part of the entries that is for training (paper: 0.5).
        noise: in [0, 1], part of the training labels that are drawn anew from all ``p`` classes (paper: 0.35). One
            in ``p`` of them hits the truth and does not count as corrupted.
        operation: what is done with the operands.

    Returns:
        Training and test entries, inputs of width ``2 p``.

    Raises:
        ValueError: ``modulus`` is below 2, or a fraction outside [0, 1].

    References:
        Doshi et al., *To grok or not to grok: Disentangling generalization and memorization on corrupted algorithmic
        datasets*, ICLR 2024, arXiv 2310.13061.
    """
    check_range("noise", noise, "[0, 1]")
    key_split, key_noise = jax.random.split(key)
    table = modular_table(key_split, modulus, train_fraction=train_fraction, operation=operation)
    size = len(table.train_y)
    # The order is random already, so that the first entries are a random choice.
    redrawn = jnp.arange(size) < jnp.floor(noise * size)
    labels = jax.random.randint(key_noise, [size], 0, modulus, table.train_y.dtype)
    labels = jnp.where(redrawn, labels, table.train_y)
    return table._replace(train_y=labels, corrupted=labels != table.train_y)
