"""What to watch while a model trains: attention logits, output logits, gradient norms.

Three things give notice before a training run breaks: the largest attention logit grows without bound, the normalizer
of the output's softmax drifts away from one, and the gradient is suddenly many times longer than usual. They are
measured in one call within the training step::

    @jax.jit
    def step(params, optimizer_state, telemetry_state, x, y):
        gradients = jax.grad(loss)(params, x, y)
        seen, telemetry_state = telemetry(telemetry_state, model.apply, params, x, gradients=gradients)
        ...

That is another forward pass. Where the loss returns the model's outputs and intermediates anyway, give them to
:func:`read_telemetry`, which costs next to nothing. Curvature is elsewhere in :mod:`jaxreg.metrics`.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxreg.precision import at_least_float32, widened
from jaxreg.typing import Array, Float, Int, PyTree, ScalarLike, checked
from jaxreg.validation import check_range


class TelemetryState(NamedTuple):
    """State of :func:`telemetry` and :func:`read_telemetry`.

    Attributes:
        count: steps with a finite gradient norm.
        mean_norm: running mean of their norms.
    """

    count: Int[Array, ""]
    mean_norm: Float[Array, ""]


class Telemetry(NamedTuple):
    """What was seen in a step, float32 scalars.

    Attributes:
        max_attention_logit: largest logit over all attention layers, heads and positions; None if no layer tells.
        log_z: mean over the outputs of the logarithm of the softmax's normalizer.
        max_abs_log_z: its largest absolute value.
        gradient_norm: Euclidean norm of the gradient.
        spike_score: the norm over the running mean of those before; 1 on the first step.
    """

    max_attention_logit: Float[Array, ""] | None
    log_z: Float[Array, ""]
    max_abs_log_z: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    spike_score: Float[Array, ""]


@checked
def telemetry_init() -> TelemetryState:
    """State before the first step.

    Args:
        None.

    Returns:
        The state.
    """
    return TelemetryState(jnp.zeros([], jnp.int32), jnp.zeros([], jnp.float32))


@checked
def telemetry(
    state: TelemetryState,
    apply_fn: Callable[..., Any],
    params: PyTree,
    *inputs: Any,
    gradients: PyTree,
    decay: ScalarLike = 0.99,
    attention: str = "attention_logits",
) -> tuple[Telemetry, TelemetryState]:
    r"""Measures a model in training in one call.

    >>> import jax, jax.numpy as jnp
    >>> from jaxreg.layers import QKNormAttention
    >>> from jaxreg.metrics import telemetry, telemetry_init
    >>> model, x = QKNormAttention(heads=2), jnp.ones([5, 8])
    >>> params = jax.jit(model.init)(jax.random.key(0), x)
    >>> @jax.jit
    ... def step(params, state):
    ...     gradients = jax.grad(lambda p: jnp.sum(model.apply(p, x) ** 2))(params)
    ...     return telemetry(state, model.apply, params, x, gradients=gradients)
    >>> seen, state = step(params, telemetry_init())
    >>> bool(seen.max_attention_logit <= 2.0), float(seen.spike_score)
    (True, 1.0)

    Args:
        state: from :func:`telemetry_init` or the last call.
        apply_fn: called as ``apply_fn(params, *inputs)``, returns logits, classes last. If it takes ``mutable``, as the
            ``apply`` of a flax module does (also within ``functools.partial``), it is asked for the intermediates that
            its layers sow; any other function is measured without attention.
        params: whatever ``apply_fn`` takes first.
        inputs: the rest, such as a batch.
        gradients: of the training loss, before any clipping.
        decay: see :func:`read_telemetry`.
        attention: see :func:`read_telemetry`.

    Returns:
        What was seen, and the new state.

    Raises:
        ValueError: ``decay`` is outside [0, 1].

    References:
        Wortsman et al., *Small-scale proxies for large-scale Transformer training instabilities*, arXiv 2309.14322;
        Huang et al., *SPAM: Spike-Aware Adam with Momentum Reset for Stable LLM Training*, arXiv 2501.06842.
    """
    if "mutable" in inspect.signature(apply_fn).parameters:
        outputs, sown = apply_fn(params, *inputs, mutable=["intermediates"])
    else:
        outputs, sown = apply_fn(params, *inputs), {}
    return read_telemetry(state, outputs, gradients=gradients, intermediates=sown, decay=decay, attention=attention)


@checked
def read_telemetry(
    state: TelemetryState,
    outputs: Float[Array, "*batch classes"],
    *,
    gradients: PyTree,
    intermediates: PyTree = None,
    decay: ScalarLike = 0.99,
    attention: str = "attention_logits",
) -> tuple[Telemetry, TelemetryState]:
    r"""Measures a model in training from what its forward and backward pass returned.

    With the gradient's norm :math:`\|g_t\|` the score and the running mean are

    .. math::
        s_t = \|g_t\| / \mu_{t-1}, \qquad
        \mu_t = \mu_{t-1} + \max(1 / t, 1 - \beta) (\|g_t\| - \mu_{t-1})

    so at first the mean is that of all steps. SPAM calls a gradient that is more than 50 times larger than its mean
    over the whole run a spike (:func:`jaxreg.optim.spike_score`, entry by entry and afterwards).

    Args:
        state: from :func:`telemetry_init` or the last call.
        outputs: logits of the model.
        gradients: of the training loss, before any clipping.
        intermediates: what layers sowed, such as flax's collection ``intermediates``.
        decay: ``beta`` in [0, 1], memory of the mean norm; 1 is the mean of all steps. Norms that are not finite are
            reported and left out of it.
        attention: under which name attention layers sow their logits, as :class:`jaxreg.layers.QKNormAttention` does.

    Returns:
        What was seen, and the new state.

    Raises:
        ValueError: ``decay`` is outside [0, 1].

    References:
        Wortsman et al., *Small-scale proxies for large-scale Transformer training instabilities*, arXiv 2309.14322;
        Huang et al., *SPAM: Spike-Aware Adam with Momentum Reset for Stable LLM Training*, arXiv 2501.06842.
    """
    check_range("decay", decay, "[0, 1]")
    log_z = jax.nn.logsumexp(at_least_float32(outputs), axis=-1)
    norm = optax.tree.norm(widened(gradients))
    norm = jnp.asarray(norm, jnp.float32)
    usual = jnp.where(state.count > 0, state.mean_norm, norm)
    score = jnp.where(norm == usual, 1.0, norm / usual)

    finite = jnp.isfinite(norm)
    count = state.count + finite
    weight = jnp.maximum(1 / jnp.maximum(count, 1), 1 - decay)
    moved = state.mean_norm + weight * (jnp.where(finite, norm, 0.0) - state.mean_norm)
    new_state = TelemetryState(count, jnp.where(finite, moved, state.mean_norm).astype(jnp.float32))

    seen = Telemetry(
        max_attention_logit=_largest(intermediates, attention),
        log_z=jnp.mean(log_z),
        max_abs_log_z=jnp.max(jnp.abs(log_z)),
        gradient_norm=norm,
        spike_score=score,
    )
    return jax.lax.stop_gradient(seen), new_state


def _largest(intermediates, name):
    """Of all values sown under a name, whichever module sowed them; None if there are none."""
    found = [
        jnp.max(at_least_float32(value))
        for path, value in jax.tree_util.tree_leaves_with_path(intermediates)
        if any(getattr(part, "key", None) == name for part in path)
    ]
    return jnp.max(jnp.stack(found)) if found else None
