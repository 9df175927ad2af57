"""Gradients without their radial part: no loss to be had by merely scaling the logits up.

Once a homogeneous network fits its training set, its gradient points along the weights: longer weights are larger
logits are a lower cross-entropy, with the same predictions. Following it ends in softmax collapse, where the float32
loss has no gradient left and a network that would have gone on to generalize stands still. Taking this direction out of
the gradient leaves only what changes the predictions.
"""

import jax
import jax.numpy as jnp
import optax

from jaxreg.linalg import largest_entry, over_largest, tree_inner
from jaxreg.precision import widened
from jaxreg.typing import ScalarLike, checked
from jaxreg.validation import check_params, check_range


@checked
def perp_grad(*, per_leaf: bool = True, rescale: bool = True, eps: ScalarLike = 1e-30) -> optax.GradientTransformation:
    r"""The gradient's part that is orthogonal to the weights, at the gradient's own length.

    .. math::
        g_\perp = g - \frac{\langle w, g \rangle}{\langle w, w \rangle + \epsilon} \, w, \qquad
        g_\perp \leftarrow \frac{\|g\|}{\|g_\perp\|} \, g_\perp

    Chain it before an optimizer: ``optax.chain(perp_grad(), optax.adam(1e-2))``. Where the weights are zero the
    gradient stays as it is; where it is parallel to them, up to rounding, it becomes zero. So a leaf with a single
    entry stops moving once it is not zero: leave such leaves out with :func:`optax.masked`.

    >>> import jax.numpy as jnp
    >>> from jaxreg.optim import perp_grad
    >>> projection = perp_grad(rescale=False)
    >>> weights, gradient = jnp.array([2.0, 0.0]), jnp.array([3.0, 4.0])
    >>> projection.update(gradient, projection.init(weights), weights)[0].tolist()
    [0.0, 4.0]

    Args:
        per_leaf: take each array as one vector ``w`` (authors' code), or all arrays together.
        rescale: restore the length of the gradient, as the authors' code does; the paper's equation only projects.
        eps: ``epsilon >= 0`` (authors' code: 1e-30).

    Returns:
        A transformation of gradients without state; ``update`` needs ``params``.

    Raises:
        ValueError: ``eps`` is negative, or ``update`` was not given ``params``.

    References:
        Prieto et al., *Grokking at the Edge of Numerical Stability*, ICLR 2025, arXiv 2501.04697.
    """
    check_range("eps", eps, "[0, inf)")

    def init(params):
        del params
        return optax.EmptyState()

    def update(updates, state, params=None):
        check_params(params)
        if per_leaf:
            return jax.tree.map(lambda g, w: _orthogonal(g, w, rescale, eps), updates, params), state
        return _orthogonal(updates, params, rescale, eps), state

    return optax.GradientTransformation(init, update)


def _orthogonal(gradient, weights, rescale, eps):
    """The projection of a pytree of gradients, all as one vector."""
    g, w = widened((gradient, weights))
    # Collapsing losses have tiny gradients: without this their squares would be zero.
    largest, g = largest_entry(g), over_largest(g)
    square = tree_inner(w, w)
    share = jnp.where(square > 0, tree_inner(w, g) / jnp.where(square > 0, square + eps, 1.0), 0.0)
    orthogonal = jax.tree.map(lambda x, y: x - share * y, g, w)
    if rescale:
        length, left = jnp.sqrt(tree_inner(g, g)), jnp.sqrt(tree_inner(orthogonal, orthogonal))
        # What is left of a parallel gradient is rounding error, which must not be blown up to full length.
        something = left > 1e-6 * length
        factor = jnp.where(something, largest * length / jnp.where(something, left, 1.0), 0.0)
    else:
        factor = largest
    return jax.tree.map(lambda x, like: (factor * x).astype(like.dtype), orthogonal, gradient)
