"""Dataset distillation by trajectories: synthetic examples that lead a student along an expert's path.

Experts are trained on the whole data set and their weights kept after every epoch. A student starts at an expert's
weights, is trained for some steps on the synthetic examples, and these are changed so that it arrives where the expert
was some epochs later. AST makes that easier: experts that move smoothly and real examples near cluster centres to start
from (:mod:`jaxreg.data.smooth_experts`), students balanced between early and late starts, targets on the way, and small
perturbations of the start.

One step of distillation from epoch ``t``::

    start = jax.tree.map(lambda leaf: leaf[t], experts)
    path = inner_loop(apply_fn, perturb_weights(key, start), synthetic, learning_rate, steps=20,
                      loss_scale=balance_factor(t, max_start=25))
    targets = jax.tree.map(lambda leaf: leaf[t + jnp.array([1, 3])], experts)
    loss = matching_loss(start, targets, path, checkpoints=(7, 20))
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxreg.precision import at_least_float32, widened
from jaxreg.typing import Array, Float, PRNGKeyArray, PyTree, ScalarLike, checked
from jaxreg.validation import check_range


@checked
def inner_loop(
    apply_fn: Callable[[Any, Any], Any],
    params: PyTree,
    synthetic: Float[Array, "classes per_class *shape"],
    learning_rate: ScalarLike,
    *,
    steps: int,
    momentum: ScalarLike = 0.9,
    loss_scale: ScalarLike = 1.0,
) -> PyTree:
    r"""Trains a student on all synthetic examples at once, by gradient descent with momentum.

    .. math:: v \leftarrow \mu v + \gamma \nabla_\theta L(\theta, S), \qquad \theta \leftarrow \theta - \eta v

    It can be differentiated with respect to everything but ``steps``; activations are computed again on the way back,
    so that memory grows with the parameters only.

    Args:
        apply_fn: from parameters and inputs to logits.
        params: ``theta`` at the start.
        synthetic: ``S``, by class: the label of ``synthetic[c]`` is ``c``.
        learning_rate: ``eta``, usually learned together with the examples.
        steps: at least 1 (authors' code: 20).
        momentum: ``mu`` in [0, 1) (authors' code: 0.9).
        loss_scale: ``gamma``, from :func:`balance_factor`.

    Returns:
        The parameters along the way, with a leading axis of ``steps + 1``, the start first.

    Raises:
        ValueError: ``steps`` or ``momentum`` is outside its range.

    References:
        Shen et al., *Efficient Dataset Distillation through Alignment with Smooth and High-Quality Expert
        Trajectories*, 2023, arXiv 2310.10541; after Cazenavette et al., *Dataset Distillation by Matching Training
        Trajectories*, CVPR 2022, arXiv 2203.11932.
    """
    check_range("steps", steps, "[1, inf)")
    check_range("momentum", momentum, "[0, 1)")
    labels = jnp.repeat(jnp.arange(synthetic.shape[0]), synthetic.shape[1])
    inputs = synthetic.reshape(-1, *synthetic.shape[2:])

    def loss(params):
        logits = at_least_float32(apply_fn(params, inputs))
        return loss_scale * optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.checkpoint
    def step(carry, _):
        params, velocity = carry
        velocity = jax.tree.map(lambda v, g: (momentum * v + g).astype(v.dtype), velocity, jax.grad(loss)(params))
        params = jax.tree.map(lambda p, v: (p - learning_rate * v).astype(p.dtype), params, velocity)
        return (params, velocity), params

    velocity = jax.tree.map(jnp.zeros_like, widened(params))
    _, path = jax.lax.scan(step, (params, velocity), length=steps)
    return jax.tree.map(lambda first, rest: jnp.concatenate([jnp.asarray(first)[None], rest]), params, path)


@checked
def matching_loss(
    start: PyTree, targets: PyTree, student_path: PyTree, *, checkpoints: Sequence[int]
) -> Float[Array, ""]:
    r"""How far a student is from where the expert went, compared with how far the expert went.

    .. math:: \sum_k \frac{\|\theta_{s_k} - \theta^*_{t + e_k}\|^2}{\|\theta^*_t - \theta^*_{t + e_k}\|^2}

    With the student's last step as the only checkpoint it is the loss of plain trajectory matching.

    Args:
        start: the expert's parameters ``theta*_t``.
        targets: its parameters ``theta*_{t + e_k}`` some epochs later, with a leading axis over ``k``.
        student_path: from :func:`inner_loop`.
        checkpoints: the student's step ``s_k`` for each target, in ``[0, steps]``.

    Returns:
        The sum over checkpoints: 0 at the targets, and 1 for each at which a student is still at the start. No
        gradient flows through start and targets.

    Raises:
        ValueError: ``checkpoints`` are not as many as the targets, or a step is not on the path.

    References:
        Shen et al., *Efficient Dataset Distillation through Alignment with Smooth and High-Quality Expert
        Trajectories*, 2023, arXiv 2310.10541.
    """
    length, number = len(jax.tree.leaves(student_path)[0]), len(jax.tree.leaves(targets)[0])
    if len(checkpoints) != number:
        raise ValueError(f"checkpoints must be {number}, as many as the targets, got {len(checkpoints)}")
    for step in checkpoints:
        check_range("checkpoints", step, f"[0, {length - 1}]")
    steps = jnp.asarray(checkpoints)
    start, targets = jax.lax.stop_gradient((start, targets))

    def squares(a, b):
        differences = jax.tree.map(lambda x, y: at_least_float32(x) - at_least_float32(y), a, b)
        return sum(jnp.sum(jnp.square(leaf).reshape(number, -1), axis=-1) for leaf in jax.tree.leaves(differences))

    student = jax.tree.map(lambda leaf: leaf[steps], student_path)
    start = jax.tree.map(lambda leaf, like: jnp.broadcast_to(leaf, like.shape), start, targets)
    return jnp.sum(squares(student, targets) / squares(start, targets))


@checked
def balance_factor(start: ScalarLike, *, max_start: ScalarLike = 25) -> Float[Array, ""]:
    r"""The scale of the student's loss by the epoch it starts from: less for early starts, more for late ones.

    .. math:: \log_5(t - m + 8) \text{ if } t \ge m, \qquad 1 / \log_5(m - t + 8) \text{ otherwise}, \qquad
        m = t_{\max} / 2

    Args:
        start: ``t``, the expert's epoch.
        max_start: ``t_max``, the latest, positive (authors' code: 25).

    Returns:
        The factor, about 1.29 at ``t = m``.

    Raises:
        ValueError: ``max_start`` is not positive.

    References:
        Shen et al., *Efficient Dataset Distillation through Alignment with Smooth and High-Quality Expert
        Trajectories*, 2023, arXiv 2310.10541.
    """
    check_range("max_start", max_start, "(0, inf)")
    beyond = jnp.asarray(start) - at_least_float32(jnp.asarray(max_start)) / 2
    factor = jnp.log(jnp.abs(beyond) + 8.0) / jnp.log(5.0)
    return jnp.where(beyond >= 0, factor, 1.0 / factor)


@checked
def perturb_weights(key: PRNGKeyArray, params: PyTree, *, alpha: ScalarLike = 0.5) -> PyTree:
    r"""Moves every tensor of parameters a little, in proportion to its entries.

    .. math:: \theta + \alpha\, \theta \odot d / \|d\|, \qquad d = n \odot b,\; n \sim N(0, 1),\; b \sim \{0, 1\}

    as in the authors' code. The larger a tensor the smaller the relative change, about ``alpha`` over the root of its
    size.

    Args:
        key: of the directions.
        params: ``theta``, floating-point.
        alpha: ``alpha >= 0`` (authors' code: 0.5); 0 changes nothing.

    Returns:
        The perturbed parameters.

    Raises:
        ValueError: ``alpha`` is negative.

    References:
        Shen et al., *Efficient Dataset Distillation through Alignment with Smooth and High-Quality Expert
        Trajectories*, 2023, arXiv 2310.10541.
    """
    check_range("alpha", alpha, "[0, inf)")
    leaves, structure = jax.tree.flatten(params)

    def perturb(leaf, key):
        key_direction, key_kept = jax.random.split(key)
        direction = jax.random.normal(key_direction, leaf.shape) * jax.random.bernoulli(key_kept, shape=leaf.shape)
        length = jnp.maximum(jnp.linalg.norm(direction.ravel()), 1e-12)
        return (leaf * (1.0 + alpha * direction / length)).astype(leaf.dtype)

    keys = jax.random.split(key, max(len(leaves), 1))
    return jax.tree.unflatten(structure, [perturb(*pair) for pair in zip(leaves, keys[: len(leaves)], strict=True)])
