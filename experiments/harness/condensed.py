"""What experiments on condensed data sets share: examples by class, and the networks that they are judged by."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from experiments.harness import models
from jaxreg.typing import Array, Float, Int, PRNGKeyArray


def sampler_by_class(
    x: Float[Array, "examples features"], y: Int[Array, " examples"], *, classes: int
) -> Callable[[PRNGKeyArray, int], Float[Array, "classes number features"]]:
    """A function of a key and a number that draws so many examples of every class, with replacement."""
    order = jnp.argsort(y)
    count = jnp.bincount(y, length=classes)
    first = jnp.cumsum(count) - count

    def draw(key, number):
        position = (jax.random.uniform(key, [classes, number]) * count[:, None]).astype(jnp.int32)
        return x[order[first[:, None] + position]]

    return draw


def cross_entropy_by_class(
    params: list[dict[str, Array]], examples: Float[Array, "classes per_class features"]
) -> Float[Array, ""]:
    """Mean cross-entropy of a plain MLP on examples by class."""
    labels = jnp.broadcast_to(jnp.arange(len(examples))[:, None], examples.shape[:2])
    return optax.softmax_cross_entropy_with_integer_labels(models.plain_mlp(params, examples), labels).mean()


def accuracies_of_new_networks(
    key: PRNGKeyArray,
    examples: Float[Array, "classes per_class features"],
    judged_by: Sequence[tuple[Array, Array]],
    *,
    widths: Sequence[int],
    steps: int = 200,
    networks: int = 2,
) -> Float[Array, " sets"]:
    """Trains new networks on examples by class, with Adam at 0.003 on all of them at once.

    Args:
        key: of the initial parameters.
        examples: the condensed ones.
        judged_by: sets of inputs and labels.
        widths: of the layers, inputs first.
        steps: of training.
        networks: how many are averaged.

    Returns:
        The mean accuracy on each of the sets.
    """
    optimizer = optax.adam(3e-3)

    def one(key):
        params = models.plain_mlps(key, widths)[0]

        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(cross_entropy_by_class)(params, examples), state)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=steps)
        return jnp.stack([jnp.mean(models.plain_mlp(params, x).argmax(-1) == y) for x, y in judged_by])

    return jax.vmap(one)(jax.random.split(key, networks)).mean(0)
