"""Dataset condensation: a few synthetic examples whose training gradients are those of a whole data set.

Gradients of synthetic and real examples are compared unit by unit, and the distance is descended by changing the
synthetic examples, while networks are trained on them from one random start after the other. Class-wise matching (DC)
sees what all classes have in common in every class's gradient. Matching the gradient of all classes together (DCC)
does not: there a shared signal cancels, and what tells the classes apart is left.

One step of condensation, at network ``params`` and with one batch of real examples of every class::

    objective = dcc_loss if dcc_schedule(outer, inner) else dc_loss      # or lax.cond, where the steps are traced
    gradient = jax.grad(objective, argnums=2)(apply_fn, params, synthetic, real)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxreg.linalg import root
from jaxreg.precision import at_least_float32, widened
from jaxreg.typing import Array, Bool, Float, Int, PyTree, ScalarLike, checked
from jaxreg.validation import check_range


@checked
def match_distance(gradients_a: PyTree, gradients_b: PyTree) -> Float[Array, ""]:
    r"""How far the directions of two gradients are apart, added up over the units of all layers.

    .. math::
        \sum_{\text{kernels}} \sum_{j} \Bigl(1 - \frac{\langle a_j, b_j \rangle}{\|a_j\| \|b_j\| + 10^{-6}}\Bigr)

    where :math:`a_j` are the weights into output unit ``j``. Vectors and scalars (biases, scales) are left out.

    Args:
        gradients_a: a tree of kernels as flax lays them out, outputs last.
        gradients_b: another of the same structure.

    Returns:
        The distance, at least float32, from 0 to twice the number of units; a unit without gradient counts as 1.

    References:
        Lee et al., *Dataset Condensation with Contrastive Signals*, ICML 2022, arXiv 2202.02916; after Zhao et al.,
        *Dataset Condensation with Gradient Matching*, ICLR 2021, arXiv 2006.05929.
    """

    def distance(a, b):
        if a.ndim < 2:
            return 0.0
        a, b = (x.reshape(-1, x.shape[-1]) for x in (a, b))
        return jnp.sum(1.0 - jnp.sum(a * b, axis=0) / (_norms(a) * _norms(b) + 1e-6))

    return jnp.asarray(
        jax.tree.reduce(jnp.add, jax.tree.map(distance, widened(gradients_a), widened(gradients_b)), 0.0)
    )


@checked
def dc_loss(
    apply_fn: Callable[[Any, Any], Any],
    params: PyTree,
    synthetic: Float[Array, "classes per_class *shape"],
    real: Float[Array, "classes batch *shape"],
) -> Float[Array, ""]:
    r"""Class-wise gradient matching (DC).

    .. math:: \sum_c D(\nabla_\theta L(S_c),\; \nabla_\theta L(T_c))

    with :math:`D` of :func:`match_distance` and :math:`L` the mean cross-entropy of a set.

    Args:
        apply_fn: from parameters and inputs to logits.
        params: ``theta``.
        synthetic: ``S``, to be changed, by class: the label of ``synthetic[c]`` is ``c``.
        real: ``T``, a batch of each class (paper: 256). No gradient flows through it.

    Returns:
        The sum over classes, at least float32.

    References:
        Zhao et al., *Dataset Condensation with Gradient Matching*, ICLR 2021, arXiv 2006.05929.
    """
    classes = jnp.arange(len(synthetic))
    gradients = jax.vmap(lambda x, c: _gradient(apply_fn, params, x[None], c[None]))
    targets = jax.lax.stop_gradient(gradients(real, classes))
    return jnp.sum(jax.vmap(match_distance)(gradients(synthetic, classes), targets))


@checked
def dcc_loss(
    apply_fn: Callable[[Any, Any], Any],
    params: PyTree,
    synthetic: Float[Array, "classes per_class *shape"],
    real: Float[Array, "classes batch *shape"],
) -> Float[Array, ""]:
    r"""Gradient matching of all classes together (DCC), in which signals common to all classes cancel.

    .. math:: D\Bigl(\nabla_\theta \tfrac1C \sum_c L(S_c),\; \nabla_\theta \tfrac1C \sum_c L(T_c)\Bigr)

    For one class it is :func:`dc_loss`.

    Args:
        apply_fn: from parameters and inputs to logits.
        params: ``theta``.
        synthetic: ``S``, to be changed, by class: the label of ``synthetic[c]`` is ``c``.
        real: ``T``, a batch of each class (paper: 256). No gradient flows through it.

    Returns:
        The distance, at least float32.

    References:
        Lee et al., *Dataset Condensation with Contrastive Signals*, ICML 2022, arXiv 2202.02916.
    """
    classes = jnp.arange(len(synthetic))
    targets = jax.lax.stop_gradient(_gradient(apply_fn, params, real, classes))
    return match_distance(_gradient(apply_fn, params, synthetic, classes), targets)


@checked
def dcc_schedule(
    outer: ScalarLike, inner: ScalarLike, *, outer_warmup: ScalarLike = 250, inner_warmup: ScalarLike = 10
) -> Bool[Array, ""]:
    """Whether a step of condensation uses DCC: while networks are early in both loops it is still DC.

    Args:
        outer: networks that were trained before this one.
        inner: steps of condensation at this network before this one.
        outer_warmup: at least 0; from this network on every step is DCC (paper: 250 of 1000).
        inner_warmup: at least 0; so is every step from this one on at each network (paper: 10, of 10 at 10 examples a
            class).

    Returns:
        True for DCC, False for DC.

    Raises:
        ValueError: a warm-up is negative.

    References:
        Lee et al., *Dataset Condensation with Contrastive Signals*, ICML 2022, arXiv 2202.02916.
    """
    check_range("outer_warmup", outer_warmup, "[0, inf)")
    check_range("inner_warmup", inner_warmup, "[0, inf)")
    return jnp.logical_or(jnp.asarray(outer) >= outer_warmup, jnp.asarray(inner) >= inner_warmup)


@checked
def replay_union(
    inputs: Float[Array, "examples *shape"],
    labels: Int[Array, "examples"],
    condensed: Float[Array, "classes per_class *shape"],
    seen: Bool[Array, "classes"],
) -> tuple[Float[Array, "union *shape"], Int[Array, "union"], Float[Array, "union"]]:
    """The present task's examples with the condensed ones of earlier tasks' classes: replay in continual learning.

    Args:
        inputs: of the present task.
        labels: their classes.
        condensed: examples of every class, zeros for classes that were not condensed yet.
        seen: whether a class is from an earlier task.

    Returns:
        Inputs, labels and weights of the union; examples of classes that are not replayed have weight 0, the others 1.

    References:
        Lee et al., *Dataset Condensation with Contrastive Signals*, ICML 2022, arXiv 2202.02916.
    """
    inputs, labels = jnp.asarray(inputs), jnp.asarray(labels)
    classes, per_class = condensed.shape[:2]
    flat = condensed.reshape(-1, *condensed.shape[2:]).astype(inputs.dtype)
    labels_of_flat = jnp.repeat(jnp.arange(classes, dtype=labels.dtype), per_class)
    weights = jnp.concatenate([jnp.ones(len(inputs)), jnp.repeat(jnp.asarray(seen, jnp.float32), per_class)])
    return jnp.concatenate([inputs, flat]), jnp.concatenate([labels, labels_of_flat]), weights


def _gradient(apply_fn, params, examples, classes):
    """Of the mean cross-entropy of examples by class."""
    count = examples.shape[1]

    def loss(params):
        logits = at_least_float32(apply_fn(params, examples.reshape(-1, *examples.shape[2:])))
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.repeat(classes, count)).mean()

    return jax.grad(loss)(params)


def _norms(columns):
    # Units that are off have a gradient of zero.
    return root(jnp.sum(jnp.square(columns), axis=0))
