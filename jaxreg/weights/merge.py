r"""Merging models that were fine-tuned from one start, by their task vectors.

What fine-tuning changed is the task vector of a task. Adding up task vectors gives one model for all tasks, as far as
they do not pull the same parameter to different values. PCB-merging lets the parameters compete: within a task the
large ones count for more, between tasks those that agree; the losers are dropped.

Models of several tasks are one stacked tree with a leading axis::

    finetuned = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
"""

import math
import numbers
from typing import Literal

import jax
import jax.numpy as jnp

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, PRNGKeyArray, PyTree, ScalarLike, checked
from jaxreg.validation import check_range, check_same_shapes
from jaxreg.weights.task_vectors import add_task_vector, flatten_stack, task_vector

Inter = Literal["sum", "pair"]


@checked
def pcb_scores(
    task_vectors: Float[Array, "tasks size"],
    *,
    ratio: ScalarLike = 0.1,
    clip_quantile: ScalarLike = 1e-4,
    inter: Inter = "sum",
) -> Float[Array, "tasks size"]:
    r"""How much each parameter of each task counts when task vectors are merged: PCB's competition.

    With :math:`\operatorname{norm}` the min-max normalization over the parameters of a task:

    .. math::
        \tilde\tau_i &= \operatorname{sign}(\tau_i) \operatorname{clip}_{[q, 1-q]} |\tau_i|, \qquad
        \beta_i = \exp\bigl(N \operatorname{norm}(|\tilde\tau_i|)^2\bigr)\,
            \tanh\bigl(\tau_i \textstyle\sum_j \tau_j\bigr) \\
        s_i &= \operatorname{norm}\bigl(\max(\beta_i, \operatorname{quantile}_{1-r} \beta_i)\bigr)

    The exponential is the competition within the task (intra-balancing), the hyperbolic tangent that between tasks
    (inter-balancing), the maximum drops and the last normalization rescales.

    Args:
        task_vectors: ``tau``, a row for each of ``N`` tasks.
        ratio: ``r`` in (0, 1], the share of parameters *kept* (authors' code: 0.1; 0.05 with searched strengths). The
            smallest kept one is rescaled to zero.
        clip_quantile: ``q`` in [0, 0.5), of a task's sizes, to which they are clipped for the first factor (authors'
            code: 1e-4; 0.01 for vision models).
        inter: ``"sum"`` as above, or the authors' variant for vision models, ``"pair"``:
            :math:`\sum_j \tanh(n_i n_j)` with :math:`n_i = \operatorname{sign}(\tau_i)
            \operatorname{norm}(|\tilde\tau_i|)`.

    Returns:
        Scores in [0, 1], exactly 0 for dropped parameters. A task whose parameters are all alike keeps none.

    Raises:
        ValueError: ``ratio`` or ``clip_quantile`` is outside its range.

    References:
        Du et al., *Parameter Competition Balancing for Model Merging*, NeurIPS 2024, arXiv 2410.02396.
    """
    check_range("ratio", ratio, "(0, 1]")
    check_range("clip_quantile", clip_quantile, "[0, 0.5)")
    tau = at_least_float32(task_vectors)
    size = _min_max(jnp.abs(_clip_sizes(tau, clip_quantile)))
    if inter == "sum":
        agreement = jnp.tanh(tau * jnp.sum(tau, axis=0))
    else:
        signed = jnp.sign(tau) * size
        agreement = sum(jnp.tanh(signed * other) for other in signed)
    # The last normalization cancels a factor of each task, here the largest that tasks agree on: exp(N) overflows.
    exponent = len(tau) * jnp.square(size)
    largest = jnp.max(exponent, axis=1, keepdims=True, initial=0.0, where=agreement > 0)
    beta = jnp.exp(jnp.minimum(exponent - largest, 80.0)) * agreement
    smallest = _ranked(beta, _whole_part(beta.shape[1], 1.0 - ratio))
    return _min_max(jnp.maximum(beta, smallest))


