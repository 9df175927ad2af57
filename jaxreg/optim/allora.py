"""ALLoRA: a learning rate for every row of a LoRA matrix, large where the row is short.

A fine-tuned weight is ``W + A B``, with ``B`` zero at first: so is then the gradient of ``A``, and ``B`` takes long to
leave zero. LoRA's remedy is a scaling factor to tune, and dropout, which needs more steps than a fine-tuning has to
become a regularizer. ALLoRA has neither: it divides the gradient of each row by the root of the row's length, which
speeds up short rows and slows down long ones.
"""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jaxreg.optim.descend import descend
from jaxreg.paths import is_named
from jaxreg.precision import at_least_float32
from jaxreg.typing import ScalarLike, ScalarOrSchedule, checked
from jaxreg.validation import check_params, check_range

LORA_AXES = {"lora_a": -1, "lora_b": -2}
"""The rank's axis in the matrices of :class:`jaxreg.layers.LoRADense`."""


@checked
def scale_by_inverse_row_norm(
    *, eta: ScalarLike = 2.0, norm_axis: int = -1, which: Any = None
) -> optax.GradientTransformation:
    r"""Divides every row by the root of the length of the parameters' row.

    .. math:: u_i \leftarrow \frac{u_i}{\sqrt{\|P_i\|_2 + 1 / \eta^2}}

    The factor is :math:`\eta` where the parameters are zero, and about :math:`\|P_i\|^{-1/2}` once they are not.

    >>> import jax.numpy as jnp
    >>> from jaxreg.optim import scale_by_inverse_row_norm
    >>> scaling = scale_by_inverse_row_norm(eta=1.0)
    >>> params = jnp.array([[0.0, 0.0], [3.0, 0.0]])
    >>> scaling.update(jnp.ones([2, 2]), scaling.init(params), params)[0].tolist()
    [[1.0, 1.0], [0.5, 0.5]]

    Args:
        eta: ``eta > 0``, the largest factor; the one hyperparameter, of the order of 1 to 10.
        norm_axis: the axis along which a row lies, that of LoRA's rank.
        which: pytree of bools, or a function from parameters to one: which leaves are scaled. By default those with at
            least two axes.

    Returns:
        A transformation without state of its own; ``update`` needs ``params``.

    Raises:
        ValueError: ``eta`` is not positive, or ``update`` was not given ``params``.

    References:
        Huang and Balestriero, *ALLoRA: Adaptive Learning Rate Mitigates LoRA Fatal Flaws*, arXiv 2410.09692.
    """
    check_range("eta", eta, "(0, inf)")

    def scale(update, parameter):
        length = jnp.linalg.norm(at_least_float32(parameter), axis=norm_axis, keepdims=True)
        return (update * jax.lax.rsqrt(length + 1 / jnp.square(eta))).astype(update.dtype)

    def update(updates, state, params=None):
        check_params(params)
        return jax.tree.map(scale, updates, params), state

    if which is None:
        which = _are_matrices
    scaling = optax.masked(optax.GradientTransformation(lambda params: optax.EmptyState(), update), which)
    return optax.GradientTransformation(scaling.init, scaling.update)


@checked
def allora(
    direction: optax.GradientTransformation,
    learning_rate: ScalarOrSchedule,
    *,
    eta: ScalarLike = 2.0,
    placement: Literal["after", "before"] = "after",
    norm_axes: Mapping[str, int] = LORA_AXES,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""ALLoRA: any optimizer, with :func:`scale_by_inverse_row_norm` for the LoRA matrices.

    The paper scales gradients. Adam's moments normalize most of that away, so that here what leaves ``direction`` is
    scaled by default; for SGD it is the same. Which parameters are trained at all is up to :func:`optax.masked` or
    :func:`optax.partition`, with :func:`jaxreg.layers.lora_mask`.

    >>> import optax
    >>> from jaxreg.layers import lora_mask
    >>> from jaxreg.optim import allora
    >>> optimizer = optax.partition(
    ...     {True: allora(optax.scale_by_adam(), 1e-3), False: optax.set_to_zero()}, lora_mask
    ... )

    Args:
        direction: transformation of gradients, such as ``optax.scale_by_adam()``; ``optax.identity()`` for SGD.
        learning_rate: a positive number or an optax schedule.
        eta: ``eta > 0``, the factor on rows that are zero.
        placement: whether the ``direction`` is scaled (after), or the gradient it sees (before, the paper).
        norm_axes: the rank's axis by the name of the parameter, the last key on its path. Leaves with other names
            are not scaled. The default is right for :class:`jaxreg.layers.LoRADense`: one factor for each output of
            ``B`` and for each input of ``A``. Leave ``lora_a`` out to scale ``B`` only.
        weight_decay: ``lambda >= 0``, decoupled, a number or a schedule; it is not scaled.
        mask: pytree of bools, or a function from parameters to one: which leaves decay.

    Returns:
        An optax optimizer; ``update`` needs ``params``.

    Raises:
        ValueError: a hyperparameter is outside its range, or ``update`` was not given ``params``.

    References:
        Huang and Balestriero, *ALLoRA: Adaptive Learning Rate Mitigates LoRA Fatal Flaws*, arXiv 2410.09692.
    """
    scaling = [
        scale_by_inverse_row_norm(eta=eta, norm_axis=axis, which=_called(name)) for name, axis in norm_axes.items()
    ]
    parts = [direction, *scaling] if placement == "after" else [*scaling, direction]
    return descend(optax.chain(*parts), learning_rate, weight_decay=weight_decay, mask=mask)


def _are_matrices(tree):
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) >= 2, tree)


def _called(name):
    """A mask of the leaves of this name."""

    def named(path, leaf):
        del leaf
        return is_named(path, [name])

    return lambda tree: jax.tree.map_with_path(named, tree)
