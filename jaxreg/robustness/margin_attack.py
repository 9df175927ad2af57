"""The attack that changes margins most, whatever it does to the loss."""

from collections.abc import Callable
from typing import Any

from jaxreg.losses import margin_change
from jaxreg.precision import at_least_float32
from jaxreg.robustness.attacks import Limit, pgd
from jaxreg.typing import Array, Float, Int, PRNGKeyArray, PyTree, ScalarLike, checked


@checked
def margin_pgd(
    apply_fn: Callable[[Any, Any], Any],
    params: PyTree,
    inputs: Float[Array, "batch *shape"],
    labels: Int[Array, "batch"],
    key: PRNGKeyArray,
    *,
    epsilon: ScalarLike,
    step_size: ScalarLike,
    steps: int = 10,
    bounds: tuple[Limit, Limit] | None = None,
) -> Float[Array, "batch *shape"]:
    r"""The attack of :func:`jaxreg.losses.smooth_adversarial_comp_sum`: PGD on the change of the margins.

    .. math:: \max_{\lVert x' - x \rVert_\infty \le \epsilon} \lVert D(x') - D(x) \rVert_2, \qquad D_k = f_y - f_k

    It starts at random in the ball, for at the input itself the change has no gradient.

    Args:
        apply_fn: from parameters and inputs to logits ``f``.
        params: of the network.
        inputs: ``x``, examples first, within ``bounds``.
        labels: class indices ``y``.
        key: of the start.
        epsilon: ``epsilon >= 0``, radius of the ball (paper: 8/255 for CIFAR-10).
        step_size: positive, length of a step (paper: 2/255 with 10 steps).
        steps: number of steps, at least 1.
        bounds: least and largest value of an input, numbers or arrays that broadcast against an example.

    Returns:
        The changed inputs, in the dtype of ``inputs``. No gradient flows through them.

    Raises:
        ValueError: ``epsilon``, ``step_size`` or ``steps`` is out of its range, or ``bounds`` are not in ascending
            order.

    References:
        Mao et al., *Cross-Entropy Loss Functions: Theoretical Analysis and Applications*, ICML 2023, arXiv 2304.07288.
    """
    clean = at_least_float32(apply_fn(params, inputs))
    return pgd(
        apply_fn,
        params,
        inputs,
        {"clean": clean, "labels": labels},
        key,
        epsilon=epsilon,
        step_size=step_size,
        steps=steps,
        loss_fn=lambda logits, targets: margin_change(logits, targets["clean"], targets["labels"]),
        bounds=bounds,
    )
