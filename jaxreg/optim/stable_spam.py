"""Stable-SPAM: spike clipping and gradient norms that adapt, and momentum reset.

SPAM tells a spike by comparing with an entry's own past. Stable-SPAM needs no moments for that: it keeps, for every
tensor, a running mean of the largest entry and scales down what exceeds it, then gives the whole gradient the norm that
was usual so far. What reaches Adam, whose moments are reset now and then, hardly depends on the gradient's scale any
more. It was made for training in 4 bits, where gradients spike often.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxreg.optim.descend import descend
from jaxreg.optim.leaf_sums import largest_magnitude, leaf_sums
from jaxreg.optim.momentum_reset import MomentumResetState, momentum_reset
from jaxreg.precision import at_least_float32, widened
from jaxreg.typing import Array, Float, PyTree, ScalarLike, ScalarOrSchedule, checked
from jaxreg.validation import check_range


class SpikeClipState(NamedTuple):
    """What :func:`adaptive_spike_clip` remembers of a tensor.

    Attributes:
        largest: running mean of its largest magnitude, ``T``, not corrected for its start at 0.
    """

    largest: Float[Array, "..."]


class GradNormState(NamedTuple):
    """What :func:`adaptive_grad_norm` remembers of a tensor.

    Attributes:
        norm: running mean of its norm, ``a``, not corrected for its start at 0.
        square: running mean of its squared norm, ``b``, likewise.
    """

    norm: Float[Array, "..."]
    square: Float[Array, "..."]


@checked
def adaptive_spike_clip(
    gradient: Float[Array, "*shape"], state: SpikeClipState, count: ScalarLike, *, gamma3: ScalarLike = 0.999
) -> tuple[Float[Array, "*shape"], SpikeClipState]:
    r"""Scales down the entries that exceed the running mean of the largest entry (AdaClip).

    .. math::
        M = \max_i |g_i|, \quad T \leftarrow \gamma_3 T + (1 - \gamma_3) M, \quad
        \hat T = T / (1 - \gamma_3^t), \qquad
        g_i \leftarrow \frac{g_i}{M} \hat T \quad\text{where}\quad |g_i| > \hat T

    The largest entry becomes :math:`\hat T`, others in proportion: they are not all cut to the same size.

    Args:
        gradient: ``g``.
        state: ``T``, zero at first.
        count: ``t``, 1 on the first step.
        gamma3: ``gamma_3`` in [0, 1) (paper: 0.999).

    Returns:
        The clipped gradient and the new state.

    Raises:
        ValueError: ``gamma3`` is outside its range.

    References:
        Huang et al., *Stable-SPAM: How to Train in 4-Bit More Stably than 16-Bit Adam*, arXiv 2502.17055.
    """
    check_range("gamma3", gamma3, "[0, 1)")
    rate = 1 - jnp.asarray(gamma3, jnp.float32)
    now = jnp.max(jnp.abs(gradient), initial=0.0)
    largest = _towards(state.largest, now, rate)
    bound, shrink = _limits(largest, _weight(rate, count), now)
    return _clip_spikes(gradient, bound, shrink), SpikeClipState(largest)


@checked
def adaptive_grad_norm(
    gradient: Float[Array, "*shape"],
    state: GradNormState,
    count: ScalarLike,
    *,
    gamma1: ScalarLike = 0.7,
    gamma2: ScalarLike = 0.9,
    eps: ScalarLike = 1e-8,
) -> tuple[Float[Array, "*shape"], GradNormState]:
    r"""Gives a gradient the norm that was usual so far (AdaGN).

    .. math::
        a \leftarrow \gamma_1 a + (1 - \gamma_1) \|g\|, \quad b \leftarrow \gamma_2 b + (1 - \gamma_2) \|g\|^2, \qquad
        g \leftarrow \frac{g}{\|g\|} \cdot \frac{a / (1 - \gamma_1^t)}{\sqrt{b / (1 - \gamma_2^t)} + \epsilon}

    That norm is relative to the root of its mean square: around 1, whatever the loss is multiplied by. A gradient that
    is zero stays so.

    Args:
        gradient: ``g``.
        state: ``a`` and ``b``, zero at first.
        count: ``t``, 1 on the first step.
        gamma1: ``gamma_1`` in [0, 1) (paper: 0.7), decay of the mean norm.
        gamma2: ``gamma_2`` in [0, 1) (paper: 0.9), decay of the mean squared norm.
        eps: ``epsilon >= 0`` (paper: 1e-8).

    Returns:
        The scaled gradient and the new state.

    Raises:
        ValueError: a hyperparameter is outside its range.

    References:
        Huang et al., *Stable-SPAM: How to Train in 4-Bit More Stably than 16-Bit Adam*, arXiv 2502.17055.
    """
    check_range("gamma1", gamma1, "[0, 1)")
    check_range("gamma2", gamma2, "[0, 1)")
    check_range("eps", eps, "[0, inf)")
    rate1, rate2 = (1 - jnp.asarray(gamma, jnp.float32) for gamma in (gamma1, gamma2))
    squared = jnp.sum(jnp.square(gradient))
    state = GradNormState(_towards(state.norm, jnp.sqrt(squared), rate1), _towards(state.square, squared, rate2))
    scale = _usual_over_now(state.norm / _weight(rate1, count), state.square / _weight(rate2, count), squared, eps)
    return scale * gradient, state


class ScaleByStableSpamState(NamedTuple):
    """State of :func:`scale_by_stable_spam`.

    Attributes:
        statistics: for each leaf of the parameters an array of three: ``T``, ``a`` and ``b`` of :class:`SpikeClipState`
            and :class:`GradNormState`.
        adam: of Adam with momentum reset, which counts the steps.
    """

    statistics: PyTree
    adam: MomentumResetState


@checked
def scale_by_stable_spam(
    *,
    b1: ScalarLike = 0.9,
    b2: ScalarLike = 0.999,
    eps: ScalarLike = 1e-8,
    gamma1: ScalarLike = 0.7,
    gamma2: ScalarLike = 0.9,
    gamma3: ScalarLike = 0.999,
    total_steps: ScalarLike | None = None,
    eta_min: ScalarLike = 0.5,
    reset_every: ScalarLike = 1000,
    shared_counter: bool = False,
) -> optax.GradientTransformation:
    r"""Adam's direction from gradients of adaptive size, with momentum reset.

    On step :math:`t = 1, 2, \dots` every leaf of the gradient goes through :func:`adaptive_spike_clip` and
    :func:`adaptive_grad_norm`; if :math:`t \bmod R = 0` Adam's moments and its step count :math:`k` are set to zero;
    then comes a step of Adam. Given ``total_steps`` :math:`T_0`, :math:`\beta_1` and :math:`\gamma_1` are multiplied by

    .. math:: c_t = \eta_{\min} + (1 - \eta_{\min}) \tfrac12 \Bigl(1 + \cos\frac{\pi t}{T_0 + 1}\Bigr)

    With ``optax.inject_hyperparams`` give ``static_args=("total_steps",)`` if it is None.

    Args:
        b1: ``beta_1`` in [0, 1) (paper: 0.9), decay of the first moment.
        b2: ``beta_2`` in [0, 1) (paper: 0.999), decay of the second moment.
        eps: ``epsilon >= 0`` (authors' code: 1e-8), of Adam and of the gradient norm.
        gamma1: ``gamma_1`` in [0, 1) (paper: 0.7), decay of the mean norm.
        gamma2: ``gamma_2`` in [0, 1) (paper: 0.9), decay of the mean squared norm.
        gamma3: ``gamma_3`` in [0, 1) (paper: 0.999), decay of the mean largest entry.
        total_steps: ``T_0 >= 1``, length of the run, for the cosine; None (paper) keeps ``beta_1`` and ``gamma_1``.
        eta_min: in [0, 1] (authors' code: 0.5), what the cosine ends at.
        reset_every: ``R >= 1``, steps between two resets (paper: 1000; the authors' scripts for language models: 500).
        shared_counter: correct the running means of norms and largest entries by Adam's count, ``k + 1`` before a reset
            sets it to zero, as the authors' code does. After the first reset they are then far too large for a while,
            and nothing is clipped.

    Returns:
        An optax transformation that does not need ``params``. It keeps 8 bytes a parameter and 12 a leaf.

    Raises:
        ValueError: a hyperparameter is outside its range.

    References:
        Huang et al., *Stable-SPAM: How to Train in 4-Bit More Stably than 16-Bit Adam*, arXiv 2502.17055.
    """
    check_range("b1", b1, "[0, 1)")
    check_range("b2", b2, "[0, 1)")
    check_range("eps", eps, "[0, inf)")
    check_range("gamma1", gamma1, "[0, 1)")
    check_range("gamma2", gamma2, "[0, 1)")
    check_range("gamma3", gamma3, "[0, 1)")
    check_range("total_steps", total_steps, "[1, inf)")
    check_range("eta_min", eta_min, "[0, 1]")
    check_range("reset_every", reset_every, "[1, inf)")

    def adam(factor):
        return momentum_reset(
            optax.scale_by_adam(b1=b1 * factor, b2=b2, eps=eps),
            reset_every=reset_every,
            warmup_steps=0,
            restart_counts=True,
        )

    def init(params):
        wide = widened(params)
        statistics = jax.tree.map(lambda leaf: jnp.zeros([3], leaf.dtype), wide)
        return ScaleByStableSpamState(statistics, adam(1.0).init(wide))

    def update(updates, state, params=None):
        del params
        t = state.adam.count + 1
        factor = 1.0
        if total_steps is not None:
            factor = eta_min + (1 - eta_min) * 0.5 * (1 + jnp.cos(jnp.pi * t / (total_steps + 1)))
            factor = jnp.asarray(factor, jnp.float32)  # in the mode of 64 bits, too
        # On the step of a reset Adam's count is still the old one.
        count = jnp.where(shared_counter, state.adam.inner_state.count + 1, t)

        rates = [1 - jnp.asarray(gamma, jnp.float32) for gamma in (gamma3, gamma1 * factor, gamma2)]
        weights = [_weight(rate, count) for rate in rates]

        pairs = jax.tree.map(lambda leaf, kept: _steady(leaf, kept, rates, weights, eps), updates, state.statistics)
        gradients, statistics = (jax.tree.map(lambda _, pair, i=i: pair[i], updates, pairs) for i in range(2))
        directions, adam_state = adam(factor).update(gradients, state.adam)
        directions = optax.tree.cast_like(directions, updates)
        return directions, ScaleByStableSpamState(statistics, adam_state)

    return optax.GradientTransformation(init, update)


@checked
def stable_spam(
    learning_rate: ScalarOrSchedule,
    *,
    b1: ScalarLike = 0.9,
    b2: ScalarLike = 0.999,
    eps: ScalarLike = 1e-8,
    gamma1: ScalarLike = 0.7,
    gamma2: ScalarLike = 0.9,
    gamma3: ScalarLike = 0.999,
    total_steps: ScalarLike | None = None,
    eta_min: ScalarLike = 0.5,
    reset_every: ScalarLike = 1000,
    shared_counter: bool = False,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Any = None,
) -> optax.GradientTransformation:
    r"""Stable-SPAM: :func:`scale_by_stable_spam`, decoupled weight decay, learning rate.

    >>> import jax, jax.numpy as jnp, optax
    >>> from jaxreg.optim import stable_spam
    >>> optimizer = stable_spam(optax.cosine_decay_schedule(0.1, 100))
    >>> params = jnp.array([1.0, 2.0])
    >>> state = optimizer.init(params)
    >>> step = jax.jit(lambda params, state: optimizer.update(2 * params, state, params))
    >>> for _ in range(100):
    ...     updates, state = step(params, state)
    ...     params = optax.apply_updates(params, updates)
    >>> bool(jnp.all(jnp.abs(params) < 0.1))
    True

    Args:
        learning_rate: a positive number or an optax schedule.
        b1: see :func:`scale_by_stable_spam`, as are the arguments up to ``shared_counter``.
        b2: decay of the second moment.
        eps: of Adam and of the gradient norm.
        gamma1: decay of the mean norm.
        gamma2: decay of the mean squared norm.
        gamma3: decay of the mean largest entry.
        total_steps: length of the run, for the cosine; None for none.
        eta_min: what the cosine ends at.
        reset_every: steps between two resets.
        shared_counter: correct running means as the authors' code does.
        weight_decay: ``lambda >= 0``, a number or a schedule; ``lambda * params`` joins the direction, as in
            :func:`optax.adamw` (paper: 0).
        mask: pytree of bools, or a function from parameters to one: which leaves decay.

    Returns:
        An optax optimizer.

    Raises:
        ValueError: a hyperparameter is outside its range.

    References:
        Huang et al., *Stable-SPAM: How to Train in 4-Bit More Stably than 16-Bit Adam*, arXiv 2502.17055.
    """
    return descend(
        scale_by_stable_spam(
            b1=b1,
            b2=b2,
            eps=eps,
            gamma1=gamma1,
            gamma2=gamma2,
            gamma3=gamma3,
            total_steps=total_steps,
            eta_min=eta_min,
            reset_every=reset_every,
            shared_counter=shared_counter,
        ),
        learning_rate,
        weight_decay=weight_decay,
        mask=mask,
    )


@jax.jit
def _steady(leaf, statistics, rates, weights, eps):
    """Both steps for one leaf; traced and lowered once for all leaves of a shape."""
    leaf = at_least_float32(leaf)
    now = largest_magnitude(leaf)
    bound, shrink = _limits(_towards(statistics[0], now, rates[0]), weights[0], now)
    (squared,) = leaf_sums(lambda part: (jax.lax.square(_clip_spikes(part, bound, shrink)),), leaf)
    statistics = _towards(statistics, jnp.stack([now, jnp.sqrt(squared), squared]), jnp.stack(rates))
    scale = _usual_over_now(statistics[1] / weights[1], statistics[2] / weights[2], squared, eps)
    return scale * _clip_spikes(leaf, bound, shrink), statistics


# The formulas of `adaptive_spike_clip` and `adaptive_grad_norm`, with the rate 1 - gamma. Decays are rounded to float32
# before, so that 1 - gamma and 1 - gamma^1 agree. What depends on a leaf is written with as few operations as can be:
# XLA compiles them for every leaf. Scalars that a leaf is multiplied by come out of a division: what comes out of a
# cheaper operation XLA:CPU would compute, and compile, once more in every kernel that reads it.


def _towards(mean, now, rate):
    return mean + rate * (now - mean)


def _limits(largest, weight, now):
    """The bound, and the factor on what exceeds it."""
    bound = largest / weight
    return bound, bound / jax.lax.select(now > 0, now, jnp.ones_like(now))


def _clip_spikes(gradient, bound, shrink):
    return jax.lax.select(jnp.abs(gradient) > bound, shrink * gradient, gradient)


def _usual_over_now(norm, square, squared, eps):
    product = (jnp.sqrt(square) + eps) * jnp.sqrt(squared)
    return norm / jax.lax.select(squared > 0, product, jnp.ones_like(squared))


def _weight(rate, count):
    """1 - gamma^count, the weight of all that a mean has seen; as a difference it would lose four digits at 0.999."""
    return -jnp.expm1(count * jnp.log1p(-rate))
