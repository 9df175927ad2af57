"""Causal attention with rotary positions, and the largest of its logits for those who watch training."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, Int, ScalarLike, checked

_ROTARY_BASE = 10_000.0


@checked
def rotate(
    x: Float[Array, "*batch length heads size"], positions: Int[Array, " length"]
) -> Float[Array, "*batch length heads size"]:
    r"""Rotary positions: turns pairs of features by angles proportional to the position.

    .. math:: (x_i, x_{i + d/2}) \leftarrow R(t \theta_i) \, (x_i, x_{i + d/2}), \qquad \theta_i = 10000^{-2i/d}

    The product of a query and a key then depends on their positions :math:`t` through the difference alone.

    Args:
        x: queries or keys, of even size.
        positions: of each.

    Returns:
        The turned vectors, as long as before.

    References:
        Su et al., *RoFormer: Enhanced Transformer with Rotary Position Embedding*, arXiv 2104.09864.
    """
    size = x.shape[-1]
    angles = positions[:, None, None] * _ROTARY_BASE ** (-jnp.arange(0, size, 2) / size)
    cosine, sine = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(at_least_float32(x), 2, axis=-1)
    turned = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return turned.astype(x.dtype)


@checked
def causal_attention(
    q: Float[Array, "*batch length heads size"],
    k: Float[Array, "*batch length heads size"],
    v: Float[Array, "*batch length heads size"],
    *,
    scale: ScalarLike,
    implementation: Literal["xla", "cudnn"] = "xla",
) -> tuple[Float[Array, "*batch length heads size"], Callable[[], Float[Array, ""]]]:
    r"""What every position finds at itself and before.

    .. math:: o_t = \sum_{s \le t} \operatorname{softmax}_s(\ell_{ts}) \, v_s, \qquad \ell_{ts} = c \, q_t^\top k_s

    Args:
        q: queries.
        k: keys.
        v: values.
        scale: ``c``.
        implementation: "xla", or "cudnn" for the fused kernel on NVIDIA's GPUs, in half precision.

    Returns:
        The mixed values, and a function that computes the largest of the causal logits :math:`\ell`. With "cudnn" they
        never exist, and it is the bound :math:`c \max_t \|q_t\| \max_s \|k_s\|` of the head where that is largest.
    """
    if implementation == "cudnn":
        whole = [x.reshape(-1, *x.shape[-3:]) for x in (q, k, v)]
        mixed = jax.nn.dot_product_attention(*whole, scale=scale, is_causal=True, implementation="cudnn")
        return mixed.reshape(v.shape), lambda: _largest_possible_logit(q, k, scale)
    logits = scale * einsum_in_float32("...qhd,...khd->...hqk", q, k)
    causal = jnp.tril(jnp.ones(logits.shape[-2:], bool))
    logits = jnp.where(causal, logits, -jnp.inf)
    row_maxima = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    # The softmax's division comes after the mixing, where there is less to divide.
    weights = jnp.exp(logits - row_maxima)
    mixed = einsum_in_float32("...hqk,...khd->...qhd", weights.astype(v.dtype), v)
    mixed /= jnp.swapaxes(jnp.sum(weights, axis=-1), -1, -2)[..., None]
    return mixed.astype(v.dtype), lambda: jnp.max(row_maxima)


def einsum_in_float32(equation: str, x: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
    """A product whose sums and results are float32 where its operands may be half precision."""

    def widening(x, y):
        return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32)

    if x.dtype == y.dtype == jnp.float32:
        return widening(x, y)
    # With jax 0.8 XLA:CPU has no such product of half precision.
    return jax.lax.platform_dependent(
        x, y, cpu=lambda x, y: widening(x.astype(jnp.float32), y.astype(jnp.float32)), default=widening
    )


def _largest_possible_logit(q, k, scale):
    """By Cauchy and Schwarz."""
    longest = [jnp.max(jnp.linalg.norm(at_least_float32(x), axis=-1), axis=tuple(range(x.ndim - 2))) for x in (q, k)]
    return scale * jnp.max(longest[0] * longest[1])
