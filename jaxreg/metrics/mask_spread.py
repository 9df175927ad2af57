"""How much dropout's random masks still matter: whether it has had the time to become a regularizer."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, PRNGKeyArray, checked
from jaxreg.validation import check_range


@checked
def mask_spread(
    key: PRNGKeyArray, loss: Callable[[PRNGKeyArray], Float[Array, ""]], *, num_masks: int = 32
) -> Float[Array, ""]:
    r"""Standard deviation of a loss over dropout masks.

    .. math:: \Bigl(\tfrac{1}{M - 1} \sum_m (\ell(z_m) - \bar \ell)^2\Bigr)^{1/2}

    In expectation over masks dropout regularizes; a short run sees only a few, and where the loss still varies much
    between masks, it was noise.

    Args:
        key: random key.
        loss: the loss under the mask that a key draws, such as that of one batch.
        num_masks: ``M >= 2``.

    Returns:
        The standard deviation, in the loss's unit.

    Raises:
        ValueError: ``num_masks`` is below 2.

    References:
        Huang and Balestriero, *ALLoRA: Adaptive Learning Rate Mitigates LoRA Fatal Flaws*, arXiv 2410.09692.
    """
    check_range("num_masks", num_masks, "[2, inf)")
    losses = jax.vmap(loss)(jax.random.split(key, num_masks))
    return jnp.std(at_least_float32(losses), ddof=1)
