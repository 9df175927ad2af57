"""Momentum reset: forget the moments every so often, and come back gently.

A gradient spike that got through stays in Adam's moments for hundreds of steps. Setting the moments to zero every few
hundred steps bounds the harm; the steps right after a reset are noisy, so they are scaled down along a cosine.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

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
    ramp = 1.0 - 0.99 * 0.5 * (1.0 + jnp.cos(jnp.pi * s / (warmup_steps + 1.0)))
    return jnp.where(s < warmup_steps, ramp, 1.0)


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
) -> optax.GradientTransformationExtraArgs:
    r"""Any optimizer, its moments set to zero every ``reset_every`` steps, its updates then warmed up again.

    On the steps :math:`n = 1, 2, \dots` with :math:`n \bmod R = 0` every array of the inner state that mirrors the
    parameters (found by :func:`optax.tree.map_params`) is zeroed before the step is taken; step counts, learning
    rates and the like are left alone. All updates are multiplied by :func:`warmup_after_reset`, which is 1 until the
    first reset.

    Wrap the part that holds the moments: ``chain(momentum_reset(scale_by_adam()), add_decayed_weights(1e-2), ...)``
    leaves the weight decay unscaled.

    Args:
        inner: the optimizer to wrap.
        reset_every: ``R >= 1``, steps between two resets (paper: 500).
        warmup_steps: ``W >= 0``, steps of the warmup after a reset (paper: 150).

    Returns:
        The wrapped optimizer; extra arguments of ``update`` are passed on to ``inner``.

    Raises:
        ValueError: ``reset_every`` is below 1 or ``warmup_steps`` negative.

    References:
        Huang et al., *SPAM: Spike-Aware Adam with Momentum Reset for Stable LLM Training*, arXiv 2501.06842.
    """
    check_range("reset_every", reset_every, "[1, inf)")
    check_range("warmup_steps", warmup_steps, "[0, inf)")
    inner = optax.with_extra_args_support(inner)

    def init(params):
        return MomentumResetState(jnp.zeros([], jnp.int32), inner.init(params))

    def update(updates, state, params=None, **extra_args):
        count = optax.safe_increment(state.count)
        since = count % reset_every
        inner_state = optax.tree.map_params(
            inner, lambda moment: jnp.where(since == 0, jnp.zeros_like(moment), moment), state.inner_state
        )
        updates, inner_state = inner.update(updates, inner_state, params, **extra_args)
        factor = jnp.where(count < reset_every, 1.0, warmup_after_reset(since, warmup_steps=warmup_steps))
        updates = jax.tree.map(lambda u: (factor * u).astype(u.dtype), updates)
        return updates, MomentumResetState(count, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)
