"""What trajectory matching starts from: experts that move smoothly, and real examples that stand for many.

Steep early progress is hard to follow for a student with few examples. AST's experts have a loss that is held back in
the first epochs and inputs that matter evenly, and the synthetic examples start near the centres of clusters. What
is done with them is in :mod:`jaxreg.data.trajectory_matching`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxreg.linalg import matmul
from jaxreg.precision import at_least_float32, widened
from jaxreg.typing import Array, Float, Int, PRNGKeyArray, PyTree, ScalarLike, checked
from jaxreg.validation import check_range

_HELD_BACK = (0.5, 0.5, 0.55, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)


@checked
def clip_coefficients(epoch: ScalarLike | Int[Array, "*epochs"]) -> Float[Array, "*epochs"]:
    """What the loss of an expert is multiplied by: from 0.5 in the first epoch, rising to 1 in the twelfth.

    Args:
        epoch: epochs done, from 0.

    Returns:
        The factor of each epoch.

    References:
        Shen et al., *Efficient Dataset Distillation through Alignment with Smooth and High-Quality Expert
        Trajectories*, 2023, arXiv 2310.10541 (values: authors' code).
    """
    return jnp.append(jnp.array(_HELD_BACK), 1.0)[jnp.clip(jnp.asarray(epoch, jnp.int32), 0, len(_HELD_BACK))]


@checked
def input_gradient_penalty(
    apply_fn: Callable[[Any, Any], Any],
    params: PyTree,
    inputs: Float[Array, "batch *shape"],
    labels: Int[Array, "batch"],
) -> Float[Array, "batch"]:
    r"""How far the cross-entropy's slope in the input is from one.

    .. math:: (\|\nabla_x \ell(\theta, x, y)\| - 1)^2

    Args:
        apply_fn: from parameters and inputs to logits.
        params: ``theta``.
        inputs: ``x``.
        labels: ``y``.

    Returns:
        The penalty of each example, at least float32.

    References:
        Shen et al., *Efficient Dataset Distillation through Alignment with Smooth and High-Quality Expert
        Trajectories*, 2023, arXiv 2310.10541 (the form is our choice).
    """

    def total(x):
        logits = at_least_float32(apply_fn(params, x))
        return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    slopes = at_least_float32(jax.grad(total)(inputs)).reshape(len(inputs), -1)
    # The slope of a root at zero is infinite, and sure predictions have no slope in float32.
    return jnp.square(jnp.sqrt(jnp.sum(jnp.square(slopes), axis=-1) + 1e-12) - 1.0)


@checked
def train_expert(
    key: PRNGKeyArray,
    apply_fn: Callable[[Any, Any], Any],
    params: PyTree,
    inputs: Float[Array, "examples *shape"],
    labels: Int[Array, "examples"],
    *,
    epochs: int,
    batch_size: int = 256,
    learning_rate: ScalarLike = 0.01,
    momentum: ScalarLike = 0.9,
    weight_decay: ScalarLike = 1e-3,
    clip: bool = True,
    gradient_penalty: ScalarLike = 0.0,
) -> PyTree:
    r"""Trains a network and keeps its parameters after every epoch.

    .. math:: c_e\, \ell(\theta, x, y) + \gamma\, (\|\nabla_x \ell(\theta, x, y)\| - 1)^2

    by stochastic gradient descent with momentum and weight decay, at 0.7 of the learning rate in the second half.

    Args:
        key: of the order of the examples, drawn anew in every epoch.
        apply_fn: from parameters and inputs to logits.
        params: ``theta`` at the start.
        inputs: ``x``.
        labels: ``y``.
        epochs: at least 1 (authors' code: 50).
        batch_size: in [1, examples] (authors' code: 256); what is left over at the end of an epoch is not used.
        learning_rate: positive (authors' code: 0.003 to 0.01).
        momentum: in [0, 1) (authors' code: 0.9).
        weight_decay: at least 0, added to the gradient (authors' code: 0.001).
        clip: multiply the loss by :func:`clip_coefficients`.
        gradient_penalty: ``gamma >= 0``, weight of :func:`input_gradient_penalty`.

    Returns:
        The parameters with a leading axis of ``epochs + 1``, the start first.

    Raises:
        ValueError: a number is outside its range.

    References:
        Shen et al., *Efficient Dataset Distillation through Alignment with Smooth and High-Quality Expert
        Trajectories*, 2023, arXiv 2310.10541.
    """
    check_range("epochs", epochs, "[1, inf)")
    check_range("batch_size", batch_size, f"[1, {len(inputs)}]")
    check_range("learning_rate", learning_rate, "(0, inf)")
    check_range("momentum", momentum, "[0, 1)")
    check_range("weight_decay", weight_decay, "[0, inf)")
    check_range("gradient_penalty", gradient_penalty, "[0, inf)")
    inputs, labels = jnp.asarray(inputs), jnp.asarray(labels)
    batches = len(inputs) // batch_size

    penalized = isinstance(gradient_penalty, Array) or gradient_penalty != 0

    def loss(params, x, y, coefficient):
        logits = at_least_float32(apply_fn(params, x))
        losses = coefficient * optax.softmax_cross_entropy_with_integer_labels(logits, y)
        if penalized:  # it takes a second pass
            losses += gradient_penalty * input_gradient_penalty(apply_fn, params, x, y)
        return jnp.mean(losses)

    def epoch(carry, n):
        coefficient = clip_coefficients(n) if clip else 1.0
        rate = learning_rate * jnp.where(2 * n < epochs, 1.0, 0.7)
        order = jax.random.permutation(jax.random.fold_in(key, n), len(inputs))

        def step(carry, chosen):
            params, velocity = carry
            gradient = jax.grad(loss)(params, inputs[chosen], labels[chosen], coefficient)
            velocity = jax.tree.map(
                lambda v, g, p: (momentum * v + g + weight_decay * p).astype(v.dtype), velocity, gradient, params
            )
            params = jax.tree.map(lambda p, v: (p - rate * v).astype(p.dtype), params, velocity)
            return (params, velocity), None

        carry, _ = jax.lax.scan(step, carry, order[: batches * batch_size].reshape(batches, batch_size))
        return carry, carry[0]

    velocity = jax.tree.map(jnp.zeros_like, widened(params))
    _, path = jax.lax.scan(epoch, (params, velocity), jnp.arange(epochs))
    return jax.tree.map(lambda first, rest: jnp.concatenate([jnp.asarray(first)[None], rest]), params, path)


@checked
def representative_init(
    key: PRNGKeyArray,
    inputs: Float[Array, "examples *shape"],
    labels: Int[Array, "examples"],
    per_class: int,
    *,
    num_classes: int,
    iterations: int = 20,
) -> Float[Array, "num_classes per_class *shape"]:
    """Of every class the real examples nearest to the centres of its clusters (k-means).

    Args:
        key: of the first centres, drawn far from each other (k-means++).
        inputs: real examples.
        labels: their classes, at least ``per_class`` of each. Of a class with fewer, examples come again if the labels
            are traced.
        per_class: clusters of each class, at least 1.
        num_classes: at least 1.
        iterations: of k-means, at least 0.

    Returns:
        Examples by class, no example twice.

    Raises:
        ValueError: a number is outside its range, or a class has too few examples.

    References:
        Shen et al., *Efficient Dataset Distillation through Alignment with Smooth and High-Quality Expert
        Trajectories*, 2023, arXiv 2310.10541.
    """
    check_range("per_class", per_class, f"[1, {len(inputs)}]")
    check_range("num_classes", num_classes, "[1, inf)")
    check_range("iterations", iterations, "[0, inf)")
    points = at_least_float32(inputs).reshape(len(inputs), -1)
    if not isinstance(labels, jax.core.Tracer):
        counts = np.sum(np.asarray(labels) == np.arange(num_classes)[:, None], axis=1)
        if counts.min() < per_class:
            raise ValueError(
                f"every class must have at least per_class={per_class} examples, "
                f"got {counts.min()} of class {counts.argmin()}"
            )
    members = jnp.asarray(labels) == jnp.arange(num_classes)[:, None]
    chosen = jax.vmap(lambda key, member: _nearest_to_centres(key, points, member, per_class, iterations))
    return jnp.asarray(inputs)[chosen(jax.random.split(key, num_classes), members)]


def _nearest_to_centres(key, points, member, number, iterations):
    """The positions of the members nearest to the centres of clusters, each once."""

    def add_centre(n, centres):
        squares = jnp.min(jnp.where(jnp.arange(number) < n, _squares(points, centres), jnp.inf), axis=-1)
        weights = jnp.where(n == 0, 1.0, squares)
        # Where no distance is left all members are as good.
        weights = jnp.where(member, jnp.where(jnp.sum(weights * member) > 0, weights, 1.0), 0.0)
        drawn = jax.random.categorical(jax.random.fold_in(key, n), jnp.log(weights))
        return centres.at[n].set(points[drawn])

    def move(_, centres):
        nearest = jax.nn.one_hot(jnp.argmin(_squares(points, centres), axis=-1), number, dtype=points.dtype)
        nearest *= member[:, None]
        count = jnp.sum(nearest, axis=0)[:, None]
        totals = matmul(nearest.T, points)
        return jnp.where(count > 0, totals / jnp.maximum(count, 1.0), centres)

    centres = jax.lax.fori_loop(0, number, add_centre, jnp.zeros([number, points.shape[1]], points.dtype))
    squares = _squares(points, jax.lax.fori_loop(0, iterations, move, centres))

    def choose(free, column):
        free = jnp.where(jnp.any(free), free, member)
        position = jnp.argmin(jnp.where(free, column, jnp.inf))
        return free.at[position].set(False), position

    return jax.lax.scan(choose, member, squares.T)[1]


def _squares(points, centres):
    products = matmul(points, centres.T)
    squares = jnp.sum(jnp.square(points), axis=-1)[:, None] - 2 * products + jnp.sum(jnp.square(centres), axis=-1)
    return jnp.maximum(squares, 0.0)  # rounding errors may be negative
