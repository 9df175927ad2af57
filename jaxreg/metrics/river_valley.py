"""The river valley: a loss of two parameters in which progress and oscillation can be told apart.

Along ``x`` runs a river that falls slowly; ``y`` is the height up the hillsides. Gradient noise keeps the iterate on
the hillsides, the higher the larger the learning rate, and the loss shows the sum of both.
"""

from collections.abc import Callable
from typing import NamedTuple

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, ScalarLike, checked
from jaxreg.validation import check_range


class RiverProgress(NamedTuple):
    """Result of :func:`river_progress`: the two parts of the loss.

    Attributes:
        river: ``-slope * x``, what is left when the oscillation is gone. It falls with progress.
        hill: ``h(x) (y - c(x))^2 / 2 >= 0``, the part that a decay of the learning rate takes away.
    """

    river: Float[Array, "*batch"]
    hill: Float[Array, "*batch"]


@checked
def river_valley_loss(
    params: Float[Array, "*batch 2"],
    *,
    sharpness: ScalarLike | Callable,
    slope: ScalarLike,
    center: ScalarLike | Callable = 0.0,
) -> Float[Array, "*batch"]:
    r"""Loss of a straight or winding river valley.

    .. math:: L(x, y) = -s x + \tfrac12 h(x)\,(y - c(x))^2

    Gradient descent at learning rates :math:`\eta_t` with noise of variance :math:`\sigma^2` on the gradient moves
    :math:`x` by :math:`s \sum_t \eta_t` where :math:`h` and :math:`c` are constant, and :math:`(y - c)^2` settles at
    :math:`\eta \sigma^2 / (h (2 - \eta h))` on average.

    Args:
        params: ``x`` and ``y`` in the last axis.
        sharpness: ``h >= 0``, curvature of the hillsides, a number or a function of ``x``.
        slope: ``s``, how fast the river falls.
        center: ``c``, where the river is, a number or a function of ``x``.

    Returns:
        The loss of each point, at least float32.

    Raises:
        ValueError: ``sharpness`` is a negative number.

    References:
        Wen et al., *Understanding Warmup-Stable-Decay Learning Rates: A River Valley Loss Landscape Perspective*,
        ICLR 2025, arXiv 2410.05192.
    """
    river, hill = river_progress(params, sharpness=sharpness, slope=slope, center=center)
    return river + hill


@checked
def river_progress(
    params: Float[Array, "*batch 2"],
    *,
    sharpness: ScalarLike | Callable,
    slope: ScalarLike,
    center: ScalarLike | Callable = 0.0,
) -> RiverProgress:
    """Splits :func:`river_valley_loss` into the progress along the river and the oscillation across it.

    Args:
        params: ``x`` and ``y`` in the last axis.
        sharpness: see :func:`river_valley_loss`, as are the other arguments.
        slope: how fast the river falls.
        center: where the river is.

    Returns:
        The two parts; their sum is the loss.

    Raises:
        ValueError: ``sharpness`` is a negative number.

    References:
        Wen et al., *Understanding Warmup-Stable-Decay Learning Rates: A River Valley Loss Landscape Perspective*,
        ICLR 2025, arXiv 2410.05192.
    """
    check_range("sharpness", sharpness, "[0, inf)")
    params = at_least_float32(params)
    x, y = params[..., 0], params[..., 1]
    h = sharpness(x) if callable(sharpness) else sharpness
    c = center(x) if callable(center) else center
    return RiverProgress(river=-slope * x, hill=0.5 * h * (y - c) ** 2)