@checked
def pcb_parts(
    pretrained: PyTree,
    finetuned: PyTree,
    *,
    ratio: ScalarLike = 0.1,
    clip_quantile: ScalarLike = 1e-4,
    inter: Inter = "sum",
) -> PyTree:
    r"""What each task contributes to a PCB merge, as models to combine linearly.

    .. math::
        p_i = \frac{s_i \odot \tilde\tau_i}{\max(\sum_j s_j, 10^{-12})}, \qquad
        \theta_0 = \theta_\text{pre}, \quad \theta_i = \theta_\text{pre} + p_i

    Any combination with coefficients that sum to one, :math:`(1 - \sum_i \lambda_i, \lambda_1, \dots, \lambda_N)`, is
    the merge with strengths :math:`\lambda`: what searches coefficients of checkpoints searches strengths. Some 100
    evaluations on validation data, as the authors have::

        parts = pcb_parts(pretrained, finetuned, ratio=0.05)
        start = pcb_population(key_start, num_tasks)
        found = lcsc_search(key, parts, validation_error, population_init=start, num_epochs=5, children_per_epoch=16)
        merged = linear_combination(parts, found.coefficients)

    Args:
        pretrained: see :func:`pcb_merge`, as are the other arguments.
        finetuned: one model a task, stacked.
        ratio: share of parameters kept.
        clip_quantile: of a task's sizes.
        inter: how tasks compete.

    Returns:
        A stack of ``N + 1`` trees like ``pretrained``, that one first.

    Raises:
        ValueError: ``ratio`` or ``clip_quantile`` is outside its range, or ``finetuned`` is no stack of trees with the
            shapes of ``pretrained``.

    References:
        Du et al., *Parameter Competition Balancing for Model Merging*, NeurIPS 2024, arXiv 2410.02396.
    """
    parts, unflatten = _parts(pretrained, finetuned, ratio, clip_quantile, inter)
    nothing = jnp.zeros_like(parts[:1])
    return jax.vmap(lambda part: add_task_vector(pretrained, unflatten(part)))(jnp.concatenate([nothing, parts]))


@checked
def pcb_population(
    key: PRNGKeyArray, num_tasks: int, *, size: int = 16, low: ScalarLike = 0.8, high: ScalarLike = 1.3
) -> Float[Array, "size parts"]:
    r"""Random strengths to start a search from, as coefficients of :func:`pcb_parts`.

    .. math:: \bigl(1 - \textstyle\sum_i \lambda_i, \lambda_1, \dots, \lambda_N\bigr), \qquad
        \lambda_i \sim U(\text{low}, \text{high})

    Args:
        key: source of randomness.
        num_tasks: ``N >= 1``.
        size: how many, at least 1; the first has all strengths 1.
        low: the least strength (authors' code: 0.8).
        high: the greatest strength (authors' code: 1.3). A search that mutates may leave the range.

    Returns:
        The coefficients; each row sums to one.

    Raises:
        ValueError: ``num_tasks`` or ``size`` is below 1.

    References:
        Du et al., *Parameter Competition Balancing for Model Merging*, NeurIPS 2024, arXiv 2410.02396.
    """
    check_range("num_tasks", num_tasks, "[1, inf)")
    check_range("size", size, "[1, inf)")
    lams = jax.random.uniform(key, [size, num_tasks], minval=low, maxval=high).at[0].set(1.0)
    return jnp.concatenate([1 - jnp.sum(lams, axis=1, keepdims=True), lams], axis=1)


