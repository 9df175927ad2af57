"""How tight interval bounds of a network are.

Interval bound propagation is exact for one affine layer and too wide for several. For a linear network both the exact
widths and those of interval bounds are products of matrices, and so is their ratio, the propagation tightness. A
network of rectified linear units is linear around an input: its tightness there is that of the linear network which the
inactive units leave.

Convolutions and normalizations take part as the matrices that they are.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxreg.linalg import matmul
from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Bool, Float, Int, ScalarLike, Shaped, checked
from jaxreg.validation import check_range

LEAST_WIDTH = 1e-8
"""Widths below it count as this much: a ratio of nothing to nothing is 1."""


@checked
def propagation_tightness(
    weights: Sequence[Float[Array, "_ _"]],
    epsilon: Float[Array, "batch features"],
    *,
    labels: Int[Array, "batch"] | None = None,
    masks: Sequence[Shaped[Array, "batch _"]] | None = None,
) -> Float[Array, "batch outputs"]:
    r"""Widths of the exact bounds of a linear network over those of interval bounds, for each output.

    .. math:: \tau = \frac{\lvert W_L D_{L-1} W_{L-1} \cdots D_1 W_1 \rvert\, \epsilon}
        {\lvert W_L \rvert D_{L-1} \lvert W_{L-1} \rvert \cdots D_1 \lvert W_1 \rvert\, \epsilon}

    To report one number for a network, average these ratios.

    Args:
        weights: kernels ``W`` from the first layer to the last, each with one column for every output.
        epsilon: radius of each input. For pixels in [0, 1] half the width of the box that is left,
            ``(min(x + eps, 1) - max(x - eps, 0)) / 2``.
        labels: class indices ``y``. With them outputs are the margins ``f_y - f_k`` over the other classes, the next
            class first, then on in a circle, and the last layer is that of the margins.
        masks: ``D``, for every layer but the last which units are active at the input, as 0 and 1 or as booleans.
            Without them all are.

    Returns:
        Tightness in (0, 1], one column for each output or wrong class.

    Raises:
        ValueError: there are no weights, or not as many masks as hidden layers.

    References:
        Mao et al., *Understanding Certified Training with Interval Bound Propagation*, ICLR 2024, arXiv 2306.10426.
    """
    if not weights:
        raise ValueError("weights must have at least one matrix, got none")
    if masks is not None and len(masks) != len(weights) - 1:
        raise ValueError(f"masks must be one less than weights ({len(weights)}), got {len(masks)}")
    *hidden, last = [at_least_float32(kernel) for kernel in weights]
    active = [None] * len(hidden) if masks is None else [at_least_float32(mask) for mask in masks]
    outputs = jnp.broadcast_to(last, (len(epsilon), *last.shape)) if labels is None else _margins(last, labels)
    exact, radius = outputs, at_least_float32(epsilon)
    for kernel, mask in zip(hidden[::-1], active[::-1], strict=True):
        exact = matmul(kernel, exact if mask is None else mask[:, :, None] * exact)
    for kernel, mask in zip(hidden, active, strict=True):
        radius = matmul(radius, jnp.abs(kernel)) * (1.0 if mask is None else mask)
    exact, bound = (
        jnp.einsum("bi,bio->bo", r, jnp.abs(w), precision="highest")
        for r, w in ((at_least_float32(epsilon), exact), (radius, outputs))
    )
    return jnp.maximum(exact, LEAST_WIDTH) / jnp.maximum(bound, LEAST_WIDTH)


@checked
def linear_tightness(weights: Sequence[Float[Array, "_ _"]]) -> Float[Array, ""]:
    r"""Tightness of a linear network with the same radius for all inputs, averaged over the outputs.

    Args:
        weights: kernels from the first layer to the last, each with one column for every output.

    Returns:
        The mean ratio, in (0, 1]; 1 for a single layer.

    Raises:
        ValueError: there are no weights.

    References:
        Mao et al., *Understanding Certified Training with Interval Bound Propagation*, ICLR 2024, arXiv 2306.10426.
    """
    return jnp.mean(propagation_tightness(weights, jnp.ones([1, len(weights[0]) if weights else 0])))


@checked
def initial_tightness(width: ScalarLike) -> Float[Array, ""]:
    r"""Tightness of two layers drawn from a normal distribution.

    .. math:: \frac{\sqrt\pi\, \Gamma((d + 1) / 2)}{d\, \Gamma(d / 2)} \approx \sqrt{\frac{\pi}{2 d}}

    the ratio of the expected widths. With every further layer it shrinks by about the same factor.

    Args:
        width: ``d >= 1``, units between the two layers.

    Returns:
        The tightness, in (0, 1].

    Raises:
        ValueError: ``width`` is below 1.

    References:
        Mao et al., *Understanding Certified Training with Interval Bound Propagation*, ICLR 2024, arXiv 2306.10426.
    """
    check_range("width", width, "[1, inf)")
    d = at_least_float32(jnp.asarray(width))
    half = d / 2
    exact = jnp.exp(jax.lax.lgamma(half + 0.5) - jax.lax.lgamma(half))
    # Logarithms of large factorials differ by less than float32 resolves.
    series = jnp.sqrt(half) * (1 - 1 / (8 * half) + 1 / (128 * half**2))
    return jnp.sqrt(jnp.pi) * jnp.where(half < 16, exact, series) / d


@checked
def sign_condition(
    first: Float[Array, "inputs hidden"], second: Float[Array, "hidden outputs"]
) -> Bool[Array, "inputs outputs"]:
    r"""Where interval bounds of two linear layers are exact: all paths from input to output have one sign.

    .. math:: W^1_{jk} W^2_{ki} \ge 0 \text{ for all } k, \quad \text{or} \le 0 \text{ for all } k

    Interval bounds of an output are exact for all radii if and only if it holds for every input. It is a strong
    condition: each pair of input and output fixes signs for the whole hidden layer.

    Args:
        first: kernel of the first layer.
        second: kernel of the second.

    Returns:
        Whether the condition holds, for each input and output.

    References:
        Mao et al., *Understanding Certified Training with Interval Bound Propagation*, ICLR 2024, arXiv 2306.10426.
    """

    def some(a, b):
        return (a.astype(jnp.float32) @ b.astype(jnp.float32)) > 0

    first, second = jnp.asarray(first), jnp.asarray(second)
    positive = some(first > 0, second > 0) | some(first < 0, second < 0)
    negative = some(first > 0, second < 0) | some(first < 0, second > 0)
    return ~(positive & negative)


def _margins(kernel, labels):
    """For each example the columns of its label minus those of the other classes."""
    classes = kernel.shape[1]
    others = (labels[:, None] + jnp.arange(1, classes)) % classes
    rows = kernel.T
    return (rows[labels][:, None, :] - rows[others]).mT
