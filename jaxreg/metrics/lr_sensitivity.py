"""How much a training run depends on its learning rate, and what to watch for before it breaks.

A small model trained at a large learning rate fails in the ways that a large model fails at its usual one. So the
remedies can be compared on small models: by how little the final loss rises over orders of magnitude of the learning
rate. And a large model's failure can be forecast: the largest attention logit follows a curve in the number of
parameters, and training breaks down where it comes near ten thousand.
"""

import jax.numpy as jnp

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Bool, Float, checked
from jaxreg.validation import check_range


@checked
def lr_sensitivity(losses: Float[Array, "rates *runs"], initial_loss: Float[Array, "*#runs"]) -> Float[Array, "*runs"]:
    r"""How far above its best the final loss is on average over learning rates.

    .. math:: \frac1n \sum_{\eta} \min(\ell(\eta), \ell_0) - \min_{\eta} \ell(\eta)

    >>> import jax.numpy as jnp
    >>> from jaxreg.metrics import lr_sensitivity
    >>> float(lr_sensitivity(jnp.array([2.5, 2.0, 2.5, jnp.nan]), jnp.array(4.0)))
    0.75

    Args:
        losses: final losses ``l(eta)`` at learning rates that are evenly spaced in their logarithm (paper: from 3e-4
            to 3e-1). NaN and infinity count as ``initial_loss``, as does any larger loss.
        initial_loss: ``l_0``, the loss before training.

    Returns:
        The sensitivity of each run, in the losses' unit, at least float32: 0 if the learning rate does not matter, at
        most ``initial_loss`` minus the best loss.

    References:
        Wortsman et al., *Small-scale proxies for large-scale Transformer training instabilities*, ICLR 2024,
        arXiv 2309.14322.
    """
    losses, initial_loss = at_least_float32(losses), at_least_float32(initial_loss)
    capped = jnp.where(jnp.isnan(losses), initial_loss, jnp.minimum(losses, initial_loss))
    return jnp.mean(capped - jnp.min(capped, axis=0), axis=0)


@checked
def max_attention_logit(
    q: Float[Array, "*batch queries features"],
    k: Float[Array, "*batch keys features"],
    *,
    mask: Bool[Array, "*#batch queries keys"] | None = None,
) -> Float[Array, "*batch"]:
    r"""The largest logit that an attention head's softmax sees. Its growth is one of the two instabilities.

    .. math:: \max_{ij} \frac{q_i^\top k_j}{\sqrt d}

    Args:
        q: queries, after any normalization, heads among the batch dimensions.
        k: keys.
        mask: which keys a query sees; all by default.

    Returns:
        The largest logit of each head and example, at least float32; minus infinity where nobody sees anything.

    References:
        Wortsman et al., *Small-scale proxies for large-scale Transformer training instabilities*, ICLR 2024,
        arXiv 2309.14322.
    """
    logits = at_least_float32(q) @ jnp.swapaxes(at_least_float32(k), -1, -2) / jnp.sqrt(q.shape[-1])
    return jnp.max(logits, axis=(-2, -1), initial=-jnp.inf, where=True if mask is None else mask)


@checked
def extrapolate_instability(
    log_n: Float[Array, "models"],
    log_stat: Float[Array, "models"],
    log_n_new: Float[Array, "*new"],
    *,
    degree: int = 2,
) -> Float[Array, "*new"]:
    r"""Forecasts a statistic of larger models: a polynomial in logarithms, fitted by least squares.

    .. math:: \log s(N) \approx \sum_{i=0}^{p} c_i (\log N)^i

    Fit at one learning rate, and compare with where training is known to break: for the largest attention logit that
    is of the order of 1e4.

    >>> import jax.numpy as jnp
    >>> from jaxreg.metrics import extrapolate_instability
    >>> log_n = jnp.log(jnp.array([1e6, 4e6, 16e6]))
    >>> forecast = extrapolate_instability(log_n, jnp.log(jnp.array([10.0, 20.0, 40.0])), jnp.log(64e6), degree=1)
    >>> round(float(jnp.exp(forecast)), 2)
    80.0

    Args:
        log_n: logarithms of the numbers of parameters ``N`` of trained models, more than ``degree`` different ones.
        log_stat: logarithm of the statistic of each, such as its largest attention logit.
        log_n_new: where to forecast.
        degree: ``p >= 1`` of the polynomial (paper: 2).

    Returns:
        The forecast logarithms of the statistic.

    Raises:
        ValueError: ``degree`` is below 1, or there are not more models than that.

    References:
        Wortsman et al., *Small-scale proxies for large-scale Transformer training instabilities*, ICLR 2024,
        arXiv 2309.14322.
    """
    check_range("degree", degree, f"[1, {len(log_n) - 1}]")
    log_n, log_stat, log_n_new = map(at_least_float32, (log_n, log_stat, log_n_new))
    # Powers of numbers within [-1, 1] are what keeps the least squares solvable in float32.
    center = jnp.mean(log_n)
    scale = jnp.max(jnp.abs(log_n - center))
    powers = jnp.vander((log_n - center) / scale, degree + 1)
    coefficients, *_ = jnp.linalg.lstsq(powers, log_stat)
    return jnp.polyval(coefficients, (log_n_new - center) / scale)