@checked
def pcb_merge(
    pretrained: PyTree,
    finetuned: PyTree,
    *,
    ratio: ScalarLike = 0.1,
    lams: ScalarLike | Float[Array, "tasks"] = 1.0,
    clip_quantile: ScalarLike = 1e-4,
    inter: Inter = "sum",
) -> PyTree:
    r"""PCB-merging: one model of several, without training.

    .. math::
        \theta = \theta_\text{pre} + \frac{\sum_i \lambda_i\, s_i \odot \tilde\tau_i}{\max(\sum_i s_i, 10^{-12})}

    with the clipped task vectors and the scores of :func:`pcb_scores`. All parameters compete together, whatever leaf
    they are in.

    >>> import jax.numpy as jnp
    >>> from jaxreg.weights import pcb_merge
    >>> pretrained = {"w": jnp.zeros(4)}
    >>> finetuned = {"w": jnp.array([[3.0, 2.0, 0.1, 0.0], [0.0, 0.1, 2.0, 3.0]])}
    >>> pcb_merge(pretrained, finetuned, ratio=0.75, clip_quantile=0.0)["w"].round(2).tolist()
    [3.0, 2.0, 2.0, 3.0]

    Args:
        pretrained: the common start.
        finetuned: one model a task, stacked: leaves ``[N, ...]``.
        ratio: ``r`` in (0, 1], the share of each task's parameters kept (authors' code: 0.1; 0.05 with searched
            strengths).
        lams: ``lambda``, the tasks' strengths (authors' code: 1; searched in [0.8, 1.3], see :func:`pcb_parts`).
        clip_quantile: ``q`` in [0, 0.5): sizes are clipped to their quantiles ``q`` and ``1 - q`` (authors' code:
            1e-4; 0.01 for vision models).
        inter: how tasks compete, see :func:`pcb_scores`.

    Returns:
        The merged parameters, in the dtypes of ``pretrained``; leaves that are not floating are those of
        ``pretrained``.

    Raises:
        ValueError: ``ratio`` or ``clip_quantile`` is outside its range, or ``finetuned`` is no stack of trees with the
            shapes of ``pretrained``.

    References:
        Du et al., *Parameter Competition Balancing for Model Merging*, NeurIPS 2024, arXiv 2410.02396.
    """
    parts, unflatten = _parts(pretrained, finetuned, ratio, clip_quantile, inter)
    strengths = jnp.broadcast_to(jnp.asarray(lams, parts.dtype), len(parts))
    return add_task_vector(pretrained, unflatten(jnp.einsum("n,nd->d", strengths, parts, precision="highest")))


def _parts(pretrained, finetuned, ratio, clip_quantile, inter):
    check_same_shapes("finetuned", finetuned, pretrained, leading=["tasks"])
    rows, unflatten = flatten_stack(task_vector(pretrained, finetuned))
    scores = pcb_scores(rows, ratio=ratio, clip_quantile=clip_quantile, inter=inter)
    # Dropped entries have score 0 exactly: they count neither above nor below the line.
    return scores * _clip_sizes(rows, clip_quantile) / jnp.maximum(jnp.sum(scores, axis=0), 1e-12), unflatten


def _clip_sizes(rows, quantile):
    size, width = jnp.abs(rows), rows.shape[1]
    low = _ranked(size, _whole_part(width, quantile))
    high = _ranked(size, jnp.maximum(_whole_part(width, 1.0 - quantile) - 1, 0))
    return jnp.sign(rows) * jnp.clip(size, low, jnp.maximum(low, high))


def _whole_part(size, share):
    """The whole part of a product: Python's where it can be, for float32 does not count beyond 2^24."""
    product = size * share + 1e-3  # 100 * (1 - 0.1) is 90, also where 0.1 was rounded to float32
    return math.floor(product) if isinstance(share, numbers.Real) else jnp.floor(product).astype(jnp.int32)


def _ranked(rows, rank):
    """The entry of each row that has ``rank`` others below it, as a column."""
    rank = jnp.clip(rank, 0, rows.shape[1] - 1)
    return jnp.take(jnp.sort(rows, axis=1), jnp.atleast_1d(rank), axis=1)


def _min_max(rows):
    low, high = jnp.min(rows, axis=1, keepdims=True), jnp.max(rows, axis=1, keepdims=True)
    span = high - low
    return jnp.where(span > 0, (rows - low) / jnp.where(span > 0, span, 1.0), 0.0)
