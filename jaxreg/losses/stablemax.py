"""StableMax: probabilities from scores that grow linearly, not exponentially.

Softmax of large logits rounds to one and zero, and the gradient of the cross-entropy to exactly zero. Growing linearly
above zero and like a reciprocal below, StableMax needs logits in the thousands for that in float32 instead of ten.
"""

import jax
import jax.numpy as jnp

from jaxreg.axes import at_labels
from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, Int, checked


@checked
def log_stablemax(logits: Float[Array, "*batch classes"]) -> Float[Array, "*batch classes"]:
    r"""Logarithms of the StableMax probabilities.

    .. math::
        \log \frac{s(z_i)}{\sum_k s(z_k)}, \qquad
        s(x) = \begin{cases} x + 1 & x \ge 0 \\ 1 / (1 - x) & x < 0 \end{cases}

    Args:
        logits: scores ``z``. Unlike softmax, StableMax changes when the same number is added to all.

    Returns:
        Log-probabilities, at least float32.

    References:
        Prieto et al., *Grokking at the Edge of Numerical Stability*, ICLR 2025, arXiv 2501.04697.
    """
    z = at_least_float32(logits)
    # Each branch sees only what it is meant for, else the gradient of the other one at 1 or -1 would be infinite.
    log_s = jnp.where(z >= 0, jnp.log1p(jnp.where(z >= 0, z, 0.0)), -jnp.log1p(jnp.where(z >= 0, 0.0, -z)))
    return jax.nn.log_softmax(log_s, axis=-1)


@checked
def stablemax_cross_entropy(
    logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    r"""Cross-entropy with StableMax in place of softmax.

    .. math:: -\log \frac{s(z_y)}{\sum_k s(z_k)}

    with :math:`s` of :func:`log_stablemax`. It falls off like :math:`1 / z_y`, so gradients stay representable.

    >>> import jax.numpy as jnp
    >>> from jaxreg.losses import stablemax_cross_entropy
    >>> round(float(stablemax_cross_entropy(jnp.array([3.0, -1.0, -1.0]), jnp.array(0))), 4)
    0.2231

    Args:
        logits: scores ``z``.
        labels: class indices ``y`` in ``[0, classes)``.

    Returns:
        The loss of each example in nats, at least float32.

    References:
        Prieto et al., *Grokking at the Edge of Numerical Stability*, ICLR 2025, arXiv 2501.04697.
    """
    return -at_labels(log_stablemax(logits), labels)
