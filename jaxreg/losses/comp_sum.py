"""Comp-sum losses: cross-entropy, the sum-exponential loss, generalized cross-entropy and MAE as one family.

Cross-entropy is the logarithm of ``1 + u``, where ``u`` sums ``exp(f_k - f_y)`` over the wrong classes. Other powers in
place of the logarithm give the other losses. For each of them a bound is known: how far the zero-one error may be from
the best possible where the loss is nearly least. Two quantities go into it:

    excess = mean loss - least loss in the class of functions + gap
    excess zero-one error + its gap <= h_consistency_bound(excess, tau=tau, num_classes=n)

with the gap of :func:`minimizability_gap`. Applied to margins that are the same around each input, they become losses
for adversarial training: :func:`smooth_adversarial_comp_sum`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxreg.axes import at_labels
from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, Int, PyTree, ScalarLike, checked
from jaxreg.validation import check_range

LARGEST_EXPONENT = 60.0
"""Beyond ``exp(60)`` losses continue as straight lines, so that they and their gradients stay finite."""

BISECTIONS = 40
"""Halvings of [0, 1] that leave less than float32's resolution."""

ALMOST_MINUS_ONE = -1.0 + 2**-24
"""Where ``log1p`` is still finite."""


@checked
def comp_sum(
    logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"], *, tau: ScalarLike = 1.0
) -> Float[Array, "*batch"]:
    r"""The comp-sum loss: a power of the inverse probability of the label.

    .. math:: \Phi_\tau(u) = \frac{(1 + u)^{1 - \tau} - 1}{1 - \tau}, \qquad
        u = \sum_{k \ne y} e^{f_k - f_y} = \frac{1}{\operatorname{softmax}(f)_y} - 1

    and :math:`\Phi_1(u) = \log(1 + u)`.

    >>> import jax.numpy as jnp
    >>> from jaxreg.losses import comp_sum
    >>> logits, labels = jnp.array([2.0, 1.0, 0.0]), jnp.array(0)
    >>> [round(float(comp_sum(logits, labels, tau=tau)), 4) for tau in (0.0, 1.0, 2.0)]
    [0.5032, 0.4076, 0.3348]

    Args:
        logits: unnormalized class scores ``f``.
        labels: class indices ``y`` in ``[0, classes)``.
        tau: ``tau >= 0``. 0 is the sum-exponential loss, 1 cross-entropy, between 1 and 2 generalized cross-entropy
            with ``q = tau - 1``, 2 the mean absolute error (without its factor 2). The larger, the less an example
            counts that is far on the wrong side.

    Returns:
        The loss of each example, at least float32. Where it exceeds ``exp(60)`` it continues as a straight line.

    Raises:
        ValueError: ``tau`` is negative.

    References:
        Mao et al., *Cross-Entropy Loss Functions: Theoretical Analysis and Applications*, ICML 2023, arXiv 2304.07288.
    """
    check_range("tau", tau, "[0, inf)")
    logits = at_least_float32(logits)
    # What all logits have in common would take the digits of their differences.
    largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
    log_sum = jnp.log(jnp.sum(jnp.exp(logits - largest[..., None]), axis=-1))
    return _power(log_sum - (at_labels(logits, labels) - largest), 1.0 - tau)


