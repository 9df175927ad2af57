"""Momentum reset: forget the moments every so often, and come back gently.

A gradient spike that got through stays in Adam's moments for hundreds of steps. Setting the moments to zero every few
hundred steps bounds the harm; the steps right after a reset are noisy, so they are scaled down along a cosine.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxreg.paths import within_field
from jaxreg.typing import Array, Float, Int, ScalarLike, checked
from jaxreg.validation import check_range


@checked
def warmup_after_reset(steps_since_reset: ScalarLike, *, warmup_steps: ScalarLike = 150) -> Float[Array, ""]:
    r"""Factor on the update ``s`` steps after a reset: a cosine from 0.01 to 1.

    .. math::
        c(s) = 1 - 0.99 \cdot \tfrac12 \bigl(1 + \cos\tfrac{\pi s}{W + 1}\bigr) \text{ for } s < W, \text{ else } 1

    Args:
        steps_since_reset: ``s``, 0 on the step of the reset itself.
        warmup_steps: ``W >= 0`` (paper: 150); 0 means no warmup.

    Returns:
        The factor, in ``[0.01, 1]``.

    Raises:
        ValueError: ``warmup_steps`` is negative.

    References:
        Huang et al., *SPAM: Spike-Aware Adam with Momentum Reset for Stable LLM Training*, arXiv 2501.06842.
    """
    check_range("warmup_steps", warmup_steps, "[0, inf)")
    s = jnp.asarray(steps_since_reset)
    cosine = jnp.where(s < warmup_steps, jnp.cos(jnp.pi * s / (warmup_steps + 1.0)), -1.0)
    return (101.0 - 99.0 * cosine) / 200.0  # a division is not computed once more wherever the factor is used


class MomentumResetState(NamedTuple):
    """State of :func:`momentum_reset`.

    Attributes:
        count: steps taken.
        inner_state: state of the wrapped optimizer.
    """

    count: Int[Array, ""]
    inner_state: optax.OptState


@checked
def momentum_reset(
    inner: optax.GradientTransformation,
    *,
    reset_every: ScalarLike = 500,
    warmup_steps: ScalarLike = 150,
    moments: Sequence[str] | None = None,
    restart_counts: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Any optimizer, its moments set to zero every ``reset_every`` steps, its updates then warmed up again.

    On the steps :math:`n = 1, 2, \dots` with :math:`n \bmod R = 0` the moments are zeroed before the step is taken:
    every array of the inner state that mirrors the parameters (found by :func:`optax.tree.map_params`), or the fields
    named in ``moments``. Step counts, learning rates and the like are left alone. All updates are multiplied by
    :func:`warmup_after_reset`, which is 1 until the first reset.

    Wrap the part that holds the moments: ``chain(momentum_reset(scale_by_adam()), add_decayed_weights(1e-2), ...)``
    leaves the weight decay unscaled.

    With ``optax.inject_hyperparams`` give ``static_args=("inner", "moments", "restart_counts")``.

    Args:
        inner: the optimizer to wrap.
        reset_every: ``R >= 1``, steps between two resets (paper: 500).
        warmup_steps: ``W >= 0``, steps of the warmup after a reset (paper: 150).
        moments: names of the fields of the inner state to reset, such as ``("mu",)`` for Adam's first moment only, or
            for states that mirror the parameters without being moments (copies of the weights); None for all that do.
        restart_counts: whether the inner state's step counts, all its integer scalars, restart as well, and the bias
            correction with them (SPAM's don't, Stable-SPAM's do). Schedules within ``inner`` would, too.

    Returns:
        The wrapped optimizer; extra arguments of ``update`` are passed on to ``inner``.

    Raises:
        ValueError: ``reset_every`` is below 1 or ``warmup_steps`` negative.

    References:
        Huang et al., *SPAM: Spike-Aware Adam with Momentum Reset for Stable LLM Training*, arXiv 2501.06842.
    """
    check_range("reset_every", reset_every, "[1, inf)")
    check_range("warmup_steps", warmup_steps, "[0, inf)")
    no_warmup = isinstance(warmup_steps, int | float) and warmup_steps == 0
    inner = optax.with_extra_args_support(inner)

    def init(params):
        return MomentumResetState(jnp.zeros([], jnp.int32), inner.init(params))

    def update(updates, state, params=None, **extra_args):
        count = optax.safe_increment(state.count)
        since = jnp.fmod(count, reset_every)

        def forget(leaf):
            return jax.lax.select(since == 0, jnp.zeros_like(leaf), leaf)

        def forget_count(leaf):
            is_count = jnp.ndim(leaf) == 0 and jnp.issubdtype(leaf.dtype, jnp.integer)
            return forget(leaf) if restart_counts and is_count else leaf

        inner_state = optax.tree.map_params(
            inner,
            forget if moments is None else lambda leaf: leaf,
            state.inner_state,
            transform_non_params=forget_count,
        )
        if moments is not None:
            inner_state = jax.tree_util.tree_map_with_path(
                lambda path, leaf: forget(leaf) if within_field(path, moments) else leaf, inner_state
            )
        updates, inner_state = inner.update(updates, inner_state, params, **extra_args)
        if no_warmup:
            return updates, MomentumResetState(count, inner_state)
        since = jnp.where(count < reset_every, warmup_steps, since)
        factor = warmup_after_reset(since, warmup_steps=warmup_steps)
        updates = jax.tree.map(lambda u: (factor * u).astype(u.dtype), updates)
        return updates, MomentumResetState(count, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)
