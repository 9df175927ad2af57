"""Softmax collapse, and the direction that leads there.

In floating point the cross-entropy of a confident, correct prediction is exactly zero, and so is the gradient of its
logit. Training does not converge then, it is cut off. What drives a network there after it has fitted its training set
is naive loss minimization: gradients along the weights, which scale the logits and change no prediction.
"""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.typing import DTypeLike

from jaxreg.axes import at_labels
from jaxreg.metrics.memorization import early_learning_alignment
from jaxreg.nans import unless_nan
from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, Int, PyTree, checked


@checked
def collapse_fraction(
    logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"], *, dtype: DTypeLike | None = None
) -> Float[Array, ""]:
    r"""Fraction of the examples whose cross-entropy, computed in some precision, has no gradient left.

    .. math:: \Pr\Bigl(1 + \sum_{k \ne y} e^{z_k - z_y} \text{ rounds to } 1\Bigr)
        = \Pr\Bigl(\sum_{k \ne y} e^{z_k - z_y} \le \tfrac12 \varepsilon\Bigr)

    with machine epsilon :math:`\varepsilon`: for two classes from a gap of 16.6 in float32, 5.5 in bfloat16. The sum is
    rounded once, whatever the order in which some implementation of softmax would add.

    Args:
        logits: scores ``z``, of the training examples.
        labels: class indices ``y`` in ``[0, classes)``.
        dtype: precision of the loss in question, by default that of ``logits``.

    Returns:
        The fraction, in [0, 1]; NaN if a logit is.

    References:
        Prieto et al., *Grokking at the Edge of Numerical Stability*, ICLR 2025, arXiv 2501.04697.
    """
    precision = jnp.finfo(jnp.result_type(logits) if dtype is None else dtype)
    z = at_least_float32(logits)
    gaps = z - at_labels(z, labels)[..., None]
    wrong = jnp.arange(z.shape[-1]) != labels[..., None]
    rest = jax.nn.logsumexp(gaps, axis=-1, where=wrong)
    collapsed = rest <= jnp.log(float(precision.eps) / 2)
    return jnp.mean(unless_nan(collapsed, rest))


@checked
def nlm_alignment(gradients: PyTree[Float[Array, "..."]], params: PyTree[Float[Array, "..."]]) -> Float[Array, ""]:
    r"""How much a descent step is naive loss minimization: the cosine between it and the weights.

    .. math:: \frac{\langle -g, w \rangle}{\|g\| \, \|w\|}

    A positive homogeneous network, such as a ReLU network without biases, scales its logits when its weights are
    scaled. So 1 means a step that makes the network more confident and nothing else. For one layer's alignment pass
    that layer's arrays.

    Args:
        gradients: ``g``, of the training loss, a pytree or an array.
        params: ``w``, likewise.

    Returns:
        The cosine in [-1, 1], 0 if either argument is zero.

    References:
        Prieto et al., *Grokking at the Edge of Numerical Stability*, ICLR 2025, arXiv 2501.04697.
    """
    gradient, direction = (ravel_pytree(tree)[0] for tree in (gradients, params))
    return early_learning_alignment(gradient, direction)
