"""Learning rates that need no tuning anew for a wider model.

Adam moves every weight by about the learning rate. The wider the layer, the more such steps add up in its output, so
the best learning rate shrinks with the width, unless the update of each layer is divided by its number of inputs.
"""

import math

import jax
import optax

from jaxreg.typing import ScalarLike, checked
from jaxreg.validation import check_range


@checked
def mu_scale(base_width: ScalarLike) -> optax.GradientTransformation:
    r"""Scales the updates of linear layers by the base width over their own: the simple muParam.

    .. math:: u \leftarrow \frac{n_0}{n} u

    It is meant for directions that do not depend on the gradient's size, such as Adam's. Arrays with two dimensions
    or more are taken for linear layers with outputs last, as flax keeps them, ``n`` being the product of the other
    dimensions; biases and gains are left alone. Embeddings, whose input is one-hot, should be too: name them in
    :func:`optax.masked`.

    >>> import jax, jax.numpy as jnp, optax
    >>> from jaxreg.optim import mu_scale
    >>> params = {"embedding": jnp.ones([50, 128]), "kernel": jnp.ones([128, 10]), "bias": jnp.ones(10)}
    >>> layers = {"embedding": False, "kernel": True, "bias": True}
    >>> optimizer = optax.chain(optax.scale_by_adam(), optax.masked(mu_scale(32), layers), optax.scale(-1e-3))
    >>> updates, _ = optimizer.update(params, optimizer.init(params))
    >>> {name: round(float(jnp.abs(u).max()), 5) for name, u in updates.items()}
    {'bias': 0.001, 'embedding': 0.001, 'kernel': 0.00025}

    Args:
        base_width: ``n_0 > 0``, number of inputs of the layers of the model that the learning rate was tuned for.

    Returns:
        An optax transformation without state.

    Raises:
        ValueError: ``base_width`` is not positive.

    References:
        Wortsman et al., *Small-scale proxies for large-scale Transformer training instabilities*, ICLR 2024,
        arXiv 2309.14322; after Yang and Hu, *Feature Learning in Infinite-Width Neural Networks*, ICML 2021.
    """
    check_range("base_width", base_width, "(0, inf)")

    def scale(update):
        if update.ndim < 2:
            return update
        return (base_width / max(1, math.prod(update.shape[:-1])) * update).astype(update.dtype)

    return optax.stateless(lambda updates, _: jax.tree.map(scale, updates))
