"""SPAM: spike-aware Adam with momentum reset.

Training a language model now and then meets a gradient a thousand times larger than usual. Adam's second moment
remembers it for a thousand steps. SPAM (1) clips every entry of the gradient that is far outside what its own second
moment expects, (2) sets both moments to zero every few hundred steps, and (3) can keep moments for a random part of
the parameters only, drawn anew at every reset, to save memory.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxreg.optim.descend import descend
from jaxreg.optim.momentum_reset import warmup_after_reset
from jaxreg.optim.subset import Subset, draw, put, redraw, take
from jaxreg.typing import Array, Float, Int, ScalarLike, ScalarOrSchedule, checked
from jaxreg.validation import check_range


@checked
def spike_clip(
    gradient: Float[Array, "*shape"], second_moment: Float[Array, "*shape"], *, threshold: ScalarLike = 5000.0
) -> Float[Array, "*shape"]:
    r"""Spike-aware clipping: bounds each entry by what its second moment leads one to expect.

    .. math:: g_i \leftarrow \operatorname{sign}(g_i) \sqrt{\theta v_i} \quad\text{where}\quad g_i^2 > \theta v_i

    An entry whose second moment is zero, for it has seen no gradient yet, is clipped to zero: see
    :func:`scale_by_spam`.

    Args:
        gradient: ``g``.
        second_moment: ``v >= 0``, the running mean of ``g^2`` *before* it has seen this gradient.
        threshold: ``theta > 0`` (paper: 5000); infinity never clips.

    Returns:
        The clipped gradient.

    Raises:
        ValueError: ``threshold`` is not positive.

    References:
        Huang et al., *SPAM: Spike-Aware Adam with Momentum Reset for Stable LLM Training*, arXiv 2501.06842.
    """
    check_range("threshold", threshold, "(0, inf]")
    return _clip(gradient, threshold * second_moment)


@checked
def spike_score(gradients: Float[Array, "time *shape"]) -> Float[Array, "time *shape"]:
    r"""How many times larger than usual each gradient entry is; the paper calls more than 50 a spike.

    .. math:: s_t = |g_t| \Big/ \tfrac1T \sum_{t'} |g_{t'}|

    Args:
        gradients: logged gradients, time first.

    Returns:
        The score of every entry at every time, 0 where an entry was never anything but zero.

    References:
        Huang et al., *SPAM: Spike-Aware Adam with Momentum Reset for Stable LLM Training*, arXiv 2501.06842.
    """
    size = jnp.abs(gradients)
    mean = jnp.mean(size, axis=0)
    return jnp.where(mean > 0, size / jnp.where(mean > 0, mean, 1.0), 0.0)


class ScaleBySpamState(NamedTuple):
    """State of :func:`scale_by_spam`.

    Attributes:
        count: steps taken, ``n``.
        mu: first moments, at least float32; with ``density`` one flat array a leaf, for its chosen entries.
        nu: second moments, likewise.
        chosen: with ``density`` which entries own moments; else None.
    """

    count: Int[Array, ""]
    mu: optax.Updates
    nu: optax.Updates
    chosen: Subset | None


@checked
def scale_by_spam(
    *,
    b1: ScalarLike = 0.9,
    b2: ScalarLike = 0.999,
    eps: ScalarLike = 1e-6,
    threshold: ScalarLike = 5000.0,
    reset_every: ScalarLike = 500,
    warmup_steps: ScalarLike = 150,
    grace_steps: ScalarLike = 20,
    density: float | int | None = None,
    bias_correction_after_reset: bool = False,
    seed: ScalarLike = 0,
) -> optax.GradientTransformation:
    r"""Adam's direction with spike-aware clipping and momentum reset.

    On step :math:`n = 1, 2, \dots`, with :math:`m = v = 0` at first and again whenever :math:`n \bmod R = 0`:

    .. math::
        g &\leftarrow \operatorname{sign}(g) \min(|g|, \sqrt{\theta v})
            \quad\text{if } n \ge G \text{ and } n \bmod R \ge G \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) g, \qquad v \leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        u &= c \; \frac{m / (1 - \beta_1^n)}{\sqrt{v / (1 - \beta_2^n)}} \quad
            \text{with } \epsilon \text{ added to } \sqrt{v}

    where :math:`c` is :func:`~jaxreg.optim.warmup_after_reset`. As in the authors' code :math:`n` is not restarted by
    a reset and :math:`\epsilon` stands outside the bias correction, unlike Adam's. Moments are kept in float32 for
    half-precision parameters: ``v`` changes by a thousandth a step, which bfloat16 rounds away.

    Also as in the authors' code an entry whose gradients were exactly zero through the ``G`` steps without clipping, so
    that :math:`v = 0`, stands still until the next reset: leave embeddings with seldom used rows to another optimizer,
    with :func:`optax.partition`.

    With ``optax.inject_hyperparams`` give ``static_args=("density",)``: it decides the shape of the state.

    Args:
        b1: ``beta_1`` in [0, 1) (paper: 0.9), decay of the first moment.
        b2: ``beta_2`` in [0, 1) (paper: 0.999), decay of the second moment.
        eps: ``epsilon >= 0`` (paper: 1e-6).
        threshold: ``theta > 0`` (paper: 5000), see :func:`spike_clip`.
        reset_every: ``R >= 1`` (paper: 500), steps between two resets.
        warmup_steps: ``W >= 0`` (paper: 150), steps of the cosine warmup after a reset.
        grace_steps: ``G >= 0`` (authors' code: 20), steps without clipping at the start and after a reset, while
            ``v`` is too young to tell a spike.
        density: ``d`` in (0, 1], the part of each leaf's entries, ``int(d * size)`` and at least one, that own
            moments and move until the next reset draws others; None for all. State is then ``9 d`` bytes a
            parameter instead of 8 (``10 d`` for ``d`` below 1/256).
        bias_correction_after_reset: count the bias correction's ``n`` from the last reset instead.
        seed: of the random choice of entries; used with ``density`` only.

    Returns:
        An optax transformation that does not need ``params``.

    Raises:
        ValueError: a hyperparameter is outside its range.

    References:
        Huang et al., *SPAM: Spike-Aware Adam with Momentum Reset for Stable LLM Training*, arXiv 2501.06842.
    """
    check_range("b1", b1, "[0, 1)")
    check_range("b2", b2, "[0, 1)")
    check_range("eps", eps, "[0, inf)")
    check_range("threshold", threshold, "(0, inf]")
    check_range("reset_every", reset_every, "[1, inf)")
    check_range("warmup_steps", warmup_steps, "[0, inf)")
    check_range("grace_steps", grace_steps, "[0, inf)")
    check_range("density", density, "(0, 1]")

    def period_key(period):
        return jax.random.fold_in(jax.random.key(seed), period)

    def init(params):
        chosen = None if density is None else draw(period_key(0), params, density)

        def zeros():
            return jax.tree.map(
                lambda leaf, like: jnp.zeros_like(like, dtype=jnp.promote_types(leaf.dtype, jnp.float32)),
                params,
                params if chosen is None else chosen.rows,
            )

        return ScaleBySpamState(jnp.zeros([], jnp.int32), zeros(), zeros(), chosen)

    def update(updates, state, params=None):
        del params
        n = optax.safe_increment(state.count)
        since = jnp.fmod(n, reset_every)
        reset = since == 0
        gradients, chosen = updates, state.chosen
        if density is not None:
            chosen = redraw(reset, chosen, period_key(n // reset_every), updates, density)
            gradients = take(updates, chosen)

        def forget(moment):
            return jax.lax.select(reset, jnp.zeros_like(moment), moment)

        mu, nu = jax.tree.map(forget, state.mu), jax.tree.map(forget, state.nu)
        gradients = jax.tree.map(lambda g, v: g.astype(v.dtype), gradients, nu)
        clipping = (n >= grace_steps) & (since >= grace_steps)
        theta = threshold / clipping
        # g^2 > theta v holds for the old v exactly where g^2 > kappa v' holds for the new one, and there the two bounds
        # are equal. Asking v' for m's clipping leaves XLA free to write v' over v: no copy, no pass over memory for it.
        kappa = threshold / ((b2 + (1 - b2) * threshold) * clipping)
        nu = jax.tree.map(lambda g, v: b2 * v + (1 - b2) * _clip_square(g, theta * v), gradients, nu)
        mu = jax.tree.map(lambda g, m, v: b1 * m + (1 - b1) * _clip(g, kappa * v), gradients, mu, nu)

        age = jnp.where(bias_correction_after_reset & (n >= reset_every), since + 1, n)
        factor = jnp.where(n < reset_every, 1.0, warmup_after_reset(since, warmup_steps=warmup_steps))
        factor = factor * jnp.sqrt(1 - b2**age) / (1 - b1**age)
        directions = jax.tree.map(lambda m, v: factor * m / (jnp.sqrt(v) + eps), mu, nu)
        if density is not None:
            directions = put(directions, chosen, updates)
        directions = optax.tree.cast_like(directions, updates)
        return directions, ScaleBySpamState(n, mu, nu, chosen)

    return optax.GradientTransformation(init, update)


@checked
def spam(
    learning_rate: ScalarOrSchedule,
    *,
    b1: ScalarLike = 0.9,
    b2: ScalarLike = 0.999,
    eps: ScalarLike = 1e-6,
    threshold: ScalarLike = 5000.0,
    reset_every: ScalarLike = 500,
    warmup_steps: ScalarLike = 150,
    grace_steps: ScalarLike = 20,
    density: float | int | None = None,
    bias_correction_after_reset: bool = False,
    seed: ScalarLike = 0,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Any = None,
) -> optax.GradientTransformation:
    r"""SPAM: :func:`scale_by_spam`, decoupled weight decay, learning rate.

    >>> import jax, jax.numpy as jnp, optax
    >>> from jaxreg.optim import spam
    >>> optimizer = spam(0.1, weight_decay=1e-3)
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
        b1: see :func:`scale_by_spam`, as are the arguments up to ``seed``.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
        threshold: of the spike-aware clipping.
        reset_every: steps between two resets.
        warmup_steps: steps of the warmup after a reset.
        grace_steps: steps without clipping after a reset.
        density: part of the entries that own moments and move.
        bias_correction_after_reset: whether the bias correction counts from the last reset.
        seed: of the random choice of entries.
        weight_decay: ``lambda >= 0``, a number or a schedule; ``lambda * params`` joins the direction, as in
            :func:`optax.adamw`. It is not scaled by the warmup after a reset and also reaches entries without moments.
        mask: pytree of bools, or a function from parameters to one: which leaves decay.

    Returns:
        An optax optimizer.

    Raises:
        ValueError: a hyperparameter is outside its range.

    References:
        Huang et al., *SPAM: Spike-Aware Adam with Momentum Reset for Stable LLM Training*, arXiv 2501.06842.
    """
    return descend(
        scale_by_spam(
            b1=b1,
            b2=b2,
            eps=eps,
            threshold=threshold,
            reset_every=reset_every,
            warmup_steps=warmup_steps,
            grace_steps=grace_steps,
            density=density,
            bias_correction_after_reset=bias_correction_after_reset,
            seed=seed,
        ),
        learning_rate,
        weight_decay=weight_decay,
        mask=mask,
    )


# An infinite threshold at v = 0 makes the largest square NaN, which compares false: not clipped, as it should be.


def _clip(gradient, largest_square):
    clipped = jnp.sign(gradient) * jnp.sqrt(largest_square)
    return jax.lax.select(gradient * gradient > largest_square, clipped, gradient)


def _clip_square(gradient, largest_square):
    """The square of the clipped gradient, without a root: XLA would rather store that for all than take it twice."""
    square = gradient * gradient
    return jax.lax.select(square > largest_square, largest_square, square)
