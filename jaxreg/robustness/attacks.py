"""Attacks: small changes of the inputs that raise a loss most.

The change of each example is confined to a ball around it, and the result to a box such as pixels in [0, 1]. Networks
are trained against these attacks and measured by them: an attack bounds the worst loss from below, as
:mod:`jaxreg.robustness.interval_bounds` does from above.

The network must treat the examples of a batch apart: batch normalization, for instance, with its running statistics.
Which loss is attacked is free, so are its targets: class indices, or whatever else belongs to the examples.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jaxreg.axes import per_example
from jaxreg.linalg import root
from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, PRNGKeyArray, PyTree, ScalarLike, checked
from jaxreg.validation import check_ascending, check_range

Limit = ScalarLike | Float[Array, "..."]

GAUSSIAN_START = 0.001
"""Standard deviation of the start of TRADES and MTARD."""


@checked
def fgsm(
    apply_fn: Callable[[Any, Any], Any],
    params: PyTree,
    inputs: Float[Array, "batch *shape"],
    targets: PyTree,
    *,
    epsilon: ScalarLike,
    norm: Literal["linf", "l2"] = "linf",
    loss_fn: Callable[[Any, Any], Any] = optax.softmax_cross_entropy_with_integer_labels,
    bounds: tuple[Limit, Limit] | None = None,
) -> Float[Array, "batch *shape"]:
    r"""Fast gradient (sign) method: one step along the gradient, to the edge of the ball.

    .. math:: x + \epsilon \operatorname{sign} \nabla_x L \quad (\ell_\infty), \qquad
        x + \epsilon\, \nabla_x L / \lVert \nabla_x L \rVert_2 \quad (\ell_2)

    >>> import jax.numpy as jnp
    >>> from jaxreg.robustness import fgsm
    >>> weights = jnp.array([[1.0, -1.0], [0.0, 0.5]])
    >>> print(fgsm(lambda w, x: x @ w, weights, jnp.zeros([1, 2]), jnp.array([0]), epsilon=0.1))
    [[-0.1  0.1]]

    Args:
        apply_fn: from parameters and inputs to outputs such as logits.
        params: of the network.
        inputs: ``x``, examples first, within ``bounds``.
        targets: what ``loss_fn`` compares the outputs with, class indices for the default.
        epsilon: ``epsilon >= 0``, radius of the ball (paper: 0.25 for MNIST; 8/255 is usual for CIFAR-10).
        norm: of the ball.
        loss_fn: ``L``, from outputs, at least float32, and targets to the loss of each example.
        bounds: least and largest value of an input, numbers or arrays that broadcast against an example.

    Returns:
        The changed inputs, in the dtype of ``inputs``. No gradient flows through them.

    Raises:
        ValueError: ``epsilon`` is negative, ``bounds`` are not in ascending order, or ``loss_fn`` does not return one
            loss per example.

    References:
        Goodfellow et al., *Explaining and Harnessing Adversarial Examples*, ICLR 2015, arXiv 1412.6572.
    """
    _check(epsilon, bounds)
    params, inputs, targets = jax.lax.stop_gradient((params, inputs, targets))
    x = at_least_float32(inputs)
    gradient = jax.grad(lambda x: jnp.sum(_losses(loss_fn, apply_fn, params, x, targets)))(x)
    changed = _into_bounds(x + epsilon * _steepest(gradient, norm), bounds)
    return jax.lax.stop_gradient(changed).astype(inputs.dtype)


@checked
def pgd(
    apply_fn: Callable[[Any, Any], Any],
    params: PyTree,
    inputs: Float[Array, "batch *shape"],
    targets: PyTree,
    key: PRNGKeyArray,
    *,
    epsilon: ScalarLike,
    step_size: ScalarLike,
    steps: int = 10,
    restarts: int = 1,
    norm: Literal["linf", "l2"] = "linf",
    loss_fn: Callable[[Any, Any], Any] = optax.softmax_cross_entropy_with_integer_labels,
    bounds: tuple[Limit, Limit] | None = None,
    random_start: Literal["uniform", "gaussian"] | None = "uniform",
) -> Float[Array, "batch *shape"]:
    r"""Projected gradient ascent: the strongest attack by gradients alone.

    .. math:: x_{t+1} = \Pi_{B_\epsilon(x)} \bigl(x_t + \alpha\, d(\nabla_{x_t} L)\bigr), \qquad
        d(g) = \operatorname{sign} g \;(\ell_\infty) \text{ or } g / \lVert g \rVert_2 \;(\ell_2)

    Of all points on the way, starts included, each example keeps that of the largest loss: more steps and more
    restarts never make an attack weaker.

    >>> import jax, jax.numpy as jnp
    >>> from jaxreg.robustness import pgd
    >>> weights, images, labels = jnp.array([[1.0, -1.0], [0.0, 0.5]]), jnp.zeros([1, 2]), jnp.array([0])
    >>> print(pgd(lambda w, x: x @ w, weights, images, labels, jax.random.key(0), epsilon=0.1, step_size=0.05))
    [[-0.1  0.1]]

    Args:
        apply_fn: from parameters and inputs to outputs such as logits.
        params: of the network.
        inputs: ``x``, examples first, within ``bounds``.
        targets: what ``loss_fn`` compares the outputs with, class indices for the default.
        key: of the random starts.
        epsilon: ``epsilon >= 0``, radius of the ball (paper: 0.3 for MNIST, 8/255 for CIFAR-10).
        step_size: ``alpha > 0`` (paper: 0.01 with 40 steps for MNIST, 2/255 with 7 to 20 for CIFAR-10).
        steps: number of steps, at least 1.
        restarts: number of starts, at least 1; they run one after the other.
        norm: of the ball.
        loss_fn: ``L``, from outputs, at least float32, and targets to the loss of each example.
        bounds: least and largest value of an input, numbers or arrays that broadcast against an example.
        random_start: "uniform" in the ball; "gaussian" near the input, with standard deviation 0.001; None at the
            input, where some losses (a distance from the clean outputs) have no gradient.

    Returns:
        The changed inputs, in the dtype of ``inputs``. No gradient flows through them.

    Raises:
        ValueError: ``epsilon``, ``step_size``, ``steps`` or ``restarts`` is out of its range, ``bounds`` are not in
            ascending order, or ``loss_fn`` does not return one loss per example.

    References:
        Madry et al., *Towards Deep Learning Models Resistant to Adversarial Attacks*, ICLR 2018, arXiv 1706.06083.
    """
    _check(epsilon, bounds)
    check_range("step_size", step_size, "(0, inf)")
    check_range("steps", steps, "[1, inf)")
    check_range("restarts", restarts, "[1, inf)")
    params, inputs, targets = jax.lax.stop_gradient((params, inputs, targets))
    centre = at_least_float32(inputs)

    def losses(x):
        values = _losses(loss_fn, apply_fn, params, x, targets)
        return jnp.sum(values), values

    def project(x):
        return project_to_ball(x, centre, epsilon=epsilon, norm=norm, bounds=bounds)

    def keep_worse(x, values, worst, worst_values):
        worse = values > worst_values
        return jnp.where(per_example(worse, x), x, worst), jnp.where(worse, values, worst_values)

    def step(carry, _):
        x, worst, worst_values = carry
        (_, values), gradient = jax.value_and_grad(losses, has_aux=True)(x)
        worst, worst_values = keep_worse(x, values, worst, worst_values)
        return (project(x + step_size * _steepest(gradient, norm)), worst, worst_values), None

    def restart(carry, key):
        start = project(centre + _start(key, centre, epsilon, norm, random_start))
        (x, worst, worst_values), _ = jax.lax.scan(step, (start, *carry), length=steps)
        return keep_worse(x, losses(x)[1], worst, worst_values), None

    values = jax.eval_shape(lambda x: losses(x)[1], centre)
    nothing = centre, jnp.full(values.shape, -jnp.inf, values.dtype)
    keys = jax.random.split(key, restarts)
    # A loop of one would only take longer to compile.
    (worst, _), _ = restart(nothing, keys[0]) if restarts == 1 else jax.lax.scan(restart, nothing, keys)
    return jax.lax.stop_gradient(worst).astype(inputs.dtype)


@checked
def project_to_ball(
    inputs: Float[Array, "batch *shape"],
    centre: Float[Array, "batch *shape"],
    *,
    epsilon: ScalarLike,
    norm: Literal["linf", "l2"] = "linf",
    bounds: tuple[Limit, Limit] | None = None,
) -> Float[Array, "batch *shape"]:
    r"""Moves inputs to the nearest point of a ball, and then into the box of all inputs.

    .. math:: \Pi(x) = c + \operatorname{clip}(x - c, -\epsilon, \epsilon) \;(\ell_\infty), \qquad
        c + (x - c) \min(1, \epsilon / \lVert x - c \rVert_2) \;(\ell_2)

    Args:
        inputs: ``x``, examples first.
        centre: ``c``, within ``bounds``. The second move then leads nearer to it, so that the result is in both.
        epsilon: ``epsilon >= 0``, radius of the ball.
        norm: of the ball.
        bounds: least and largest value of an input, numbers or arrays that broadcast against an example.

    Returns:
        The moved inputs, at least float32.

    Raises:
        ValueError: ``epsilon`` is negative, or ``bounds`` are not in ascending order.

    References:
        Madry et al., *Towards Deep Learning Models Resistant to Adversarial Attacks*, ICLR 2018, arXiv 1706.06083.
    """
    _check(epsilon, bounds)
    x, centre = at_least_float32(inputs), at_least_float32(centre)
    if norm == "linf":
        return _into_bounds(jnp.clip(x, centre - epsilon, centre + epsilon), bounds)
    length = _length(x - centre)
    inside = length <= epsilon
    shrink = jnp.where(inside, 1.0, epsilon / jnp.where(inside, 1.0, length))
    return _into_bounds(centre + shrink * (x - centre), bounds)


def _check(epsilon, bounds):
    check_range("epsilon", epsilon, "[0, inf)")
    if bounds is not None:
        check_ascending("bounds", bounds)


def _losses(loss_fn, apply_fn, params, x, targets):
    values = loss_fn(at_least_float32(apply_fn(params, x)), targets)
    if values.shape != x.shape[:1]:
        raise ValueError(f"loss_fn must return one loss per example, shape {x.shape[:1]}, got {values.shape}")
    return values


def _into_bounds(x, bounds):
    return x if bounds is None else jnp.clip(x, *bounds)


def _length(x):
    return root(jnp.sum(jnp.square(x), axis=range(1, x.ndim), keepdims=True))


def _steepest(gradient, norm):
    """The change of unit norm that raises a linear function most; none where the gradient is zero."""
    if norm == "linf":
        return jnp.sign(gradient)
    # Where a network is sure, squares of its gradients underflow: the largest entry is brought to one first.
    largest = jnp.max(jnp.abs(gradient), axis=range(1, gradient.ndim), keepdims=True)
    scaled = gradient / jnp.where(largest > 0, largest, 1.0)
    length = _length(scaled)
    return scaled / jnp.where(length > 0, length, 1.0)


def _start(key, centre, epsilon, norm, random_start):
    if random_start is None:
        return jnp.zeros_like(centre)
    if random_start == "gaussian":
        return GAUSSIAN_START * jax.random.normal(key, centre.shape, centre.dtype)
    if norm == "linf":
        return epsilon * jax.random.uniform(key, centre.shape, centre.dtype, -1.0, 1.0)
    key_direction, key_radius = jax.random.split(key)
    direction = _steepest(jax.random.normal(key_direction, centre.shape, centre.dtype), norm)
    features = centre.size // max(len(centre), 1)
    radius = jax.random.uniform(key_radius, (len(centre),), centre.dtype) ** (1 / max(features, 1))
    return epsilon * per_example(radius, centre) * direction
