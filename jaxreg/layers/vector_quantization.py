"""Vector quantization: vectors become the numbers of their nearest codes, and gradients pass as if nothing happened."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.linalg import matmul
from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, Int, PRNGKeyArray, ScalarLike, checked
from jaxreg.validation import check_range


class Quantized(NamedTuple):
    """Result of :func:`vector_quantize`.

    Attributes:
        values: the nearest codes; their gradient goes to the vectors unchanged.
        codes: their numbers.
        codebook_loss: of each vector, squared distance that draws the code to the vector.
        commitment_loss: of each vector, the same distance, that draws the vector to the code.
    """

    values: Float[Array, "*batch features"]
    codes: Int[Array, "*batch"]
    codebook_loss: Float[Array, "*batch"]
    commitment_loss: Float[Array, "*batch"]


@checked
def vector_quantize(vectors: Float[Array, "*batch features"], codebook: Float[Array, "codes features"]) -> Quantized:
    r"""Replaces vectors by their nearest codes, with the straight-through gradient of VQ-VAE.

    .. math::
        k = \arg\min_j \|z - e_j\|^2, \qquad \hat z = z + \operatorname{sg}[e_k - z], \qquad
        \|\operatorname{sg}[z] - e_k\|^2, \quad \|z - \operatorname{sg}[e_k]\|^2

    Args:
        vectors: ``z``.
        codebook: ``e``.

    Returns:
        The codes, and the losses of codebook and commitment, sums over the features.

    References:
        van den Oord, Vinyals and Kavukcuoglu, *Neural Discrete Representation Learning*, NeurIPS 2017,
        arXiv 1711.00937.
    """
    z, e = at_least_float32(vectors), at_least_float32(codebook)
    # The square of z is the same for all codes.
    scores = matmul(z, e.T) - 0.5 * jnp.sum(jnp.square(e), axis=-1)
    codes = jnp.argmax(jax.lax.stop_gradient(scores), axis=-1)
    nearest = e[codes]
    values = z + jax.lax.stop_gradient(nearest - z)
    codebook_loss = jnp.sum(jnp.square(jax.lax.stop_gradient(z) - nearest), axis=-1)
    commitment_loss = jnp.sum(jnp.square(z - jax.lax.stop_gradient(nearest)), axis=-1)
    return Quantized(values.astype(vectors.dtype), codes, codebook_loss, commitment_loss)


@checked
def restart_dead_codes(
    key: PRNGKeyArray,
    codebook: Float[Array, "codes features"],
    counts: Float[Array, "codes"] | Int[Array, "codes"],
    vectors: Float[Array, "vectors features"],
    *,
    threshold: ScalarLike = 1.0,
) -> Float[Array, "codes features"]:
    """Moves codes that are hardly used to random vectors: a codebook otherwise collapses to a few codes.

    Args:
        key: decides which vectors.
        codebook: of :func:`vector_quantize`.
        counts: how often each code was the nearest, lately.
        vectors: what is quantized, such as the encodings of a batch.
        threshold: >= 0; codes with fewer counts are moved.

    Returns:
        The codebook, in its dtype.

    Raises:
        ValueError: ``threshold`` is negative.

    References:
        Dhariwal et al., *Jukebox: A Generative Model for Music*, arXiv 2005.00341.
    """
    check_range("threshold", threshold, "[0, inf)")
    chosen = jax.random.randint(key, [len(codebook)], 0, len(vectors))
    dead = (jnp.asarray(counts) < threshold)[:, None]
    return jnp.where(dead, jnp.asarray(vectors)[chosen].astype(codebook.dtype), codebook)
