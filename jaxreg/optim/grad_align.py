"""An auxiliary loss that never works against the main one.

Gradient alignment takes from the auxiliary gradient what points against the main gradient. The main gradient stays as
it is, unlike in gradient surgery, where both give way::

    main, auxiliary = jax.grad(main_loss)(params), jax.grad(auxiliary_loss)(params)
    gradient = jax.tree.map(jnp.add, main, align_to_primary(main, auxiliary))
"""

import jax
import jax.numpy as jnp

from jaxreg.linalg import over_largest, tree_inner
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
    p = over_largest(p)  # late in training gradients are tiny: without this their squares would be zero
    square = tree_inner(p, p)
    share = jnp.minimum(tree_inner(a, p) / jnp.where(square > 0, square, 1.0), 0.0)
    return jax.tree.map(lambda x, y, like: (x - share * y).astype(like.dtype), a, p, auxiliary)
