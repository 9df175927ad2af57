"""One training run as one `lax.scan`: jit it, vmap it over seeds and learning rates, shard it over devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxreg.typing import PRNGKeyArray


def train(
    key: PRNGKeyArray,
    params: Any,
    optimizer: optax.GradientTransformation,
    loss: Callable[[Any, Any, PRNGKeyArray], tuple[jax.Array, Any]],
    *,
    steps: int,
    state: Any = (),
    distort: Callable[[PRNGKeyArray, Any], Any] | None = None,
    measure: Callable[[Any, Any], Any] = lambda params, state: (),
    points: int = 40,
    watch: Callable[[Any], Any] | None = None,
) -> tuple[Any, Any, Any]:
    """Minimises ``loss`` for a fixed number of steps.

    Args:
        key: source of the run's randomness; step ``n`` uses ``fold_in(key, n)``.
        params: initial parameters.
        optimizer: any optax transformation.
        loss: ``(params, state, key) -> (scalar, state)``; draws its own batch from the key.
        steps: number of steps.
        state: whatever the loss carries along: targets per example, an EMA teacher, ….
        distort: ``(key, gradients) -> gradients``, a fault to inject.
        measure: ``(params, state) -> figures``, evaluated at evenly spaced points of the run.
        points: how many points at most; the largest divisor of ``steps`` up to this number is taken.
        watch: ``gradients -> figures``, evaluated at every step, on what reaches the optimizer.

    Returns:
        Parameters, state, and the figures stacked over the points (the last point is the end of the run); with
        ``watch`` a pair of these and of what was watched, stacked over the steps.
    """
    points = next(p for p in range(min(points, steps), 0, -1) if steps % p == 0)

    def step(carry, n):
        params, optimizer_state, state = carry
        key_loss, key_distort = jax.random.split(jax.random.fold_in(key, n))
        gradients, state = jax.grad(loss, has_aux=True)(params, state, key_loss)
        if distort is not None:
            gradients = distort(key_distort, gradients)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
        watched = () if watch is None else watch(gradients)
        return (optax.apply_updates(params, updates), optimizer_state, state), watched

    def stretch(carry, ns):
        carry, watched = jax.lax.scan(step, carry, ns)
        return carry, (measure(carry[0], carry[2]), watched)

    carry = params, optimizer.init(params), state
    carry, (figures, watched) = jax.lax.scan(stretch, carry, jnp.arange(steps).reshape(points, -1))
    if watch is not None:
        figures = figures, jax.tree.map(lambda x: x.reshape(steps, *x.shape[2:]), watched)
    return carry[0], carry[2], figures