@checked
def h_consistency_transform(
    beta: Float[Array, "*batch"], *, tau: ScalarLike = 1.0, num_classes: ScalarLike
) -> Float[Array, "*batch"]:
    r"""The least excess of the comp-sum loss that goes with an excess of the zero-one error.

    .. math::
        \mathcal{T}_\tau(\beta) = \begin{cases}
            \frac{2^{1 - \tau}}{1 - \tau} (1 - m^{2 - \tau}) & \tau < 1 \\
            \tfrac12 \bigl((1 + \beta) \log(1 + \beta) + (1 - \beta) \log(1 - \beta)\bigr) & \tau = 1 \\
            \frac{1}{(\tau - 1)\, n^{\tau - 1}} (m^{2 - \tau} - 1) & 1 < \tau < 2 \\
            \frac{\beta}{(\tau - 1)\, n^{\tau - 1}} & \tau \ge 2
        \end{cases}, \qquad
        m = \tfrac12 \Bigl((1 + \beta)^{\frac{1}{2 - \tau}} + (1 - \beta)^{\frac{1}{2 - \tau}}\Bigr)

    Args:
        beta: excess zero-one error, in [0, 1].
        tau: of :func:`comp_sum`, at least 0.
        num_classes: ``n``, at least 2.

    Returns:
        The least excess of the loss, at least float32.

    Raises:
        ValueError: ``tau`` is negative or ``num_classes`` below 2.

    References:
        Mao et al., *Cross-Entropy Loss Functions: Theoretical Analysis and Applications*, ICML 2023, arXiv 2304.07288.
    """
    check_range("tau", tau, "[0, inf)")
    check_range("num_classes", num_classes, "[2, inf)")
    beta, tau = at_least_float32(beta), at_least_float32(jnp.asarray(tau))
    signed = jnp.stack([beta, -beta], axis=-1)
    # m weighs the powers of 1 + b and 1 - b with their halves, which sum to one.
    power = _power_entropy((1.0 + signed) / 2, jnp.log1p(jnp.maximum(signed, ALMOST_MINUS_ONE)), tau)
    below_two = -power * jnp.where(tau == 1, 1.0, jnp.where(tau < 1, 2.0, num_classes)) ** (1.0 - tau)
    at_least_two = beta * jnp.where(tau < 2, 1.0, num_classes ** (1.0 - tau) / jnp.where(tau < 2, 1.0, tau - 1.0))
    return jnp.where(tau < 2, below_two, at_least_two)


@checked
def h_consistency_bound(
    excess: Float[Array, "*batch"], *, tau: ScalarLike = 1.0, num_classes: ScalarLike
) -> Float[Array, "*batch"]:
    r"""The largest excess of the zero-one error that goes with an excess of the comp-sum loss.

    .. math:: \Gamma_\tau = \mathcal{T}_\tau^{-1}

    by bisection, with :math:`\mathcal{T}_\tau` of :func:`h_consistency_transform`. It is at most
    :math:`\sqrt{2^\tau (2 - \tau) t}` for ``tau < 1``, :math:`\sqrt{2 n^{\tau - 1} t}` for ``1 <= tau < 2`` and
    :math:`(\tau - 1) n^{\tau - 1} t` from 2 on, for an excess of :math:`t`.

    Args:
        excess: mean loss minus the least in the class of functions, plus the minimizability gap; at least 0.
        tau: of :func:`comp_sum`, at least 0.
        num_classes: ``n``, at least 2.

    Returns:
        Excess zero-one error plus its own gap, at most 1, at least float32. No gradient flows through it.

    Raises:
        ValueError: ``tau`` is negative or ``num_classes`` below 2.

    References:
        Mao et al., *Cross-Entropy Loss Functions: Theoretical Analysis and Applications*, ICML 2023, arXiv 2304.07288.
    """
    check_range("tau", tau, "[0, inf)")
    check_range("num_classes", num_classes, "[2, inf)")
    excess, tau = jax.lax.stop_gradient((at_least_float32(excess), at_least_float32(jnp.asarray(tau))))

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        enough = h_consistency_transform(middle, tau=tau, num_classes=num_classes) >= excess
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    _, high = jax.lax.fori_loop(0, BISECTIONS, halve, (jnp.zeros_like(excess), jnp.ones_like(excess)))
    return jnp.where(excess > 0, high, 0.0)


