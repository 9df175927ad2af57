"""Regression where most targets are alike and few are rare.

A network trained on such data takes rare examples for common ones: their features are near those of another target, and
so are the predictions. ConR finds these pairs, near in prediction and far in target, and pushes their features apart,
the harder the farther the targets, while it pulls features of like targets together.
"""

import jax
import jax.numpy as jnp

from jaxreg.linalg import unit_vectors
from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, ScalarLike, checked
from jaxreg.validation import check_range


@checked
def conr(
    features: Float[Array, "items features"],
    targets: Float[Array, "items *labels"],
    predictions: Float[Array, "items *labels"],
    *,
    weights: Float[Array, "items"] | None = None,
    window: ScalarLike = 1.0,
    temperature: ScalarLike = 0.2,
    push: ScalarLike = 0.01,
    reference_quirk: bool = False,
) -> Float[Array, "items"]:
    r"""ConR: contrasts features by targets and predictions.

    .. math::
        \ell_i = \frac{w_i}{|P_i|} \sum_{j \in P_i} -\log \frac{e^{s_{ij}}}
        {\sum_{k \in P_i} e^{s_{ik}} + w_i \sum_{k \in N_i} e^{\eta d_{ik} + s_{ik}}}, \qquad
        s_{ij} = \cos(q_i, q_j) / \tau

    where :math:`P_i` are the other examples whose target is at most :math:`\omega` away and :math:`N_i` those farther
    away, whose prediction is not: :math:`d_{ik} = \|y_i - y_k\| > \omega` and :math:`\|\hat y_i - \hat y_k\| \le
    \omega`. Examples for which either set is empty have the loss 0. Train with a regression loss plus 4 times the mean
    (paper), on batches of two augmented views of every example.

    >>> import jax.numpy as jnp
    >>> from jaxreg.losses import conr
    >>> features, targets = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), jnp.array([0.0, 0.5, 5.0])
    >>> predictions = jnp.array([0.0, 1.0, 0.8])  # the last is taken for one of the others
    >>> [round(float(loss), 2) for loss in conr(features, targets, predictions)]
    [3.61, 3.61, 0.0]

    Args:
        features: ``q``, of any length.
        targets: ``y``, numbers or vectors.
        predictions: of the network for the same examples. No gradient flows through them.
        weights: ``w >= 0``, such as the inverse density of the target; by default 1.
        window: ``omega >= 0``, in the unit of the targets (paper: 1 year for ages).
        temperature: ``tau > 0`` (paper: 0.2; the authors' code for AgeDB sets 0.07 whatever is asked for).
        push: ``eta >= 0``, per unit of the target (paper: 0.01).
        reference_quirk: compute the sum over positives as the authors' code does, in which each example that is no
            positive adds 1.

    Returns:
        The loss of each example, at least float32.

    Raises:
        ValueError: ``window`` or ``push`` is negative or ``temperature`` not positive.

    References:
        Keramati et al., *ConR: Contrastive Regularizer for Deep Imbalanced Regression*, ICLR 2024, arXiv 2309.06651.
    """
    check_range("window", window, "[0, inf)")
    check_range("temperature", temperature, "(0, inf)")
    check_range("push", push, "[0, inf)")
    items = len(features)
    distance, predicted_distance = _distances(targets), _distances(predictions)
    near = distance <= window
    positive = near & ~jnp.eye(items, dtype=bool)
    negative = ~near & (predicted_distance <= window)
    w = jnp.ones(items) if weights is None else at_least_float32(weights)

    unit = unit_vectors(features)
    similarity = unit @ unit.T / temperature
    # A weight of zero has a loss of zero; its logarithm must not make that NaN.
    log_push = push * distance + jnp.log(jnp.where(w > 0, w, 1.0))[:, None]
    pulled = jnp.where(positive, similarity, 0.0 if reference_quirk else -jnp.inf)
    pushed = jnp.where(negative, similarity + log_push, -jnp.inf)
    has_both = positive.any(axis=1) & negative.any(axis=1)
    terms = jnp.where(has_both[:, None], jnp.concatenate([pulled, pushed], axis=1), 0.0)
    attraction = jnp.sum(jnp.where(positive, similarity, 0.0), axis=1) / jnp.maximum(positive.sum(axis=1), 1)
    return jnp.where(has_both, w * (jax.nn.logsumexp(terms, axis=1) - attraction), 0.0)


def _distances(values):
    values = jax.lax.stop_gradient(at_least_float32(values))
    values = values.reshape(len(values), -1)
    differences = values[:, None] - values
    # The norm of one number is its size, without the rounding of a square.
    return jnp.abs(differences[..., 0]) if values.shape[1] == 1 else jnp.linalg.norm(differences, axis=-1)
