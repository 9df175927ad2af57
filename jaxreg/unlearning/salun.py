"""SalUn: unlearning that moves only the weights that matter for the data to be forgotten.

Methods that finetune a trained model to forget some of its data are unstable: they hurt what should stay. SalUn first
marks the weights in which the forgetting loss has the largest gradients, then finetunes these alone, towards random
labels (classification) or the prediction for another concept (diffusion), together with the data that stays::

    gradients = forget_gradients(loss, params, forget_batches)
    optimizer = masked(optax.sgd(0.01, momentum=0.9), saliency_mask(gradients, keep=0.5))
    losses = random_label_loss(apply_fn, params, forget, retain, key, num_classes=10)
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxreg.precision import at_least_float32, widened
from jaxreg.typing import Array, Bool, Float, Int, PRNGKeyArray, PyTree, ScalarLike, Shaped, checked
from jaxreg.validation import check_range


@checked
def forget_gradients(
    loss_fn: Callable[..., Float[Array, ""]], params: PyTree[Float[Array, "..."]], batches: PyTree
) -> PyTree[Float[Array, "..."]]:
    r"""The gradient of the forgetting loss over all data to be forgotten, at the trained weights.

    .. math:: \tfrac1n \sum_{b=1}^n \nabla_\theta \ell(\theta; b) \big|_{\theta = \theta_0}

    Signed gradients are averaged, as :func:`saliency_mask` wants them; ``params`` stay as they are.

    Args:
        loss_fn: ``(params, batch) -> scalar``, such as the mean cross-entropy (its sign does not matter).
        params: ``theta_0``, the trained weights.
        batches: tree of arrays whose leading axis runs over ``n >= 1`` batches of equal size.

    Returns:
        The gradients, at least float32.

    References:
        Fan et al., *SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both Image
        Classification and Generation*, ICLR 2024, arXiv 2310.12508, equation 3.
    """

    def add(total, batch):
        gradients = jax.grad(loss_fn)(params, batch)
        return jax.tree.map(lambda sum_, g: sum_ + g, total, gradients), None

    zeros = jax.tree.map(jnp.zeros_like, widened(params))
    total, _ = jax.lax.scan(add, zeros, batches)
    count = jax.tree.leaves(batches)[0].shape[0]
    return jax.tree.map(lambda sum_: sum_ / count, total)


@checked
def saliency_mask(gradients: PyTree[Float[Array, "..."]], *, keep: ScalarLike = 0.5) -> PyTree[Bool[Array, "..."]]:
    r"""Marks the weights with the largest gradients, ranked over the whole network.

    .. math:: m = \mathbb 1 \bigl(|g| \ge \gamma\bigr)

    with :math:`\gamma` such that exactly ``int(keep * weights)`` entries are marked; of equal ones the first.

    >>> import jax.numpy as jnp
    >>> mask = saliency_mask({"a": jnp.array([1.0, -5.0, 0.1]), "b": jnp.array([2.0])}, keep=0.5)
    >>> mask["a"].tolist(), mask["b"].tolist()
    ([False, True, False], [True])

    Args:
        gradients: ``g``, from :func:`forget_gradients`.
        keep: share of the weights that may move, in [0, 1] (paper: 0.5, the threshold is the median; the authors'
            scripts also try 0.1 to 0.4).

    Returns:
        For each array the marks, True where a weight is salient.

    Raises:
        ValueError: ``keep`` is outside [0, 1].

    References:
        Fan et al., *SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both Image
        Classification and Generation*, ICLR 2024, arXiv 2310.12508, equation 3. One version of the authors' script
        ranks in ascending order, and so keeps the least salient weights; we follow the paper.
    """
    check_range("keep", keep, "[0, 1]")
    leaves, structure = jax.tree.flatten(gradients)
    if not leaves:
        return gradients
    sizes = jnp.concatenate([jnp.abs(at_least_float32(leaf)).ravel() for leaf in leaves])
    count = math.floor(sizes.size * keep) if isinstance(keep, int | float) else jnp.floor(sizes.size * keep)
    order = jnp.argsort(sizes, stable=True, descending=True)
    marks = jnp.zeros(sizes.shape, bool).at[order].set(jnp.arange(sizes.size) < count)
    ends = [sum(leaf.size for leaf in leaves[: n + 1]) for n in range(len(leaves))]
    parts = [marks[end - leaf.size : end].reshape(leaf.shape) for leaf, end in zip(leaves, ends, strict=True)]
    return jax.tree.unflatten(structure, parts)


@checked
def masked(
    optimizer: optax.GradientTransformation, mask: PyTree[Bool[Array, "..."]]
) -> optax.GradientTransformationExtraArgs:
    r"""Lets an optimizer move the marked weights only; all others keep their value bit for bit.

    .. math:: \theta = m \odot \theta' + (1 - m) \odot \theta_0

    where :math:`\theta'` is what the optimizer makes of the weights. It sees zero gradients for the others, whose
    momentum stays zero, and what weight decay adds to their updates is dropped. (``optax.masked`` chooses arrays.)

    Args:
        optimizer: any optax optimizer; global norms are those of the marked entries.
        mask: ``m``, a tree like the parameters, from :func:`saliency_mask`.

    Returns:
        The optimizer; its state is that of ``optimizer``.

    References:
        Fan et al., *SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both Image
        Classification and Generation*, ICLR 2024, arXiv 2310.12508, equation 4.
    """
    inner = optax.with_extra_args_support(optimizer)

    def restrict(tree):
        return jax.tree.map(lambda marks, x: jnp.where(marks, x, jnp.zeros_like(x)), mask, tree)

    def update(updates, state, params=None, **extra_args):
        updates, state = inner.update(restrict(updates), state, params, **extra_args)
        return restrict(updates), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


@checked
def random_labels(
    key: PRNGKeyArray, labels: Int[Array, "*batch"], *, num_classes: int, exclude_true: bool = True
) -> Int[Array, "*batch"]:
    """Random labels for data to be forgotten.

    Args:
        key: source of the randomness.
        labels: true classes in ``[0, num_classes)``.
        num_classes: at least 2, or at least 1 if the true class may be drawn.
        exclude_true: draw from the other classes, as the paper says; the authors' code draws from all.

    Returns:
        A class for each example, all alike probable, in the dtype of ``labels``.

    Raises:
        ValueError: there are too few classes.

    References:
        Fan et al., *SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both Image
        Classification and Generation*, ICLR 2024, arXiv 2310.12508.
    """
    check_range("num_classes", num_classes, "[2, inf)" if exclude_true else "[1, inf)")
    labels = jnp.asarray(labels)
    shift = jax.random.randint(key, labels.shape, int(exclude_true), num_classes)
    return ((labels + shift) % num_classes).astype(labels.dtype)


@checked
def random_label_loss(
    apply_fn: Callable[..., Float[Array, "batch classes"]],
    params: PyTree,
    forget: tuple[Shaped[Array, "batch ..."], Int[Array, "batch"]],
    retain: tuple[Shaped[Array, "batch ..."], Int[Array, "batch"]],
    key: PRNGKeyArray,
    *,
    num_classes: int,
    alpha: ScalarLike = 1.0,
    exclude_true: bool = True,
) -> Float[Array, "batch"]:
    r"""SalUn's objective for classification: random labels for what is forgotten, the true ones for what stays.

    .. math:: \operatorname{CE}(\theta; x_f, y') + \alpha \operatorname{CE}(\theta; x_r, y_r)

    The authors draw :math:`y'` once for the whole forget set: give the same key whenever the same batch returns, or
    a new key each step for targets that average to uniform. Their code takes an epoch of one term and then one of the
    other; this is the sum of the paper.

    Args:
        apply_fn: ``(params, x) -> logits``.
        params: weights ``theta``.
        forget: inputs ``x_f`` to be forgotten and their classes.
        retain: as many inputs ``x_r`` that stay, and their classes ``y_r``.
        key: of the random labels, see :func:`random_labels`.
        num_classes: at least 2.
        alpha: ``>= 0``, weight of the data that stays (paper: 1).
        exclude_true: whether ``y'`` is never the true class.

    Returns:
        The loss of each pair of examples, at least float32.

    Raises:
        ValueError: ``alpha`` is negative or there are too few classes.

    References:
        Fan et al., *SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both Image
        Classification and Generation*, ICLR 2024, arXiv 2310.12508, equation 5.
    """
    check_range("alpha", alpha, "[0, inf)")
    (forget_x, forget_y), (retain_x, retain_y) = forget, retain
    wrong = random_labels(key, forget_y, num_classes=num_classes, exclude_true=exclude_true)

    def cross_entropy(x, labels):
        logits = at_least_float32(apply_fn(params, x))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    return cross_entropy(forget_x, wrong) + alpha * cross_entropy(retain_x, retain_y)


class NoisedBatch(NamedTuple):
    """Examples of a diffusion model with the noise that was added to them.

    Attributes:
        x_t: noised examples ``[batch, ...]``.
        t: their times ``[batch]``.
        c: their conditions ``[batch, ...]``.
        noise: the noise in them ``[batch, ...]``.
    """

    x_t: Any
    t: Any
    c: Any
    noise: Any


@checked
def salun_diffusion_loss(
    eps_fn: Callable[..., Float[Array, "batch *shape"]],
    params: PyTree,
    params0: PyTree,
    x_t: Float[Array, "batch *shape"],
    t: Shaped[Array, "batch"],
    c: Shaped[Array, "batch ..."],
    c_other: Shaped[Array, "batch ..."],
    retain: NoisedBatch,
    *,
    beta: ScalarLike = 1.0,
) -> Float[Array, "batch"]:
    r"""SalUn's objective for diffusion: the forgotten concept is denoised as if it were another.

    .. math::
        \overline{\bigl(\epsilon_\theta(x_t \mid c) - \epsilon_{\theta_0}(x_t \mid c')\bigr)^2}
        + \beta\, \overline{\bigl(\epsilon_\theta(x^r_t \mid c^r) - \epsilon\bigr)^2}

    with means over the entries of an example. No gradient flows through the target :math:`\epsilon_{\theta_0}`.

    Args:
        eps_fn: ``(params, x_t, t, c) -> noise``.
        params: weights ``theta``.
        params0: weights ``theta_0`` that give the target: ``params`` again, as in the authors' code, or the original
            ones.
        x_t: noised examples of the concept to be forgotten.
        t: their times.
        c: the concept, as a condition.
        c_other: the concept ``c'`` that takes its place.
        retain: as many examples of other concepts.
        beta: ``>= 0``, weight of what stays (authors' code: 0.1 for Stable Diffusion).

    Returns:
        The loss of each pair of examples, at least float32.

    Raises:
        ValueError: ``beta`` is negative.

    References:
        Fan et al., *SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both Image
        Classification and Generation*, ICLR 2024, arXiv 2310.12508, equation 6.
    """
    check_range("beta", beta, "[0, inf)")

    def distance(a, b):
        squares = jnp.square(at_least_float32(a) - at_least_float32(b))
        return jnp.mean(squares, axis=tuple(range(1, squares.ndim)))

    target = jax.lax.stop_gradient(eps_fn(params0, x_t, t, c_other))
    forget_losses = distance(eps_fn(params, x_t, t, c), target)
    return forget_losses + beta * distance(eps_fn(params, retain.x_t, retain.t, retain.c), retain.noise)
