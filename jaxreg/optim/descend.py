"""From a direction to an optimizer: decoupled weight decay, learning rate, the parameters' precision."""

from typing import Any

import optax

from jaxreg.typing import ScalarOrSchedule, checked
from jaxreg.validation import check_range


@checked
def descend(
    direction: optax.GradientTransformation,
    learning_rate: ScalarOrSchedule,
    *,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""The optimizer that moves against ``direction``, as ``optax.adamw`` is made of ``optax.scale_by_adam``.

    .. math:: \Delta\theta = -\eta\,(u + \lambda \theta)

    Updates keep the dtype of the gradients, also when the learning rate is an array of a wider one.

    >>> import optax
    >>> lion = descend(optax.scale_by_lion(), 1e-4, weight_decay=0.1)

    Args:
        direction: transformation of gradients into ``u``, such as any ``scale_by_*``.
        learning_rate: ``eta``, a number or an optax schedule.
        weight_decay: ``lambda >= 0``, a number or a schedule. With 0 ``update`` needs no ``params``.
        mask: pytree of bools, or a function from parameters to one: which leaves decay.

    Returns:
        The optimizer.

    Raises:
        ValueError: ``weight_decay`` is negative.

    References:
        Loshchilov and Hutter, *Decoupled Weight Decay Regularization*, ICLR 2019.
    """
    check_range("weight_decay", weight_decay, "[0, inf)")
    no_decay = isinstance(weight_decay, int | float) and weight_decay == 0
    steps = optax.chain(
        direction,
        optax.identity() if no_decay else optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )

    def update(updates, state, params=None, **extra_args):
        descent, state = steps.update(updates, state, params, **extra_args)
        return optax.tree.cast_like(descent, updates), state

    return optax.GradientTransformationExtraArgs(steps.init, update)
