"""Staying near given weights: what a model should not lose is in the weights it has."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from jaxreg.precision import at_least_float32, widened
from jaxreg.typing import Array, Float, PyTree, ScalarLike, checked
from jaxreg.validation import check_range, check_same_shapes


@checked
def anchor_distance(
    params: PyTree[Float[Array, "..."]], anchor: PyTree[Float[Array, "..."]], *, kind: Literal["l1", "l2"] = "l2"
) -> Float[Array, ""]:
    r"""Distance of the weights from an anchor, as a penalty.

    .. math:: \sum_i |\theta_i - \theta_i^*| \quad\text{or}\quad \tfrac12 \sum_i (\theta_i - \theta_i^*)^2

    With ``l1``, few weights leave the anchor: SalUn's soft form of a mask.

    Args:
        params: ``theta``.
        anchor: ``theta*``, a tree of the same structure and shapes. No gradient flows through it.
        kind: which of the two.

    Returns:
        The sum over all weights, at least float32.

    Raises:
        ValueError: ``anchor`` differs in structure or shapes.

    References:
        Fan et al., *SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both Image
        Classification and Generation*, ICLR 2024, arXiv 2310.12508 (``l1``).
    """
    check_same_shapes("anchor", anchor, params)

    def of_leaf(theta, star):
        difference = at_least_float32(theta) - jax.lax.stop_gradient(at_least_float32(star))
        return jnp.sum(jnp.abs(difference)) if kind == "l1" else 0.5 * jnp.sum(jnp.square(difference))

    return _total(jax.tree.map(of_leaf, params, anchor))


@checked
def ewc(
    params: PyTree[Float[Array, "..."]],
    anchor: PyTree[Float[Array, "..."]],
    fisher: PyTree[Float[Array, "..."]],
    *,
    lam: ScalarLike,
) -> Float[Array, ""]:
    r"""Elastic weight consolidation: a quadratic pull back to the anchor, in proportion to each weight's importance.

    .. math:: \tfrac\lambda2 \sum_i F_i (\theta_i - \theta_i^*)^2

    Args:
        params: ``theta``.
        anchor: ``theta*``, a tree of the same structure and shapes. No gradient flows through it.
        fisher: ``F >= 0``, such as :func:`fisher_diagonal` at the anchor; likewise.
        lam: ``lambda >= 0``. It depends on the scale of ``F``: adapting a generator, 5e8 (Adapt-then-Unlearn,
            StyleGAN2).

    Returns:
        The penalty, at least float32.

    Raises:
        ValueError: ``lam`` is negative, or ``anchor`` or ``fisher`` differs in structure or shapes.

    References:
        Kirkpatrick et al., *Overcoming catastrophic forgetting in neural networks*, PNAS 2017, arXiv 1612.00796.
    """
    check_range("lam", lam, "[0, inf)")
    check_same_shapes("anchor", anchor, params)
    check_same_shapes("fisher", fisher, params)

    def of_leaf(theta, star, importance):
        star, importance = jax.lax.stop_gradient((at_least_float32(star), at_least_float32(importance)))
        return jnp.sum(importance * jnp.square(at_least_float32(theta) - star))

    return 0.5 * lam * _total(jax.tree.map(of_leaf, params, anchor, fisher))


@checked
def fisher_diagonal(
    log_likelihood: Callable[..., Float[Array, ""]], params: PyTree[Float[Array, "..."]], samples: PyTree
) -> PyTree[Float[Array, "..."]]:
    r"""The mean squared gradient of the log-likelihood, for each weight.

    .. math:: F_i = \tfrac1n \sum_{s=1}^n \bigl(\partial_{\theta_i} \log p_\theta(x_s)\bigr)^2

    With samples drawn from the model itself it is the diagonal of the Fisher information; with data, of the empirical
    one. Gradients are squared sample by sample.

    Args:
        log_likelihood: ``(params, sample) -> scalar``, of one sample. For a generator: the logarithm of the
            discriminator's output on what it makes of one latent vector.
        params: ``theta``.
        samples: tree of arrays whose leading axis runs over ``n >= 1`` samples.

    Returns:
        ``F``, a tree like ``params``, at least float32.

    References:
        Kirkpatrick et al., *Overcoming catastrophic forgetting in neural networks*, PNAS 2017, arXiv 1612.00796.
    """

    def add(total, sample):
        gradients = jax.grad(log_likelihood)(params, sample)
        return jax.tree.map(lambda sum_, g: sum_ + jnp.square(at_least_float32(g)), total, gradients), None

    total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, widened(params)), samples)
    count = jax.tree.leaves(samples)[0].shape[0]
    return jax.tree.map(lambda sum_: sum_ / count, total)


def _total(tree):
    return sum(jax.tree.leaves(tree), start=jnp.zeros([]))
