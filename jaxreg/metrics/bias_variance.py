"""Whether a method errs always alike or each time otherwise."""

from typing import NamedTuple

import jax.numpy as jnp

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, checked


class BiasVariance(NamedTuple):
    """Result of :func:`bias_variance`. The sum of the two is the mean squared error.

    Attributes:
        bias: squared bias, error of the mean prediction over all runs.
        variance: of the predictions around their mean over the runs.
    """

    bias: Float[Array, ""]
    variance: Float[Array, ""]


@checked
def bias_variance(
    predictions: Float[Array, "runs *batch outputs"], targets: Float[Array, "*batch outputs"]
) -> BiasVariance:
    r"""The decomposition of the squared error into bias and variance, over several runs of a method.

    .. math::
        \mathbb E \|f(x) - y\|^2 = \|\bar f(x) - y\|^2 + \mathbb E \|f(x) - \bar f(x)\|^2, \qquad
        \bar f = \mathbb E f

    averaged over the examples. Compressing features trades the first for the second.

    >>> import jax.numpy as jnp
    >>> from jaxreg.metrics import bias_variance
    >>> [float(part) for part in bias_variance(jnp.array([[[1.0]], [[3.0]]]), jnp.array([[0.0]]))]
    [4.0, 1.0]

    Args:
        predictions: ``f``, of runs with other seeds or training sets, such as class probabilities.
        targets: ``y``, such as one-hot labels.

    Returns:
        Both parts, sums over the outputs, means over the examples. With finitely many runs the variance is too small
        by the factor ``1 - 1 / runs``, and the bias too large by as much.

    References:
        Geman et al., *Neural Networks and the Bias/Variance Dilemma*, Neural Computation 1992; used in Chen et al.,
        *Compressing Features for Learning with Noisy Labels*, arXiv 2206.13140.
    """
    predictions, targets = at_least_float32(predictions), at_least_float32(targets)
    mean = jnp.mean(predictions, axis=0)
    return BiasVariance(
        bias=jnp.mean(jnp.sum(jnp.square(mean - targets), axis=-1)),
        variance=jnp.mean(jnp.sum(jnp.square(predictions - mean), axis=-1)),
    )
