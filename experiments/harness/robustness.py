"""Which examples a network tells right under attack."""

from collections.abc import Callable
from typing import Any

import jax

from jaxreg.robustness import pgd
from jaxreg.typing import Array, Float, Int, PRNGKeyArray


def pgd_correct(
    apply_fn: Callable[[Any, Any], Any],
    params: Any,
    images: Float[Array, "examples features"],
    labels: Int[Array, " examples"],
    key: PRNGKeyArray,
    *,
    epsilon: float,
    steps: int = 20,
) -> jax.Array:
    """Which images in [0, 1] are right after l-infinity PGD on the cross-entropy, in steps of a tenth of its radius.

    Args:
        apply_fn: from parameters and images to logits.
        params: of the network.
        images: pixels in [0, 1].
        labels: true classes.
        key: of the start.
        epsilon: radius of the ball.
        steps: of the attack.
    """
    attacked = pgd(
        apply_fn, params, images, labels, key, epsilon=epsilon, step_size=epsilon / 10, steps=steps, bounds=(0.0, 1.0)
    )
    return apply_fn(params, attacked).argmax(-1) == labels
