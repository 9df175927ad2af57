"""Interval bound propagation, layer by layer.

These are the layers that a network of affine maps and rectified linear units needs, one by one;
:func:`interval_bounds` bounds any function, and does so here. What certifies a classification are margins, and those
are tightest with the last layer merged into them::

    bounds = interval_bounds(lambda x: features.apply(params, x), images - 0.1, images + 0.1)
    margins = robust_margins(kernel, bias, *bounds, labels)
    certified = (margins >= 0).all(-1)
    losses = optax.softmax_cross_entropy_with_integer_labels(-margins, labels)
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxreg.precision import at_least_float32
from jaxreg.robustness.interval_bounds import interval_bounds
from jaxreg.robustness.interval_rules import Bounds
from jaxreg.typing import Array, Float, Int, checked


@checked
def interval_dense(
    lower: Float[Array, "*batch inputs"],
    upper: Float[Array, "*batch inputs"],
    kernel: Float[Array, "inputs outputs"],
    bias: Float[Array, "outputs"] | None = None,
) -> Bounds:
    r"""Bounds of an affine layer, the tightest there are.

    .. math:: c' = c W + b, \qquad r' = r \lvert W \rvert, \qquad c = \tfrac12 (\underline{x} + \overline{x}), \quad
        r = \tfrac12 (\overline{x} - \underline{x})

    Args:
        lower: least inputs.
        upper: largest inputs.
        kernel: ``W``, one column for each output.
        bias: ``b``.

    Returns:
        ``c' - r'`` and ``c' + r'``.

    References:
        Gowal et al., *On the Effectiveness of Interval Bound Propagation for Training Verifiably Robust Models*,
        arXiv 1810.12715.
    """
    return interval_bounds(lambda x: x @ kernel + (0 if bias is None else bias), lower, upper)


@checked
def interval_conv(
    lower: Float[Array, "batch height width inputs"],
    upper: Float[Array, "batch height width inputs"],
    kernel: Float[Array, "rows columns inputs outputs"],
    bias: Float[Array, "outputs"] | None = None,
    *,
    strides: tuple[int, int] = (1, 1),
    padding: str = "SAME",
) -> Bounds:
    r"""Bounds of a convolution, the tightest there are: :func:`interval_dense` with shared weights.

    Args:
        lower: least inputs.
        upper: largest inputs.
        kernel: weights, as flax's convolutions keep them.
        bias: of the output channels.
        strides: of the window.
        padding: "SAME" or "VALID".

    Returns:
        The bounds of the outputs.

    References:
        Gowal et al., *On the Effectiveness of Interval Bound Propagation for Training Verifiably Robust Models*,
        arXiv 1810.12715.
    """

    def convolve(x):
        layout = ("NHWC", "HWIO", "NHWC")
        outputs = jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=layout)
        return outputs + (0 if bias is None else bias)

    return interval_bounds(convolve, lower, upper)


@checked
def interval_relu(lower: Float[Array, "*shape"], upper: Float[Array, "*shape"]) -> Bounds:
    r"""Bounds of a rectified linear unit: both ends rectified.

    Args:
        lower: least inputs.
        upper: largest inputs.

    Returns:
        The bounds of the outputs.

    References:
        Gowal et al., *On the Effectiveness of Interval Bound Propagation for Training Verifiably Robust Models*,
        arXiv 1810.12715.
    """
    return interval_bounds(jax.nn.relu, lower, upper)


@checked
def propagate(
    layers: Sequence[Callable[[Any, Any], Any]],
    params: Sequence[Any],
    lower: Float[Array, "*shape"],
    upper: Float[Array, "*shape"],
) -> tuple[Bounds, ...]:
    r"""Bounds after each of a sequence of layers.

    Args:
        layers: functions of their parameters and what the layer before returns, of any kind.
        params: of each layer.
        lower: least inputs.
        upper: largest inputs.

    Returns:
        The bounds of what each layer returns, in order.

    Raises:
        ValueError: there are more layers than parameters, or fewer.
        NotImplementedError: :func:`interval_bounds` has no rule for something in a layer.

    References:
        Gowal et al., *On the Effectiveness of Interval Bound Propagation for Training Verifiably Robust Models*,
        arXiv 1810.12715.
    """
    if len(layers) != len(params):
        raise ValueError(f"params must be as many as layers ({len(layers)}), got {len(params)}")
    found, bounds = [], Bounds(lower, upper)
    for layer, weights in zip(layers, params, strict=True):
        bounds = interval_bounds(lambda x, layer=layer, weights=weights: layer(weights, x), *bounds)
        found.append(bounds)
    return tuple(found)


@checked
def robust_margins(
    kernel: Float[Array, "features classes"],
    bias: Float[Array, "classes"],
    lower: Float[Array, "*batch features"],
    upper: Float[Array, "*batch features"],
    labels: Int[Array, "*batch"],
) -> Float[Array, "*batch classes"]:
    r"""The least margins of the label over every class, for a linear classifier of features within bounds.

    .. math:: \underline{m}_k = c\, (W_y - W_k) + b_y - b_k - r\, \lvert W_y - W_k \rvert

    with centre ``c`` and radius ``r``. Differences of bounds of the logits would be looser: the features that raise one
    logit move the other as well.

    Args:
        kernel: ``W``, one column for each class.
        bias: ``b``.
        lower: least features.
        upper: largest features.
        labels: class indices ``y`` in ``[0, classes)``.

    Returns:
        Lower bounds of the margins, zero for the label itself, at least float32. An example is certified if none is
        negative; cross-entropy with their negatives for logits bounds that of every input within the bounds.

    References:
        Gowal et al., *On the Effectiveness of Interval Bound Propagation for Training Verifiably Robust Models*,
        arXiv 1810.12715.
    """
    rows, lower, upper = at_least_float32(kernel).T, at_least_float32(lower), at_least_float32(upper)
    differences = rows[labels][..., None, :] - rows
    centre = jnp.einsum("...f,...kf->...k", (lower + upper) / 2, differences)
    radius = jnp.einsum("...f,...kf->...k", (upper - lower) / 2, jnp.abs(differences))
    return centre + bias[labels][..., None] - bias - radius
