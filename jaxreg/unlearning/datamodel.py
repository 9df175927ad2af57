r"""Datamodel matching: unlearning by predicting what retraining would output, and training towards that.

Gradient ascent on the forgotten data does not know where to stop. If one knew the outputs of a model retrained without
the data, one could finetune towards them (oracle matching). A datamodel predicts them: outputs are, nearly, a sum of
contributions of the training examples, which a regression over many models trained on random subsets finds. Forgetting
takes the contributions of the forgotten examples away::

    weights, _ = fit_datamodel(masks, outputs)
    targets = predict_oracle(apply_fn(params, x), weights, forget_mask)
    params = dmm_unlearn(params, apply_fn, x, targets, steps=100, optimizer=optax.adam(1e-3))

Regress logits, one output for each class, of all examples ``x`` that are trained on in the last step: the forgotten
ones and some that stay. In linear regression the prediction is exact (:func:`leave_out_ridge`), and so is the result.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxreg.linalg import matmul
from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Bool, Float, Int, PyTree, ScalarLike, Shaped, checked
from jaxreg.validation import check_range


@checked
def fit_datamodel(
    masks: Shaped[Array, "models examples"],
    outputs: Float[Array, "models *outputs"],
    *,
    l2: ScalarLike = 1e-3,
    l1: ScalarLike = 0.0,
    iterations: int = 300,
) -> tuple[Float[Array, "examples *outputs"], Float[Array, "*outputs"]]:
    r"""Regresses outputs of models on which examples they were trained on.

    .. math::
        \min_{w, b} \; \tfrac1{M} \sum_{m=1}^M \Bigl(f_m - b - \sum_i [i \in S_m]\, w_i\Bigr)^2
        + \lambda_2 \|w\|_2^2 + 2 \lambda_1 \|w\|_1

    for each output apart. Without ``l1`` it is solved exactly, with it by accelerated proximal gradient steps, from
    the ridge solution on.

    >>> import jax.numpy as jnp
    >>> masks = jnp.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    >>> weights, bias = fit_datamodel(masks, jnp.array([5.0, 4.0, 8.0, 7.0]), l2=0.0)
    >>> weights.round(4).tolist(), round(float(bias), 4)
    ([3.0, -1.0], 5.0)

    Args:
        masks: ``[i in S_m]``, for each of ``M`` models the examples it was trained on: 0 and 1, or bools. The paper
            trains on random halves.
        outputs: ``f_m``, what the models give for the points of interest: logits of points, say.
        l2: ``lambda_2 >= 0``. With 0 the columns of ``masks`` have to be linearly independent (and not add up to a
            constant).
        l1: ``lambda_1 >= 0``: with fewer models than examples, contributions that are few are found better (the
            paper's datamodels are sparse). It is the ``alpha`` of scikit-learn's ``Lasso``.
        iterations: at least 1, steps with ``l1``.

    Returns:
        The contributions ``w`` of the examples to each output, and ``b``, at least float32.

    Raises:
        ValueError: a hyperparameter is outside its range.

    References:
        Georgiev et al., *Attribute-to-Delete: Machine Unlearning via Datamodel Matching*, arXiv 2410.23232; Ilyas et
        al., *Datamodels: Predicting Predictions from Training Data*, ICML 2022, arXiv 2202.00622.
    """
    check_range("l2", l2, "[0, inf)")
    check_range("l1", l1, "[0, inf)")
    check_range("iterations", iterations, "[1, inf)")
    x, y = at_least_float32(masks), at_least_float32(outputs)
    models, examples = x.shape
    y = y.reshape(models, -1)
    x_mean, y_mean = jnp.mean(x, axis=0), jnp.mean(y, axis=0)
    x, y = (x - x_mean) / math.sqrt(models), (y - y_mean) / math.sqrt(models)
    # The same, by the smaller of the two Gram matrices.
    if examples <= models:
        weights = _solve(matmul(x.T, x), l2, matmul(x.T, y))
    else:
        weights = matmul(x.T, _solve(matmul(x, x.T), l2, y))
    if not (isinstance(l1, int | float) and l1 == 0):
        weights = _lasso(x, y, weights, l2, l1, iterations)
    bias = y_mean - matmul(x_mean, weights)
    return weights.reshape(examples, *outputs.shape[1:]), bias.reshape(outputs.shape[1:])


@checked
def predict_oracle(
    f0: Float[Array, "*outputs"], weights: Float[Array, "examples *outputs"], forget_mask: Shaped[Array, "examples"]
) -> Float[Array, "*outputs"]:
    r"""Predicts the outputs of a model retrained without the forgotten examples.

    .. math:: \hat f = f_0 - \sum_{i \in F} w_i

    Args:
        f0: outputs ``f_0`` of the trained model itself: its own noise stays in the prediction.
        weights: contributions ``w``, from :func:`fit_datamodel`.
        forget_mask: ``[i in F]``, 1 or True for the examples to be forgotten.

    Returns:
        The predicted outputs, at least float32.

    References:
        Georgiev et al., *Attribute-to-Delete: Machine Unlearning via Datamodel Matching*, arXiv 2410.23232.
    """
    contributions = jnp.tensordot(at_least_float32(forget_mask), at_least_float32(weights), axes=1, precision="highest")
    return at_least_float32(f0) - contributions


@checked
def matching_loss(
    logits: Float[Array, "*batch classes"], targets: Float[Array, "*batch classes"]
) -> Float[Array, "*batch"]:
    r"""Squared distance of logits from those to be matched, per class.

    .. math:: \tfrac1K \sum_k (z_k - \hat f_k)^2

    Args:
        logits: ``z``, of the model that is to forget.
        targets: from :func:`predict_oracle`, or logits of a retrained model (oracle matching). No gradient flows
            through them.

    Returns:
        The loss of each example, at least float32.

    References:
        Georgiev et al., *Attribute-to-Delete: Machine Unlearning via Datamodel Matching*, arXiv 2410.23232.
    """
    difference = at_least_float32(logits) - jax.lax.stop_gradient(at_least_float32(targets))
    return jnp.mean(jnp.square(difference), axis=-1)


@checked
def dmm_unlearn(
    params: PyTree,
    apply_fn: Callable[..., Float[Array, "points classes"]],
    x: Shaped[Array, "points ..."],
    targets: Float[Array, "points classes"],
    *,
    steps: int,
    optimizer: optax.GradientTransformation,
) -> PyTree:
    """Finetunes a model until it outputs what is to be matched, all points in every step.

    With targets of :func:`predict_oracle` this is datamodel matching, with logits of a retrained model oracle
    matching, the best that can be had.

    Args:
        params: of the trained model.
        apply_fn: ``(params, x) -> logits``.
        x: the points: all forgotten examples and a sample of those that stay.
        targets: logits to be matched at these.
        steps: at least 1.
        optimizer: any optax optimizer.

    Returns:
        The parameters after the last step.

    Raises:
        ValueError: ``steps`` is below 1.

    References:
        Georgiev et al., *Attribute-to-Delete: Machine Unlearning via Datamodel Matching*, arXiv 2410.23232.
    """
    check_range("steps", steps, "[1, inf)")

    def loss(params):
        return jnp.mean(matching_loss(apply_fn(params, x), targets))

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=steps)
    return params


@checked
def leave_out_ridge(
    x: Float[Array, "examples features"],
    y: Float[Array, "examples *outputs"],
    forget: Int[Array, "forget"] | Bool[Array, "examples"],
    *,
    l2: ScalarLike = 0.0,
) -> Float[Array, "features *outputs"]:
    r"""The least-squares solution without some examples, from the one with all of them.

    .. math::
        \theta_{-F} = \theta - A^{-1} X_F^\top (I - X_F A^{-1} X_F^\top)^{-1} (y_F - X_F \theta),
        \qquad A = X^\top X + \lambda I, \quad \theta = A^{-1} X^\top y

    The convex case of unlearning: what a datamodel predicts for a linear model is exact, and matching it is
    retraining, whereas gradient ascent on the forgotten examples never stops at this point.

    Args:
        x: inputs ``X``.
        y: targets.
        forget: positions ``F`` of the forgotten examples, each once, or a mask of all examples.
        l2: ``lambda >= 0``, of the penalty ``lambda |theta|^2``.

    Returns:
        The weights, at least float32, those of a regression on the other examples.

    Raises:
        ValueError: ``l2`` is negative.

    References:
        Georgiev et al., *Attribute-to-Delete: Machine Unlearning via Datamodel Matching*, arXiv 2410.23232.
    """
    check_range("l2", l2, "[0, inf)")
    x, y = at_least_float32(x), at_least_float32(y)
    targets = y.reshape(len(y), -1)
    inverse = jnp.linalg.inv(matmul(x.T, x) + l2 * jnp.eye(x.shape[1], dtype=x.dtype))
    theta = matmul(inverse, matmul(x.T, targets))
    if jnp.issubdtype(jnp.asarray(forget).dtype, jnp.bool_):
        x_f, y_f = jnp.where(forget[:, None], x, 0.0), jnp.where(forget[:, None], targets, 0.0)
    else:
        x_f, y_f = x[forget], targets[forget]
    shared = matmul(inverse, x_f.T)
    gap = jnp.eye(len(x_f), dtype=x.dtype) - matmul(x_f, shared)
    theta = theta - matmul(shared, jnp.linalg.solve(gap, y_f - matmul(x_f, theta)))
    return theta.reshape(x.shape[1], *y.shape[1:])


def _solve(gram, l2, right):
    return jax.scipy.linalg.solve(gram + l2 * jnp.eye(len(gram), dtype=gram.dtype), right, assume_a="pos")


def _lasso(x, y, start, l2, l1, iterations):
    """FISTA on ``|y - x w|^2 + l2 |w|^2 + 2 l1 |w|_1``, half of which has gradient steps of length ``rate``."""

    # The largest eigenvalue of the Gram matrix, which the Frobenius norm bounds too loosely, by power iteration.
    def power(_, v):
        v = matmul(x.T, matmul(x, v))
        return v / jnp.maximum(jnp.linalg.norm(v), 1e-30)

    v = jax.lax.fori_loop(0, 50, power, jnp.full(x.shape[1], 1 / math.sqrt(x.shape[1]), x.dtype))
    # A start that misses the top direction gives less than the largest, hence the random one beside it.
    u = jax.lax.fori_loop(0, 50, power, jax.random.normal(jax.random.key(0), v.shape, v.dtype))
    largest = jnp.maximum(jnp.linalg.norm(matmul(x, v)), jnp.linalg.norm(matmul(x, u))) ** 2
    rate = 1 / (1.05 * largest + l2 + 1e-12)

    def step(_, carry):
        w, ahead, t = carry
        moved = ahead - rate * (matmul(x.T, matmul(x, ahead) - y) + l2 * ahead)
        new = jnp.sign(moved) * jnp.maximum(jnp.abs(moved) - rate * l1, 0.0)
        t_new = (1 + jnp.sqrt(1 + 4 * t**2)) / 2
        return new, new + (t - 1) / t_new * (new - w), t_new

    w, _, _ = jax.lax.fori_loop(0, iterations, step, (start, start, jnp.ones([], x.dtype)))
    return w
