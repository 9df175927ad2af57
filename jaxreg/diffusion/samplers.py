"""Sampling that does not use the same weights in every step."""

import jax
import jax.numpy as jnp

from jaxreg.typing import PyTree, ScalarLike, checked
from jaxreg.validation import check_range


@checked
def switch_params(t: ScalarLike, dyn: PyTree, con: PyTree, *, switch: ScalarLike = 500) -> PyTree:
    r"""One model for the early, noisy steps of sampling, another for the late ones.

    .. math:: \theta(t) = \theta_\text{dyn} \text{ if } t > t_\text{switch} \text{ else } \theta_\text{con}

    Time runs down: ``t`` is largest in the first step, in which layout and motion are decided.

    >>> from jaxreg.diffusion import switch_params
    >>> [float(switch_params(t, {"w": 1.0}, {"w": 2.0})["w"]) for t in (999, 501, 500, 0)]
    [1.0, 1.0, 2.0, 2.0]

    Args:
        t: the step, from ``T - 1`` or so down to 0; it may be traced.
        dyn: parameters for the early steps, such as the first of :func:`jaxreg.weights.decouple_inject`.
        con: parameters for the late steps, such as the second of them; a tree like ``dyn``.
        switch: ``t_switch >= 0``, the first step that is late (paper: 500 of 1000).

    Returns:
        The parameters for step ``t``.

    Raises:
        ValueError: ``switch`` is negative.

    References:
        Tian et al., *Extrapolating and Decoupling Image-to-Video Generation Models: Motion Modeling is Easier Than
        You Think*, CVPR 2025, arXiv 2503.00948.
    """
    check_range("switch", switch, "[0, inf)")
    early = jnp.asarray(t) > switch
    return jax.tree.map(lambda first, second: jnp.where(early, first, second), dyn, con)