@checked
def comp_sum_bayes_risk(
    probabilities: Float[Array, "*batch classes"], *, tau: ScalarLike = 1.0
) -> Float[Array, "*batch"]:
    r"""The least expected comp-sum loss of an input, over all scores.

    .. math:: \frac{\bigl(\sum_k q_k^{1 / (2 - \tau)}\bigr)^{2 - \tau} - 1}{1 - \tau} \;(\tau < 2), \qquad
        \frac{1 - \max_k q_k}{\tau - 1} \;(\tau \ge 2)

    and the entropy of ``q`` for ``tau = 1``. It is reached by scores :math:`\log q_k / (2 - \tau)`.

    Args:
        probabilities: ``q``, those of the classes given the input.
        tau: of :func:`comp_sum`, at least 0.

    Returns:
        The least loss of each input, at least float32.

    Raises:
        ValueError: ``tau`` is negative.

    References:
        Mao et al., *Cross-Entropy Loss Functions: Theoretical Analysis and Applications*, ICML 2023, arXiv 2304.07288.
    """
    check_range("tau", tau, "[0, inf)")
    q, tau = at_least_float32(probabilities), at_least_float32(jnp.asarray(tau))
    at_least_two = (1.0 - jnp.max(q, axis=-1)) / jnp.where(tau < 2, 1.0, tau - 1.0)
    return jnp.where(tau < 2, _power_entropy(q, _logs(q), tau), at_least_two)


@checked
def minimizability_gap(
    least_risk: ScalarLike, probabilities: Float[Array, "examples classes"], *, tau: ScalarLike = 1.0
) -> Float[Array, ""]:
    r"""What a class of functions loses because one function has to serve all inputs.

    .. math:: M = \min_{h \in H} \mathbb{E}[\ell(h(x), y)] - \mathbb{E}_x\bigl[\min_{h \in H} \mathbb{E}[\ell(h(x), y)
        \mid x]\bigr]

    for classes of functions that can give a single input any scores. It is zero for the class of all functions.

    Args:
        least_risk: the least mean of :func:`comp_sum` in the class, such as that of the trained network.
        probabilities: of the classes given each input, for a sample of inputs.
        tau: of :func:`comp_sum`, at least 0.

    Returns:
        The gap, in the unit of the loss.

    Raises:
        ValueError: ``tau`` is negative.

    References:
        Mao et al., *Cross-Entropy Loss Functions: Theoretical Analysis and Applications*, ICML 2023, arXiv 2304.07288.
    """
    return least_risk - jnp.mean(comp_sum_bayes_risk(probabilities, tau=tau))


@checked
def smooth_adversarial_comp_sum(
    apply_fn: Callable[[Any, Any], Any],
    params: PyTree,
    inputs: Float[Array, "batch *shape"],
    adversarial_inputs: Float[Array, "batch *shape"],
    labels: Int[Array, "batch"],
    *,
    nu: ScalarLike,
    tau: ScalarLike = 1.0,
    rho: ScalarLike = 1.0,
) -> Float[Array, "batch"]:
    r"""Comp-sum loss of an input plus how much an attack changes its margins.

    .. math:: \Phi_\tau\Bigl(\sum_{k \ne y} e^{-D_k(x) / \rho}\Bigr) + \nu \lVert D(x') - D(x) \rVert_2, \qquad
        D_k(x) = f_y(x) - f_k(x)

    With ``nu >= sqrt(n - 1) / rho`` and the worst ``x'`` of a ball it is an upper bound of the comp-sum loss of the
    clipped margins of every point of the ball.

    Args:
        apply_fn: from parameters and inputs to logits ``f``.
        params: of the network.
        inputs: ``x``, examples first.
        adversarial_inputs: ``x'``, from :func:`jaxreg.robustness.margin_pgd`.
        labels: class indices ``y``.
        nu: ``nu >= 0``, weight of the change (tuned in the paper; ``sqrt(n - 1) / rho`` for the bound).
        tau: of :func:`comp_sum`, at least 0 (paper: 1 in its experiments).
        rho: ``rho > 0``, scale of the margins (paper: 1 in its experiments).

    Returns:
        The loss of each example, at least float32. Gradients flow through both calls of the network.

    Raises:
        ValueError: ``nu``, ``tau`` or ``rho`` is outside its range.

    References:
        Mao et al., *Cross-Entropy Loss Functions: Theoretical Analysis and Applications*, ICML 2023, arXiv 2304.07288.
    """
    check_range("nu", nu, "[0, inf)")
    check_range("rho", rho, "(0, inf)")
    logits, attacked = (at_least_float32(apply_fn(params, x)) for x in (inputs, adversarial_inputs))
    return comp_sum(logits / rho, labels, tau=tau) + nu * margin_change(attacked, logits, labels)


