r"""Optimistic online mirror descent, for losses between stochastic and adversarial.

Each round the learner first plays ``x_t = predict(state)``, guessing that the coming gradient will be like the last
one, and then learns from the gradient there: ``state = update(state, gradient)``. Its regret grows with the variance
of the gradients and with the change of their mean, :math:`\sqrt{\sigma^2_{1:T}} + \sqrt{\Sigma^2_{1:T}}`, and is so
small both on independent losses of little noise and on adversarial losses that change slowly.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.linalg import eigh
from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, Int, ScalarLike, checked
from jaxreg.validation import check_range


class OnlineLearner(NamedTuple):
    """An algorithm for online convex optimization, as pure functions.

    Attributes:
        init: ``x0 -> state``, before the first round.
        predict: ``state -> x_t``, what is played next.
        update: ``(state, gradient) -> state``, with the gradient of the round's loss at what was played.
    """

    init: Callable
    predict: Callable
    update: Callable


class OptimisticMdState(NamedTuple):
    """State of :func:`optimistic_md`.

    Attributes:
        count: rounds played.
        anchor: the point that every gradient moves; with entropy its logarithm.
        gradient: of the last round, which is expected again; zero at first.
        variation: ``V``, sum of the squared differences of successive gradients.
        metric: with Newton's geometry the matrix ``H`` that distances are measured by; else None.
    """

    count: Int[Array, ""]
    anchor: Float[Array, "dim"]
    gradient: Float[Array, "dim"]
    variation: Float[Array, ""]
    metric: Float[Array, "dim dim"] | None


@checked
def optimistic_md(
    *,
    geometry: Literal["euclidean", "newton", "entropy"] = "euclidean",
    step: Literal["adaptive", "strongly_convex"] | ScalarLike = "adaptive",
    diameter: ScalarLike | None = None,
    grad_bound: ScalarLike | None = None,
    smoothness: ScalarLike = 0.0,
    strong_convexity: ScalarLike | None = None,
    exp_concavity: ScalarLike | None = None,
    radius: ScalarLike | None = None,
) -> OnlineLearner:
    r"""Optimistic online mirror descent that expects every gradient to be like the last one.

    .. math::
        x_t &= \arg\min_x \; \eta_t \langle g_{t-1}, x \rangle + D_t(x, \hat x_t) \\
        \hat x_{t+1} &= \arg\min_x \; \eta_t \langle g_t, x \rangle + D_t(x, \hat x_t)

    ==================  ===============================================================================
    losses              arguments, and what they stand for
    ==================  ===============================================================================
    convex              ``diameter, grad_bound, smoothness``:
                        :math:`\eta_t = D / \sqrt{10 D^2 L^2 + 4 G^2 + V_{t-1}}`,
                        :math:`V_{t-1} = \sum_{s=2}^{t-1} \|g_s - g_{s-1}\|^2`
    strongly convex     ``step="strongly_convex", strong_convexity``: :math:`\eta_t = 2 / (\lambda t)`
    exp-concave         ``geometry="newton", diameter, grad_bound, exp_concavity``: :math:`\eta_t = 1`,
                        :math:`D_t = \tfrac12 \|x - \hat x\|^2_{H_t}`,
                        :math:`H_t = (1 + \tfrac\beta2 G^2) I + \tfrac\beta2 \sum_{s<t} g_s g_s^\top`,
                        :math:`\beta = \tfrac12 \min(1 / (4 G D), \alpha)`
    ==================  ===============================================================================

    >>> import jax.numpy as jnp
    >>> from jaxreg.optim import optimistic_md
    >>> learner = optimistic_md(diameter=2.0, grad_bound=1.0, radius=1.0)
    >>> state = learner.init(jnp.zeros(2))
    >>> for _ in range(3):
    ...     x = learner.predict(state)
    ...     state = learner.update(state, gradient=jnp.array([1.0, 0.0]))
    >>> x.tolist()
    [-1.0, 0.0]

    Args:
        geometry: of ``D``: half the squared Euclidean distance, the same in a metric that is learnt, or the relative
            entropy, for which points are probability vectors and gradients are measured by their largest entry.
        step: the rule for ``eta_t``, or a constant ``eta_t > 0``; not used with Newton's geometry.
        diameter: ``D > 0``, of the domain; with entropy the square root of the logarithm of its dimension does.
        grad_bound: ``G > 0``, no gradient is longer.
        smoothness: ``L >= 0``, Lipschitz constant of the gradients, 0 for linear losses.
        strong_convexity: ``lambda > 0``.
        exp_concavity: ``alpha > 0``.
        radius: of the ball around 0 that is the domain; None for all of space. Not used with entropy.

    Returns:
        The learner. Points are vectors, at least float32; ``init`` takes any of the domain.

    Raises:
        ValueError: an argument is outside its range, or a rule lacks one.

    References:
        Chen et al., *Optimistic Online Mirror Descent for Bridging Stochastic and Adversarial Online Convex
        Optimization*, JMLR 2024, arXiv 2302.04552.
    """
    constants = dict(
        diameter=diameter, grad_bound=grad_bound, strong_convexity=strong_convexity, exp_concavity=exp_concavity
    )
    for name, value in (*constants.items(), ("radius", radius)):
        check_range(name, value, "(0, inf)")
    check_range("smoothness", smoothness, "[0, inf)")
    if not isinstance(step, str):
        check_range("step", step, "(0, inf)")
    if geometry == "newton":
        needed = ("diameter", "grad_bound", "exp_concavity")
    elif step == "strongly_convex":
        needed = ("strong_convexity",)
    else:
        needed = ("diameter", "grad_bound") if isinstance(step, str) else ()
    missing = [name for name in needed if constants[name] is None]
    if missing:
        raise ValueError(f"geometry {geometry!r} with step {step!r} needs {', '.join(missing)}")
    if geometry == "newton":
        beta = 0.5 * jnp.minimum(1.0 / (4.0 * grad_bound * diameter), exp_concavity)

    def init(x0):
        x0 = at_least_float32(x0)
        metric = None
        if geometry == "newton":
            metric = ((1.0 + 0.5 * beta * grad_bound**2) * jnp.eye(x0.shape[0])).astype(x0.dtype)
        return OptimisticMdState(
            count=jnp.zeros([], jnp.int32),
            anchor=jnp.log(x0) if geometry == "entropy" else x0,
            gradient=jnp.zeros_like(x0),
            variation=jnp.zeros([], x0.dtype),
            metric=metric,
        )

    def step_size(state):
        if not isinstance(step, str):
            return step
        if step == "strongly_convex":
            return 2.0 / (strong_convexity * (state.count + 1))
        return diameter / jnp.sqrt(10.0 * (diameter * smoothness) ** 2 + 4.0 * grad_bound**2 + state.variation)

    def move(state, gradient):
        if geometry == "newton":
            return _newton_step(state.anchor, gradient, state.metric, radius)
        moved = (state.anchor - step_size(state) * gradient).astype(state.anchor.dtype)
        return jax.nn.log_softmax(moved) if geometry == "entropy" else _onto_ball(moved, radius)

    def predict(state):
        x = move(state, state.gradient)
        return jnp.exp(x) if geometry == "entropy" else x

    def update(state, gradient):
        gradient = jnp.asarray(gradient, state.gradient.dtype)
        change = gradient - state.gradient
        square = jnp.square(jnp.max(jnp.abs(change))) if geometry == "entropy" else jnp.sum(jnp.square(change))
        metric = state.metric
        if geometry == "newton":
            metric = (metric + 0.5 * beta * jnp.outer(gradient, gradient)).astype(metric.dtype)
        return OptimisticMdState(
            count=state.count + 1,
            anchor=move(state, gradient).astype(state.anchor.dtype),
            gradient=gradient,
            variation=state.variation + jnp.where(state.count > 0, square, 0.0),
            metric=metric,
        )

    return OnlineLearner(init, predict, update)


class DynamicEnsembleState(NamedTuple):
    """State of :func:`dynamic_ensemble`.

    Attributes:
        count: rounds played.
        anchors: the point that every gradient moves, for each step size.
        played: what each step size would have played in the last round.
        gradient: of the last round, zero at first.
        losses: total loss of each step size.
        surprise: sum of the squared differences between expected losses and losses.
    """

    count: Int[Array, ""]
    anchors: Float[Array, "experts dim"]
    played: Float[Array, "experts dim"]
    gradient: Float[Array, "dim"]
    losses: Float[Array, "experts"]
    surprise: Float[Array, ""]


@checked
def dynamic_ensemble(
    *,
    horizon: int,
    diameter: ScalarLike,
    grad_bound: ScalarLike,
    smoothness: ScalarLike = 0.0,
    radius: ScalarLike | None = None,
) -> OnlineLearner:
    r"""Optimistic mirror descent at many step sizes, mixed by optimistic Hedge: competes with moving targets.

    The best step size against a moving target depends on how far it moves, which nobody knows beforehand. The points
    of :math:`1 + \lceil \tfrac12 \log_2 T \rceil` step sizes :math:`2^i D / (2 G \sqrt T)` are mixed with weights

    .. math:: p_{t,i} \propto \exp\Bigl(-\varepsilon_t \bigl(\textstyle\sum_{s<t} \ell_{s,i} + m_{t,i}\bigr)\Bigr),
        \qquad \ell_{s,i} = \langle g_s, x_{s,i} \rangle + 2 L \|x_{s,i} - x_{s-1,i}\|^2

    where ``m`` is the loss with the last gradient in place of the coming one and
    :math:`\varepsilon_t^2 = \log N / (G^2 D^2 + \sum_{s<t} \|\ell_s - m_s\|_\infty^2)`. The second term keeps points
    from moving more than the losses' smoothness allows. The constants of this rule are ours, the paper's differ in
    factors.

    Args:
        horizon: ``T >= 1``, rounds that will be played.
        diameter: ``D > 0``, of the domain.
        grad_bound: ``G > 0``, no gradient is longer.
        smoothness: ``L >= 0``, Lipschitz constant of the gradients; step sizes are at most ``1 / (4 L)``.
        radius: of the ball around 0 that is the domain; None for all of space.

    Returns:
        The learner.

    Raises:
        ValueError: an argument is outside its range.

    References:
        Chen et al., *Optimistic Online Mirror Descent for Bridging Stochastic and Adversarial Online Convex
        Optimization*, JMLR 2024, arXiv 2302.04552; Zhao et al., *Adaptivity and Non-stationarity: Problem-dependent
        Dynamic Regret for Online Convex Optimization*, JMLR 2024, arXiv 2112.14368.
    """
    check_range("horizon", horizon, "[1, inf)")
    check_range("diameter", diameter, "(0, inf)")
    check_range("grad_bound", grad_bound, "(0, inf)")
    check_range("smoothness", smoothness, "[0, inf)")
    check_range("radius", radius, "(0, inf)")
    experts = 1 + math.ceil(0.5 * math.log2(horizon))
    steps = 2.0 ** jnp.arange(experts) * diameter / (2.0 * grad_bound * math.sqrt(horizon))
    largest = jnp.asarray(4.0 * smoothness, steps.dtype)
    steps = jnp.where(largest > 0, jnp.minimum(steps, 1.0 / jnp.where(largest > 0, largest, 1.0)), steps)

    def init(x0):
        x0 = at_least_float32(x0)
        anchors = jnp.tile(x0, (experts, 1))
        zero = jnp.zeros([], x0.dtype)
        losses = jnp.zeros([experts], x0.dtype)
        return DynamicEnsembleState(jnp.zeros([], jnp.int32), anchors, anchors, jnp.zeros_like(x0), losses, zero)

    def move(state, gradient):
        moved = state.anchors - steps[:, None].astype(gradient.dtype) * gradient
        return jax.vmap(lambda x: _onto_ball(x, radius))(moved)

    def loss(state, points, gradient):
        return points @ gradient + 2.0 * smoothness * jnp.sum(jnp.square(points - state.played), axis=1)

    def predict(state):
        points = move(state, state.gradient)
        rate = jnp.sqrt(math.log(experts) / ((grad_bound * diameter) ** 2 + state.surprise)) if experts > 1 else 0.0
        weights = jax.nn.softmax(-rate * (state.losses + loss(state, points, state.gradient)))
        return weights @ points

    def update(state, gradient):
        gradient = jnp.asarray(gradient, state.gradient.dtype)
        points = move(state, state.gradient)
        losses = loss(state, points, gradient)
        surprise = jnp.square(jnp.max(jnp.abs(losses - loss(state, points, state.gradient))))
        return DynamicEnsembleState(
            count=state.count + 1,
            anchors=move(state, gradient).astype(state.anchors.dtype),
            played=points.astype(state.played.dtype),
            gradient=gradient,
            losses=state.losses + losses,
            surprise=state.surprise + surprise,
        )

    return OnlineLearner(init, predict, update)


def _onto_ball(x, radius):
    if radius is None:
        return x
    square = jnp.sum(jnp.square(x))
    outside = square > jnp.square(radius)
    return jnp.where(outside, radius * x / jnp.sqrt(jnp.where(outside, square, 1.0)), x)


def _newton_step(anchor, gradient, metric, radius):
    r"""Least :math:`\langle g, x \rangle + \tfrac12 \|x - \hat x\|_H^2` over the ball.

    That is where :math:`(H + \mu I) x = H \hat x - g` for a multiplier :math:`\mu \ge 0`. In the eigenbasis of H the
    length falls with the multiplier, which is found by halving an interval.
    """
    eigenvalues, vectors = eigh(metric)
    target = vectors.T @ (metric @ anchor - gradient)
    if radius is None:
        return vectors @ (target / eigenvalues)

    def outside(multiplier):
        return jnp.sum(jnp.square(target / (eigenvalues + multiplier))) > jnp.square(radius)

    def halve(_, interval):
        low, high = interval
        middle = 0.5 * (low + high)
        inside = ~outside(middle)
        return jnp.where(inside, low, middle), jnp.where(inside, middle, high)

    # At this multiplier even the smallest eigenvalue leaves a point within the ball.
    high = jnp.sqrt(jnp.sum(jnp.square(target))) / radius
    _, high = jax.lax.fori_loop(0, 50, halve, (jnp.zeros_like(high), high))
    multiplier = jnp.where(outside(0.0), high, 0.0)
    return _onto_ball(vectors @ (target / (eigenvalues + multiplier)), radius)
