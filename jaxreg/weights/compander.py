"""Weight companders: every weight is a bounded, odd function of a trainable number.

The function is steep at zero and levels off, so that small weights are expanded and large ones compressed. Under
gradient descent on the numbers behind them, weights near zero move faster and large weights hardly at all, which keeps
a network from relying on a few of them. Its two hyperparameters per tensor can be trained along.
"""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, PyTree, ScalarLike, checked
from jaxreg.validation import check_range

Family = Literal["arctan", "tanh"]

INSIDE = 0.999
"""Weights are clipped to this part of the bound before the inverse, which is infinite at the bound."""

_FAMILIES = {"arctan": (jnp.arctan, jnp.tan, math.pi / 2), "tanh": (jnp.tanh, jnp.arctanh, 1.0)}


@checked
def compand(
    v: Float[Array, "*shape"], *, a: ScalarLike, b: ScalarLike, family: Family = "arctan"
) -> Float[Array, "*shape"]:
    r"""The weights behind trainable numbers.

    .. math:: w = \Psi(v) = a \arctan(v / b), \qquad |w| < a \pi / 2, \qquad \Psi'(v) = \frac{a / b}{1 + (v / b)^2}

    A step of gradient descent on ``v`` moves ``w`` by :math:`\Psi'(v)^2` times the step it would have taken itself: up
    to :math:`(a / b)^2` near zero, almost nothing near the bound.

    Args:
        v: the trainable numbers.
        a: ``a > 0``, sets the bound.
        b: ``b > 0``; the slope at zero is ``a / b``.
        family: ``arctan``, or ``tanh`` for :math:`a \tanh(v / b)` with bound ``a``; the paper's own function is not
            known to us.

    Returns:
        The weights.

    Raises:
        ValueError: ``a`` or ``b`` is not positive.

    References:
        Gottwald et al., *Weight Compander: A Simple Weight Reparameterization for Regularization*, arXiv 2306.16993.
    """
    check_range("a", a, "(0, inf)")
    check_range("b", b, "(0, inf)")
    forward, _, _ = _FAMILIES[family]
    return (a * forward(at_least_float32(v) / b)).astype(v.dtype)


@checked
def compand_inverse(
    w: Float[Array, "*shape"], *, a: ScalarLike, b: ScalarLike, family: Family = "arctan"
) -> Float[Array, "*shape"]:
    r"""The trainable numbers behind weights.

    .. math:: v = b \tan(w / a)

    Args:
        w: weights; those beyond 99.9% of the bound are taken for weights there.
        a: see :func:`compand`, as are the other arguments.
        b: sets the slope at zero.
        family: of functions.

    Returns:
        The numbers whose :func:`compand` are the weights.

    Raises:
        ValueError: ``a`` or ``b`` is not positive.

    References:
        Gottwald et al., *Weight Compander: A Simple Weight Reparameterization for Regularization*, arXiv 2306.16993.
    """
    check_range("a", a, "(0, inf)")
    check_range("b", b, "(0, inf)")
    _, inverse, supremum = _FAMILIES[family]
    limit = INSIDE * supremum
    return (b * inverse(jnp.clip(at_least_float32(w) / a, -limit, limit))).astype(w.dtype)


class Compander(NamedTuple):
    """Hyperparameters of one tensor's :func:`compand`, in logarithms so that training keeps them positive.

    Attributes:
        log_a: logarithm of ``a``.
        log_b: logarithm of ``b``.
    """

    log_a: Float[Array, ""]
    log_b: Float[Array, ""]


@checked
def init_compander(
    params: PyTree, *, bound: ScalarLike = 4.0, slope: ScalarLike = 1.5, mask: Any = None, family: Family = "arctan"
) -> tuple[PyTree, PyTree]:
    r"""Takes a network apart into trainable numbers and hyperparameters, without changing what it computes.

    For a tensor of weights :math:`w_0`, the bound is ``bound`` times their standard deviation:

    .. math::
        a = \tfrac2\pi \, \mathrm{bound} \cdot \operatorname{std}(w_0), \qquad b = a / \mathrm{slope}, \qquad
        v = b \tan(w_0 / a)

    Train both trees (learned companders), or the first one only (fixed). Use SGD with momentum, for Adam divides out
    most of what the compander does to gradients; weight decay belongs on ``v``, not on the hyperparameters.

    >>> import jax, jax.numpy as jnp
    >>> from jaxreg.weights import apply_compander, init_compander
    >>> params = {"kernel": jax.random.normal(jax.random.key(0), (8, 3)), "bias": jnp.ones(3)}
    >>> v, hyper = init_compander(params)
    >>> loss = lambda trained: jnp.sum(apply_compander(*trained)["kernel"] ** 2)
    >>> gradient_of_v, gradient_of_hyper = jax.grad(loss)((v, hyper))
    >>> gradient_of_hyper["kernel"].log_a.shape
    ()

    Args:
        params: the network's parameters.
        bound: of the weights, in standard deviations of each tensor; weights beyond it are clipped.
        slope: at zero; above 1 small weights are expanded.
        mask: pytree of bools, or a function from parameters to one: which leaves are companded. By default those with
            at least two axes: neither biases nor normalizations.
        family: of functions, see :func:`compand`.

    Returns:
        The numbers ``v``, a tree like ``params`` (other leaves as they are), and the hyperparameters, a
        :class:`Compander` for each companded leaf and None for the others.

    Raises:
        ValueError: ``bound`` or ``slope`` is not positive.

    References:
        Gottwald et al., *Weight Compander: A Simple Weight Reparameterization for Regularization*, arXiv 2306.16993.
    """
    check_range("bound", bound, "(0, inf)")
    check_range("slope", slope, "(0, inf)")
    if mask is None:
        mask = jax.tree.map(lambda leaf: jnp.ndim(leaf) >= 2, params)
    elif callable(mask):
        mask = mask(params)
    _, _, supremum = _FAMILIES[family]

    def hyper(w, companded):
        if not companded:
            return None
        deviation = jnp.std(at_least_float32(w)) if w.size else jnp.zeros([])
        a = bound * jnp.where(deviation > 0, deviation, 1.0) / supremum
        return Compander(jnp.log(a), jnp.log(a / slope))

    def numbers(h, w):
        return w if h is None else compand_inverse(w, a=jnp.exp(h.log_a), b=jnp.exp(h.log_b), family=family)

    hypers = jax.tree.map(hyper, params, mask)
    return jax.tree.map(numbers, hypers, params, is_leaf=_is_hyper), hypers


@checked
def apply_compander(v: PyTree, hyper: PyTree, *, family: Family = "arctan") -> PyTree:
    """The network's parameters, to be used or deployed: ``apply_fn(apply_compander(v, hyper), x)``.

    Args:
        v: trainable numbers, from :func:`init_compander`.
        hyper: hyperparameters, from there too.
        family: of functions, the same as there.

    Returns:
        The parameters.

    References:
        Gottwald et al., *Weight Compander: A Simple Weight Reparameterization for Regularization*, arXiv 2306.16993.
    """

    def weights(h, leaf):
        return leaf if h is None else compand(leaf, a=jnp.exp(h.log_a), b=jnp.exp(h.log_b), family=family)

    return jax.tree.map(weights, hyper, v, is_leaf=_is_hyper)


def _is_hyper(node):
    return node is None or isinstance(node, Compander)
