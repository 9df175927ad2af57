"""Keeping away from given weights: what a model should lose is in the weights that others have."""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, PyTree, ScalarLike, checked
from jaxreg.validation import check_range, check_same_shapes


@checked
def repulsion(
    params: PyTree[Float[Array, "..."]],
    adapted: PyTree[Float[Array, "models ..."]],
    *,
    kind: Literal["exp", "neg_l2", "inv_l2"] = "exp",
    gamma: ScalarLike = 1.0,
    weight: ScalarLike | None = None,
) -> Float[Array, ""]:
    r"""Pushes weights away from those of models that have been adapted to what is to be unlearned.

    .. math::
        \text{EL2: } w\, e^{-\gamma d}, \qquad \text{NL2: } -w \gamma d, \qquad \text{IL2: } w \gamma / d, \qquad
        d = \tfrac1m \sum_{n=1}^m \tfrac1L \sum_{l=1}^L \overline{(\theta_l - \theta_{n,l})^2}

    where the bar is the mean over the entries of an array.

    Args:
        params: ``theta``, a tree of ``L >= 1`` arrays.
        adapted: ``theta_n``, the weights of ``m >= 1`` adapted models: a tree like ``params`` with a leading axis. No
            gradient flows through them.
        kind: ``"exp"`` for EL2; ``"neg_l2"`` for NL2, which has no lower bound: stop early; ``"inv_l2"`` for IL2, which
            is huge near the adapted models (``d`` counts as 1e-12 at least).
        gamma: > 0 (paper: about 1). Distances depend on the network: at ``gamma d`` far above 1 EL2 no longer pushes.
        weight: ``w >= 0``; by default that of the authors' code, 100 for EL2 and 1 for the others.

    Returns:
        The penalty, at least float32.

    Raises:
        ValueError: ``gamma`` is not positive, ``weight`` negative, or ``adapted`` not like ``params``.

    References:
        Tiwary et al., *Adapt then Unlearn: Exploring Parameter Space Semantics for Unlearning in Generative
        Adversarial Networks*, arXiv 2309.14054. The authors' code scales ``d`` with the number of models; this is the
        mean.
    """
    check_range("gamma", gamma, "(0, inf)")
    check_range("weight", weight, "[0, inf)")
    check_same_shapes("adapted", adapted, params, leading=["models"])

    def of_array(theta, others):
        others = jax.lax.stop_gradient(at_least_float32(others))
        return jnp.mean(jnp.square(at_least_float32(theta) - others))

    distances = jax.tree.leaves(jax.tree.map(of_array, params, adapted))
    distance = sum(distances) / len(distances)
    if weight is None:
        weight = 100.0 if kind == "exp" else 1.0
    if kind == "exp":
        return weight * jnp.exp(-gamma * distance)
    if kind == "neg_l2":
        return -weight * gamma * distance
    return weight * gamma / jnp.maximum(distance, 1e-12)
