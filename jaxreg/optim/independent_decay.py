"""Weight decay that does not depend on the learning rate.

``optax.adamw`` multiplies its decay by the learning rate, so whoever tunes the one tunes the other. Independent decay
follows the schedule's shape only, and training depends less on the learning rate.
"""

from typing import Any

import jax.numpy as jnp
import optax

from jaxreg.typing import ScalarLike, ScalarOrSchedule, checked
from jaxreg.validation import check_range


@checked
def independent_weight_decay(
    inner: optax.GradientTransformation,
    *,
    weight_decay: ScalarLike = 1e-4,
    schedule: ScalarOrSchedule = 1.0,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Any optimizer, with decay by the schedule's shape instead of by the learning rate.

    .. math:: \theta \leftarrow \theta + u - s_t \lambda \theta

    The paper's optimizer, whose ``eps`` is far below Adam's 1e-8: gradients of large models come near it, and the
    updates vanish.

    >>> import optax
    >>> from jaxreg.optim import independent_weight_decay
    >>> shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup_steps=5_000, decay_steps=100_000)
    >>> adam = optax.adam(lambda step: 3e-3 * shape(step), b2=0.95, eps=1e-15)
    >>> optimizer = independent_weight_decay(adam, weight_decay=1e-4, schedule=shape)

    Args:
        inner: the optimizer without weight decay; its updates are ``u``.
        weight_decay: ``lambda >= 0`` (paper: 1e-4), the share of a parameter that decays in a step at the peak. It is
            the learning rate times the decay of :func:`optax.adamw`.
        schedule: ``s_t``, the learning rate divided by its peak: an optax schedule, or a constant.
        mask: pytree of bools, or a function from parameters to one: which leaves decay.

    Returns:
        The optimizer; ``update`` needs ``params``, extra arguments are passed on to ``inner``.

    Raises:
        ValueError: ``weight_decay`` is negative.

    References:
        Wortsman et al., *Small-scale proxies for large-scale Transformer training instabilities*, ICLR 2024,
        arXiv 2309.14322; after Loshchilov and Hutter, *Decoupled Weight Decay Regularization*, ICLR 2019.
    """
    check_range("weight_decay", weight_decay, "[0, inf)")

    def share(step):
        return -weight_decay * jnp.asarray(schedule(step) if callable(schedule) else schedule)

    steps = optax.chain(inner, optax.add_decayed_weights(share, mask))

    def update(updates, state, params=None, **extra_args):
        moved, state = steps.update(updates, state, params, **extra_args)
        return optax.tree.cast_like(moved, updates), state

    return optax.GradientTransformationExtraArgs(steps.init, update)
