"""Consistency models, trained from data alone.

A consistency model maps a noisy example of any noise level to a clean one in a single step, such that all points of one
trajectory of the probability-flow ODE have the same image. It learns this from pairs of neighbouring noise levels,
with the same noise: the image of the lower level is the target of the higher one, and at the lowest level the model is
the identity by construction.

The network is any function ``apply_fn(params, x, noise) -> x-shaped``, where ``noise`` is a quarter of the logarithm
of each example's noise level. Conditions and dropout go into the function. A dropout key that it closes over is the
same for both points of a pair, as it should be::

    def loss(params, key, x, labels, step):
        key_dropout, key_loss = jax.random.split(key)

        def apply_fn(params, x, noise):
            return model.apply({"params": params}, x, noise, labels, rngs={"dropout": key_dropout})

        return jnp.mean(ict_loss(apply_fn, params, key_loss, x, step, total_steps=400_000))
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.axes import per_example
from jaxreg.diffusion.coupling import minibatch_ot
from jaxreg.linalg import root
from jaxreg.losses import cauchy, pseudo_huber
from jaxreg.precision import at_least_float32
from jaxreg.schedules import adaptive_c, doubling_steps, karras_index, karras_sigma
from jaxreg.typing import Array, Float, Int, PRNGKeyArray, PyTree, ScalarLike, checked
from jaxreg.validation import check_range


class SigmaPair(NamedTuple):
    """Neighbouring noise levels, of each example.

    Attributes:
        index: which interval of the grid, from 0.
        low: its lower end, the teacher's level.
        high: its upper end, the student's level.
    """

    index: Int[Array, "batch"]
    low: Float[Array, "batch"]
    high: Float[Array, "batch"]


@checked
def consistency_apply(
    apply_fn: Callable[..., Any],
    params: PyTree,
    x: Float[Array, "batch *features"],
    sigma: ScalarLike | Float[Array, "batch"],
    *,
    sigma_data: ScalarLike = 0.5,
    sigma_min: ScalarLike = 0.002,
) -> Float[Array, "batch *features"]:
    r"""A consistency model: a network, scaled such that the lowest noise level is mapped to itself.

    .. math::
        f(x, \sigma) = \frac{\sigma_d^2}{(\sigma - \sigma_{\min})^2 + \sigma_d^2}\, x
            + \frac{\sigma_d (\sigma - \sigma_{\min})}{\sqrt{\sigma^2 + \sigma_d^2}}
            F\Bigl(\frac{x}{\sqrt{\sigma^2 + \sigma_d^2}}, \tfrac14 \log \sigma\Bigr)

    Args:
        apply_fn: ``F``, called as ``apply_fn(params, x, noise)`` with ``noise`` of shape ``[batch]``.
        params: of the network.
        x: noisy examples.
        sigma: their noise levels, > 0; one for all or one for each.
        sigma_data: ``sigma_d > 0``, standard deviation of the data (paper: 0.5).
        sigma_min: the level at which the model is the identity (paper: 0.002).

    Returns:
        Clean examples, at least float32. The network sees the dtype of ``x``.

    Raises:
        ValueError: ``sigma_data`` or ``sigma_min`` is not positive.

    References:
        Song et al., *Consistency Models*, ICML 2023, arXiv 2303.01469.
    """
    check_range("sigma_data", sigma_data, "(0, inf)")
    check_range("sigma_min", sigma_min, "(0, inf)")
    sigma = jnp.broadcast_to(at_least_float32(jnp.asarray(sigma)), x.shape[:1])
    noise = 0.25 * jnp.log(sigma)
    sigma = per_example(sigma, x)
    scale = jax.lax.rsqrt(jnp.square(sigma) + jnp.square(sigma_data))
    above = sigma - sigma_min
    skip = jnp.square(sigma_data) / (jnp.square(above) + jnp.square(sigma_data))
    wide = at_least_float32(x)
    return skip * wide + sigma_data * above * scale * apply_fn(params, (scale * wide).astype(x.dtype), noise)


@checked
def consistency_pair(
    apply_fn: Callable[..., Any],
    params: PyTree,
    x: Float[Array, "batch *features"],
    noise: Float[Array, "batch *features"],
    low: Float[Array, "batch"],
    high: Float[Array, "batch"],
    *,
    target_params: PyTree | None = None,
    sigma_data: ScalarLike = 0.5,
    sigma_min: ScalarLike = 0.002,
) -> tuple[Float[Array, "batch *features"], Float[Array, "batch *features"]]:
    r"""What consistency training compares: the model at two noise levels, with the same noise.

    .. math:: f_\theta(x + \sigma_{\text{high}} z, \sigma_{\text{high}}), \qquad
        \operatorname{sg} f_{\theta^-}(x + \sigma_{\text{low}} z, \sigma_{\text{low}})

    Args:
        apply_fn: the network, see :func:`consistency_apply`.
        params: ``theta``, of the student.
        x: clean examples.
        noise: ``z``, standard normal.
        low: noise level of the teacher.
        high: noise level of the student.
        target_params: ``theta^-`` of the teacher; the student's own if None, as in iCT. An average of past weights
            is what the original consistency training uses.
        sigma_data: see :func:`consistency_apply`.
        sigma_min: see :func:`consistency_apply`.

    Returns:
        Student and teacher. No gradient flows through the teacher.

    References:
        Song et al., *Consistency Models*, ICML 2023, arXiv 2303.01469.
    """
    target_params = params if target_params is None else target_params
    student = _at_level(apply_fn, params, x, noise, high, sigma_data, sigma_min)
    teacher = _at_level(apply_fn, target_params, x, noise, low, sigma_data, sigma_min)
    return student, jax.lax.stop_gradient(teacher)


@checked
def sample_sigma_pair(
    key: PRNGKeyArray,
    n: ScalarLike,
    batch: int,
    *,
    p_mean: ScalarLike = -1.1,
    p_std: ScalarLike = 2.0,
    sigma_min: ScalarLike = 0.002,
    sigma_max: ScalarLike = 80.0,
    rho: ScalarLike = 7.0,
) -> SigmaPair:
    r"""Draws neighbouring noise levels as iCT does, on a grid whose size may be traced.

    The interval is that of a lognormal level within the grid, so it has the probabilities of
    :func:`jaxreg.schedules.lognormal_index_probs`.

    Args:
        key: source of randomness.
        n: ``N >= 2``, number of points of the grid, see :func:`jaxreg.schedules.doubling_steps`.
        batch: how many pairs to draw.
        p_mean: ``P_m``, mean of the level's logarithm (paper: -1.1).
        p_std: ``P_s > 0``, its standard deviation (paper: 2).
        sigma_min: lowest noise level (paper: 0.002).
        sigma_max: highest noise level (paper: 80).
        rho: spacing of the grid (paper: 7).

    Returns:
        The pairs.

    Raises:
        ValueError: an argument is outside its range.

    References:
        Song and Dhariwal, *Improved Techniques for Training Consistency Models*, ICLR 2024, arXiv 2310.14189.
    """
    check_range("p_std", p_std, "(0, inf)")
    grid = dict(sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
    ends = ((jnp.log(jnp.asarray(sigma, jnp.float32)) - p_mean) / p_std for sigma in (sigma_min, sigma_max))
    logarithm = p_mean + p_std * jax.random.truncated_normal(key, *ends, (batch,))
    index = karras_index(jnp.exp(logarithm), n, **grid)
    return SigmaPair(index, karras_sigma(index, n, **grid), karras_sigma(index + 1, n, **grid))


@checked
def ict_loss(
    apply_fn: Callable[..., Any],
    params: PyTree,
    key: PRNGKeyArray,
    x: Float[Array, "batch *features"],
    step: ScalarLike,
    *,
    total_steps: int,
    s0: int = 10,
    s1: int = 1280,
    p_mean: ScalarLike = -1.1,
    p_std: ScalarLike = 2.0,
    c: ScalarLike | None = None,
    sigma_data: ScalarLike = 0.5,
    sigma_min: ScalarLike = 0.002,
    sigma_max: ScalarLike = 80.0,
    rho: ScalarLike = 7.0,
    target_params: PyTree | None = None,
) -> Float[Array, "batch"]:
    r"""Improved consistency training.

    .. math::
        \ell = \frac{1}{\sigma_{i+1} - \sigma_i} \Bigl(
            \sqrt{\|f_\theta(x + \sigma_{i+1} z, \sigma_{i+1})
                - \operatorname{sg} f_\theta(x + \sigma_i z, \sigma_i)\|_2^2 + c^2} - c \Bigr)

    on a grid that :func:`jaxreg.schedules.doubling_steps` refines, with lognormal ``i``
    (:func:`sample_sigma_pair`). The teacher has the current weights: an average would lag behind, which biases the
    target. Sample from an average of the weights nevertheless (decay 0.99993 in the paper, 0.99 for some thousand
    steps). The paper trains with RAdam at 1e-4, dropout 0.3 and :class:`jaxreg.layers.NoiseEmbedding`.

    >>> import jax, jax.numpy as jnp
    >>> from jaxreg.diffusion import ict_loss
    >>> apply_fn = lambda params, x, noise: params * x + noise[:, None]
    >>> ict_loss(apply_fn, jnp.ones(2), jax.random.key(0), jnp.zeros([5, 2]), 0, total_steps=100).shape
    (5,)

    Args:
        apply_fn: the network, see :func:`consistency_apply`.
        params: ``theta``.
        key: source of noise and noise levels.
        x: clean examples, with standard deviation about ``sigma_data``.
        step: ``k``, training steps taken.
        total_steps: ``K``, planned.
        s0: intervals of the grid at first (paper: 10).
        s1: intervals at last (paper: 1280; fewer for short runs).
        p_mean: mean of the noise level's logarithm (paper: -1.1).
        p_std: its standard deviation (paper: 2).
        c: > 0, where the pseudo-Huber distance turns linear; ``0.00054 sqrt(d)`` for ``d`` features if None (paper).
        sigma_data: standard deviation of the data (paper: 0.5).
        sigma_min: lowest noise level (paper: 0.002).
        sigma_max: highest noise level (paper: 80).
        rho: spacing of the grid (paper: 7).
        target_params: weights of the teacher in place of the current ones.

    Returns:
        The loss of each example.

    Raises:
        ValueError: an argument is outside its range.

    References:
        Song and Dhariwal, *Improved Techniques for Training Consistency Models*, ICLR 2024, arXiv 2310.14189.
    """
    key_sigma, key_noise = jax.random.split(key)
    levels = dict(p_mean=p_mean, p_std=p_std, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
    _, pair = _scheduled_pair(key_sigma, len(x), step, total_steps, s0, s1, **levels)
    student, teacher = consistency_pair(
        apply_fn,
        params,
        x,
        jax.random.normal(key_noise, x.shape, x.dtype),
        pair.low,
        pair.high,
        target_params=target_params,
        sigma_data=sigma_data,
        sigma_min=sigma_min,
    )
    student, teacher = student.reshape(len(x), -1), teacher.reshape(len(x), -1)
    c = 0.00054 * math.sqrt(student.shape[1]) if c is None else c
    return pseudo_huber(student, teacher, c=c) / (pair.high - pair.low)


@checked
def slct_loss(
    apply_fn: Callable[..., Any],
    params: PyTree,
    key: PRNGKeyArray,
    x: Float[Array, "batch *features"],
    step: ScalarLike,
    *,
    total_steps: int,
    s0: int = 10,
    s1: int = 1280,
    p_mean: ScalarLike = -1.1,
    p_std: ScalarLike = 2.0,
    c: ScalarLike | None = None,
    diffusion_ratio: ScalarLike = 0.25,
    diffusion_weight: ScalarLike = 1.0,
    coupling_groups: int = 1,
    sigma_data: ScalarLike = 0.5,
    sigma_min: ScalarLike = 0.002,
    sigma_max: ScalarLike = 80.0,
    rho: ScalarLike = 7.0,
) -> Float[Array, "batch"]:
    r"""Consistency training for latents, which have outliers.

    .. math::
        \ell = \frac{1}{\sigma_{i+1} - \sigma_i} \log \Bigl(1 + \frac{
            \|f_\theta(x + \sigma_{i+1} z, \sigma_{i+1})
            - \operatorname{sg} f_\theta(x + \sigma_i z, \sigma_i)\|_2^2}{2 c^2} \Bigr)
        + w\,[i \le \lfloor r N \rfloor]\, \|f_\theta(x + \sigma_i z, \sigma_i) - x\|_2^2

    It is :func:`ict_loss` with the Cauchy loss, whose scale shrinks as the grid is refined
    (:func:`jaxreg.schedules.adaptive_c`); with a denoising term at low noise; and with noise that is coupled to the
    examples (:func:`minibatch_ot`). The network normalizes by :class:`jaxreg.layers.NonScalingLayerNorm`. Gradients
    can be large, with a small ``c`` and small gaps: clip them.

    Args:
        apply_fn: the network, see :func:`consistency_apply`.
        params: ``theta``.
        key: source of noise and noise levels.
        x: clean examples, normalized to a standard deviation of ``sigma_data``.
        step: ``k``, training steps taken.
        total_steps: ``K``, planned.
        s0: see :func:`ict_loss`, as are the next three.
        s1: intervals at last.
        p_mean: mean of the noise level's logarithm.
        p_std: its standard deviation.
        c: > 0, the scale of an ordinary error; that of :func:`jaxreg.schedules.adaptive_c` if None (paper).
        diffusion_ratio: ``r`` in [0, 1], part of the grid, from its lowest level, that has the denoising term
            (paper: 0.25).
        diffusion_weight: ``w >= 0`` (our choice: 1).
        coupling_groups: into how many groups the batch is split, each of which is coupled by itself: 1 couples the
            whole batch (paper), 0 not at all.
        sigma_data: see :func:`ict_loss`, as are the other arguments.
        sigma_min: lowest noise level.
        sigma_max: highest noise level.
        rho: spacing of the grid.

    Returns:
        The loss of each example.

    Raises:
        ValueError: an argument is outside its range, or the groups do not divide the batch.

    References:
        Dao et al., *Improved Training Technique for Latent Consistency Models*, ICLR 2025, arXiv 2502.01441.
    """
    check_range("diffusion_ratio", diffusion_ratio, "[0, 1]")
    check_range("diffusion_weight", diffusion_weight, "[0, inf)")
    check_range("coupling_groups", coupling_groups, "[0, inf)")
    if coupling_groups and len(x) % coupling_groups:
        raise ValueError(f"coupling_groups must divide the batch of {len(x)}, got {coupling_groups}")
    key_sigma, key_noise = jax.random.split(key)
    levels = dict(p_mean=p_mean, p_std=p_std, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
    n, pair = _scheduled_pair(key_sigma, len(x), step, total_steps, s0, s1, **levels)
    noise = jax.random.normal(key_noise, x.shape, x.dtype)
    if coupling_groups:
        groups = [points.reshape(coupling_groups, -1, *x.shape[1:]) for points in (x, noise)]
        noise = jax.vmap(lambda x, z: z[minibatch_ot(x, z)])(*groups).reshape(x.shape)

    student, low = (
        _at_level(apply_fn, params, x, noise, sigma, sigma_data, sigma_min).reshape(len(x), -1)
        for sigma in (pair.high, pair.low)
    )
    consistency = cauchy(student, jax.lax.stop_gradient(low), c=adaptive_c(n) if c is None else c)
    denoising = jnp.sum(jnp.square(low - at_least_float32(x).reshape(len(x), -1)), axis=-1)
    is_low = pair.index < jnp.floor(diffusion_ratio * n)
    return consistency / (pair.high - pair.low) + diffusion_weight * jnp.where(is_low, denoising, 0.0)


@checked
def consistency_sample(
    apply_fn: Callable[..., Any],
    params: PyTree,
    key: PRNGKeyArray,
    shape: Sequence[int],
    *,
    sigmas: Float[Array, "steps"] | Sequence[ScalarLike] = (80.0, 0.821),
    sigma_data: ScalarLike = 0.5,
    sigma_min: ScalarLike = 0.002,
) -> Float[Array, "..."]:
    r"""Samples of a consistency model, in one step or several.

    .. math:: x \leftarrow f(\sigma_1 z_1, \sigma_1), \qquad
        x \leftarrow f\bigl(x + \sqrt{\sigma_j^2 - \sigma_{\min}^2}\, z_j, \sigma_j\bigr), \quad j = 2, 3, \dots

    Args:
        apply_fn: the network, see :func:`consistency_apply`.
        params: averaged over the end of training (paper).
        key: source of the noise.
        shape: of the samples, the batch first.
        sigmas: decreasing noise levels, one for each step. Paper: ``(80,)``; ``(80, 0.821)`` on CIFAR-10 and
            ``(80, 1.526)`` on ImageNet-64.
        sigma_data: see :func:`consistency_apply`.
        sigma_min: see :func:`consistency_apply`.

    Returns:
        The samples.

    Raises:
        ValueError: there are no ``sigmas``.

    References:
        Song et al., *Consistency Models*, ICML 2023, arXiv 2303.01469.
    """
    if len(sigmas) == 0:
        raise ValueError("sigmas must have at least one noise level, got none")
    model = dict(sigma_data=sigma_data, sigma_min=sigma_min)
    x = jnp.zeros(shape)
    for position, sigma in enumerate(sigmas):
        spread = sigma if position == 0 else root(at_least_float32(jnp.square(sigma) - jnp.square(sigma_min)))
        noise = jax.random.normal(jax.random.fold_in(key, position), shape)
        x = consistency_apply(apply_fn, params, x + spread * noise, sigma, **model)
    return x


def _at_level(apply_fn, params, x, noise, sigma, sigma_data, sigma_min):
    """The model's image of examples at a noise level."""
    noisy = x + (per_example(sigma, x) * noise).astype(x.dtype)
    return consistency_apply(apply_fn, params, noisy, sigma, sigma_data=sigma_data, sigma_min=sigma_min)


def _scheduled_pair(key, batch, step, total_steps, s0, s1, **levels):
    """The number of points of the grid at a step, and a pair of its levels for each example."""
    n = doubling_steps(step, total_steps=total_steps, s0=s0, s1=s1)
    return n, sample_sigma_pair(key, n, batch, **levels)
