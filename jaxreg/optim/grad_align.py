"""An auxiliary loss that never works against the main one.

Gradient alignment takes from the auxiliary gradient what points against the main gradient. The main gradient stays as
it is, unlike in gradient surgery, where both give way::

    main, auxiliary = jax.grad(main_loss)(params), jax.grad(auxiliary_loss)(params)
    gradient = jax.tree.map(jnp.add, main, align_to_primary(main, auxiliary))
"""

import jax
import jax.numpy as jnp
import optax

from jaxreg.precision import widened
from jaxreg.typing import Array, Float, PyTree, checked


@checked
def align_to_primary(
    primary: PyTree[Float[Array, "?*shape"], "T"], auxiliary: PyTree[Float[Array, "?*shape"], "T"]
) -> PyTree[Float[Array, "..."], "T"]:
    r"""The auxiliary gradient without what conflicts with the primary one.

    .. math::
        g_a - \min\Bigl(0,\; \frac{\langle g_a, g_p \rangle}{\|g_p\|^2}\Bigr)\, g_p

    with all parameters as one vector. Afterwards the inner product of the two is not negative; without a conflict the
    auxiliary gradient is unchanged.

    Args:
        primary: ``g_p``, of the loss that counts; zero for parameters that it does not depend on.
        auxiliary: ``g_a``, of the other loss, likewise.

    Returns:
        The aligned auxiliary gradient, in its own dtype. The step follows its sum with ``primary``.

    References:
        Yang et al., *Dual-Head Knowledge Distillation: Enhancing Logits Utilization with an Auxiliary Head*,
        arXiv 2411.08937.
    """
    p, a = widened((primary, auxiliary))
    # Late in training gradients are tiny: without this their squares would be zero.
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(x), initial=0.0) for x in jax.tree.leaves(p)] or [jnp.zeros([])]))
    p = jax.tree.map(lambda x: x / jnp.where(largest > 0, largest, 1.0), p)
    square = _inner(p, p)
    share = jnp.minimum(_inner(a, p) / jnp.where(square > 0, square, 1.0), 0.0)
    return jax.tree.map(lambda x, y, like: (x - share * y).astype(like.dtype), a, p, auxiliary)


def _inner(x, y):
    # optax.tree.vdot flattens the leaves, which sharded ones resist.
    return optax.tree.sum(jax.tree.map(lambda a, b: jnp.sum(a * b), x, y))
