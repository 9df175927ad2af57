"""Whether two losses pull the same parameters the same way."""

import jax.numpy as jnp

from jaxreg.linalg import over_largest, tree_inner
from jaxreg.precision import widened
from jaxreg.typing import Array, Float, PyTree, checked


@checked
def gradient_cosine(
    gradient_a: PyTree[Float[Array, "?*shape"], "T"], gradient_b: PyTree[Float[Array, "?*shape"], "T"]
) -> Float[Array, ""]:
    r"""The cosine between two gradients, all their leaves as one vector.

    .. math:: \frac{\langle g_a, g_b \rangle}{\|g_a\| \, \|g_b\|}

    Below zero the losses conflict. Taken layer by layer it says where: in the classifier or in the features below.

    >>> import jax.numpy as jnp
    >>> from jaxreg.metrics import gradient_cosine
    >>> one, other = {"w": jnp.array([3.0, 0.0])}, {"w": jnp.array([-3.0, 4.0])}
    >>> round(float(gradient_cosine(one, other)), 4)
    -0.6

    Args:
        gradient_a: of one loss.
        gradient_b: of the other, with respect to the same parameters.

    Returns:
        The cosine in [-1, 1], 0 if either gradient is zero.

    References:
        Yang et al., *Dual-Head Knowledge Distillation: Enhancing Logits Utilization with an Auxiliary Head*,
        arXiv 2411.08937.
    """
    a, b = (over_largest(widened(gradient)) for gradient in (gradient_a, gradient_b))
    product = jnp.sqrt(tree_inner(a, a)) * jnp.sqrt(tree_inner(b, b))
    return jnp.where(product == 0, 0.0, tree_inner(a, b) / jnp.where(product == 0, 1.0, product))