@checked
def margin_change(
    logits: Float[Array, "*batch classes"], clean_logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    r"""How far the margins of the label over all classes have moved.

    .. math:: \lVert D - D^0 \rVert_2, \qquad D_k = f_y - f_k

    Args:
        logits: ``f``, such as those of attacked inputs.
        clean_logits: those that ``D^0`` is made of.
        labels: class indices ``y`` in ``[0, classes)``.

    Returns:
        The change of each example, at least float32. Its gradient is zero where nothing has moved.

    References:
        Mao et al., *Cross-Entropy Loss Functions: Theoretical Analysis and Applications*, ICML 2023, arXiv 2304.07288.
    """
    moved = at_least_float32(logits) - at_least_float32(clean_logits)
    change = at_labels(moved, labels)[..., None] - moved
    # Squares of changes as large as 1e20 overflow, the largest as a factor does not. No gradient is lost: it cancels.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(change), axis=-1))
    scale = jnp.where(largest > 0, largest, 1.0)
    squared = jnp.sum(jnp.square(change / scale[..., None]), axis=-1)
    return jnp.where(largest > 0, scale * jnp.sqrt(jnp.where(largest > 0, squared, 1.0)), 0.0)


def _power(v, exponent):
    """``expm1(exponent * v) / exponent``, which is ``v`` for an exponent of 0."""
    x = exponent * v
    small = jnp.abs(x) < 0.1
    near_zero = jnp.where(small, x, 0.0)
    series = v * (1.0 + near_zero * (1 / 2 + near_zero * (1 / 6 + near_zero * (1 / 24 + near_zero / 120))))
    beyond = jnp.exp(LARGEST_EXPONENT) * jnp.maximum(x - LARGEST_EXPONENT, 0.0)
    grown = jnp.expm1(jnp.minimum(x, LARGEST_EXPONENT)) + beyond
    return jnp.where(small, series, grown / jnp.where(small, 1.0, exponent))


def _power_entropy(weights, logs, tau):
    """``((sum_k w_k r_k^(s - 1))^(1 / s) - 1) / (1 - tau)`` with ``s = 1 / (2 - tau)``, for weights that sum to one."""
    tau = jnp.where(tau < 2, tau, 1.0)
    exponents = jnp.where(weights > 0, (tau - 1.0) / (2.0 - tau) * logs, 0.0)
    # With tau near 1, or numbers r near 1, differences from one are all that matters.
    grown = jnp.sum(weights * jnp.expm1(jnp.minimum(exponents, 1.0)), axis=-1)
    near_one = (jnp.abs(grown) < 0.5) & (jnp.max(exponents, axis=-1) < 1.0)
    known = jnp.where(weights > 0, weights, 0.0)
    far = jax.nn.logsumexp(jnp.where(near_one[..., None], 0.0, exponents), axis=-1, b=known)
    log_sum = jnp.where(near_one, jnp.log1p(jnp.where(near_one, grown, 0.0)), far)
    at_one = tau == 1
    power = jnp.expm1((2.0 - tau) * log_sum) / jnp.where(at_one, 1.0, 1.0 - tau)
    return jnp.where(at_one, -jnp.sum(weights * logs, axis=-1), power)


def _logs(numbers):
    return jnp.log(jnp.where(numbers > 0, numbers, 1.0))
