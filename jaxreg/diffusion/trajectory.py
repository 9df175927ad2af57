r"""Consistency trajectory models: jumps between any two points of a trajectory.

A consistency model jumps to the end of the probability-flow ODE, so that further steps have to add noise again, and
errors with it. A trajectory model takes the noise level to jump to as a second time input. One network then gives the
jump, and in the limit of no jump at all the denoiser, hence the score: it can be sampled in one step, along the ODE in
several, or anything between.

The network is any function ``apply_fn(params, x, noise_from, noise_to) -> x-shaped``; both noises are a quarter of the
logarithm of each example's level. Its loss has up to three parts, in proportion to their gradients at the last layer::

    loss = jnp.mean(ctm_loss(...)) + balance * jnp.mean(ctm_dsm_loss(...))

with ``balance`` from :func:`adaptive_balance`, and the first of :func:`ctm_adversarial_losses` likewise.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxreg.axes import per_example
from jaxreg.diffusion.denoising import denoising_loss
from jaxreg.linalg import root
from jaxreg.losses import pseudo_huber
from jaxreg.precision import at_least_float32
from jaxreg.schedules import karras_sigma
from jaxreg.typing import Array, Float, PRNGKeyArray, PyTree, ScalarLike, checked
from jaxreg.validation import check_range


class Jump(NamedTuple):
    """What a trajectory model says of a point.

    Attributes:
        point: ``G``, where its trajectory is at the other level.
        denoised: ``g``, the estimate of the clean example from which ``point`` is interpolated.
    """

    point: Float[Array, "batch *features"]
    denoised: Float[Array, "batch *features"]


@checked
def ctm_jump(
    apply_fn: Callable[..., Any],
    params: PyTree,
    x: Float[Array, "batch *features"],
    t: ScalarLike | Float[Array, "batch"],
    s: ScalarLike | Float[Array, "batch"],
    *,
    sigma_data: ScalarLike = 0.5,
) -> Jump:
    r"""Jumps along the probability-flow ODE, from one noise level to a lower one.

    .. math::
        G(x, t, s) &= \tfrac{s}{t}\, x + \bigl(1 - \tfrac{s}{t}\bigr)\, g(x, t, s) \\
        g(x, t, s) &= \frac{\sigma_d^2}{t^2 + \sigma_d^2}\, x + \frac{t \sigma_d}{\sqrt{t^2 + \sigma_d^2}}
            F\Bigl(\frac{x}{\sqrt{t^2 + \sigma_d^2}}, t, s\Bigr)

    So :math:`G(x, t, t) = x`, and :math:`g(x, t, t)` is the denoiser.

    Args:
        apply_fn: ``F``, called as ``apply_fn(params, x, noise_from, noise_to)``.
        params: of the network.
        x: noisy examples.
        t: their noise levels, > 0; one for all or one for each.
        s: the levels to jump to, in (0, t].
        sigma_data: ``sigma_d > 0``, standard deviation of the data (paper: 0.5).

    Returns:
        The points and the clean examples, at least float32. The network sees the dtype of ``x``.

    Raises:
        ValueError: ``sigma_data`` is not positive.

    References:
        Kim et al., *Consistency Trajectory Models: Learning Probability Flow ODE Trajectory of Diffusion*, ICLR 2024,
        arXiv 2310.02279.
    """
    check_range("sigma_data", sigma_data, "(0, inf)")
    t, s = (jnp.broadcast_to(at_least_float32(jnp.asarray(level)), x.shape[:1]) for level in (t, s))
    noises = 0.25 * jnp.log(t), 0.25 * jnp.log(s)
    t, s = per_example(t, x), per_example(s, x)
    scale = jax.lax.rsqrt(jnp.square(t) + jnp.square(sigma_data))
    wide = at_least_float32(x)
    output = apply_fn(params, (scale * wide).astype(x.dtype), *noises)
    denoised = jnp.square(sigma_data * scale) * wide + t * sigma_data * scale * output
    return Jump(s / t * wide + (1 - s / t) * denoised, denoised)


@checked
def ctm_score(
    apply_fn: Callable[..., Any],
    params: PyTree,
    x: Float[Array, "batch *features"],
    t: ScalarLike | Float[Array, "batch"],
    *,
    sigma_data: ScalarLike = 0.5,
) -> Float[Array, "batch *features"]:
    r"""The score of the noisy density, of which a trajectory model knows as much as a diffusion model.

    .. math:: \nabla \log p_t(x) = \frac{g(x, t, t) - x}{t^2}

    Args:
        apply_fn: the network, see :func:`ctm_jump`.
        params: of the network.
        x: noisy examples.
        t: their noise levels.
        sigma_data: see :func:`ctm_jump`.

    Returns:
        The score.

    References:
        Kim et al., *Consistency Trajectory Models*, ICLR 2024, arXiv 2310.02279.
    """
    denoised = ctm_jump(apply_fn, params, x, t, t, sigma_data=sigma_data).denoised
    level = jnp.broadcast_to(at_least_float32(jnp.asarray(t)), x.shape[:1])
    return (denoised - at_least_float32(x)) / jnp.square(per_example(level, x))


@checked
def heun_step(
    denoiser: Callable[..., Any],
    x: Float[Array, "batch *features"],
    t: Float[Array, "batch"],
    s: Float[Array, "batch"],
) -> Float[Array, "batch *features"]:
    r"""One step of Heun's method along the probability-flow ODE :math:`\dot x = (x - D(x, t)) / t`.

    Args:
        denoiser: ``D(x, t)``, with ``t`` of shape ``[batch]``.
        x: noisy examples.
        t: their noise levels, > 0.
        s: the levels to step to, > 0.

    Returns:
        The points at ``s``.

    References:
        Karras et al., *Elucidating the Design Space of Diffusion-Based Generative Models*, NeurIPS 2022,
        arXiv 2206.00364.
    """
    gap = per_example(s - t, x)
    slope = (x - denoiser(x, t)) / per_example(t, x)
    euler = x + gap * slope
    slope_there = (euler - denoiser(euler, s)) / per_example(s, x)
    return x + gap * 0.5 * (slope + slope_there)


@checked
def ctm_loss(
    apply_fn: Callable[..., Any],
    params: PyTree,
    ema_params: PyTree,
    teacher_denoiser: Callable[..., Any],
    key: PRNGKeyArray,
    x: Float[Array, "batch *features"],
    *,
    n_grid: int = 18,
    max_solver_steps: int = 17,
    distance: Callable[..., Any] | None = None,
    to_the_end: bool = False,
    sigma_data: ScalarLike = 0.5,
    sigma_min: ScalarLike = 0.002,
    sigma_max: ScalarLike = 80.0,
    rho: ScalarLike = 7.0,
) -> Float[Array, "batch"]:
    r"""Soft consistency: a jump has to agree with some steps of a teacher's solver and the rest of the jump.

    .. math::
        \ell = d\Bigl(
            G_{\bar\theta}\bigl(G_\theta(x_t, t, s), s, \sigma_{\min}\bigr),\;
            \operatorname{sg} G_{\bar\theta}\bigl(G_\theta(x_u, u, s), s, \sigma_{\min}\bigr)\Bigr),
        \qquad x_u = \operatorname{solve}(x_t, t \to u)

    with grid points :math:`t > u \ge s`. Both jumps are compared at the end of the trajectory, and the gradient flows
    through the outer jump of averaged weights. The teacher takes :math:`k` steps of Heun's method, with probability
    proportional to :math:`k` and the same for the whole batch.

    Args:
        apply_fn: the network, see :func:`ctm_jump`.
        params: ``theta``.
        ema_params: ``theta-bar``, a moving average of ``theta`` (paper: decay 0.999).
        teacher_denoiser: ``(x, t) -> x``, of a trained diffusion model.
        key: source of noise and levels.
        x: clean examples.
        n_grid: ``N >= 2``, points of the grid (paper: 18 for CIFAR-10, 40 for ImageNet).
        max_solver_steps: the largest ``k``, in [1, N - 1] (paper: 17).
        distance: ``(estimate, target) -> [batch]`` of flattened examples. Paper: LPIPS; if None, the pseudo-Huber
            distance with ``c = 0.00054 sqrt(d)``.
        to_the_end: whether ``s`` is always the lowest level: then it is consistency distillation, whose teacher has
            the current weights.
        sigma_data: see :func:`ctm_jump`.
        sigma_min: lowest noise level (paper: 0.002).
        sigma_max: highest noise level (paper: 80).
        rho: spacing of the grid (paper: 7).

    Returns:
        The loss of each example.

    Raises:
        ValueError: an argument is outside its range.

    References:
        Kim et al., *Consistency Trajectory Models*, ICLR 2024, arXiv 2310.02279.
    """
    check_range("n_grid", n_grid, "[2, inf)")
    check_range("max_solver_steps", max_solver_steps, f"[1, {n_grid - 1}]")
    key_k, key_t, key_s, key_noise = jax.random.split(key, 4)
    batch = len(x)

    def level(index):
        """Of the descending grid."""
        return karras_sigma(n_grid - 1 - index, n_grid, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)

    k = 1 + jax.random.categorical(key_k, jnp.log(jnp.arange(1.0, max_solver_steps + 1)))
    start = jax.random.randint(key_t, [batch], 0, n_grid - k)
    last = jnp.full([batch], n_grid - 1)
    end = last if to_the_end else jax.random.randint(key_s, [batch], start + k, n_grid)
    t, u, s = level(start), level(start + k), level(end)
    x_t = at_least_float32(x) + per_example(t, x) * jax.random.normal(key_noise, x.shape)
    x_u = jax.lax.fori_loop(
        0, k, lambda i, point: heun_step(teacher_denoiser, point, level(start + i), level(start + i + 1)), x_t
    )

    def image(weights, point, level):
        jumped = ctm_jump(apply_fn, weights, point.astype(x.dtype), level, s, sigma_data=sigma_data).point
        outer = ctm_jump(apply_fn, ema_params, jumped.astype(x.dtype), s, sigma_min, sigma_data=sigma_data).point
        return outer.reshape(batch, -1)

    ema_params = jax.lax.stop_gradient(ema_params)
    estimate, target = image(params, x_t, t), jax.lax.stop_gradient(image(params, x_u, u))
    if distance is None:
        return pseudo_huber(estimate, target, c=0.00054 * math.sqrt(estimate.shape[1]))
    return distance(estimate, target)


@checked
def ctm_dsm_loss(
    apply_fn: Callable[..., Any],
    params: PyTree,
    key: PRNGKeyArray,
    x: Float[Array, "batch *features"],
    *,
    p_mean: ScalarLike = -1.2,
    p_std: ScalarLike = 1.2,
    upper_share: ScalarLike = 0.7,
    sigma_data: ScalarLike = 0.5,
    sigma_min: ScalarLike = 0.002,
    sigma_max: ScalarLike = 80.0,
    rho: ScalarLike = 7.0,
) -> Float[Array, "batch"]:
    r"""Denoising score matching for a trajectory model.

    .. math:: \frac{q^2 + \sigma_d^2}{(q\, \sigma_d)^2}\, \|x - g(x + q z, q, q)\|_2^2

    Half of the batch has a lognormal level ``q``, the other half one from the upper part of the grid's range.

    Args:
        apply_fn: the network, see :func:`ctm_jump`.
        params: of the network.
        key: source of noise and levels.
        x: clean examples.
        p_mean: mean of the logarithm of the lognormal level (paper: -1.2).
        p_std: its standard deviation, > 0 (paper: 1.2).
        upper_share: in (0, 1], how much of the range the other half has (authors' code: 0.7).
        sigma_data: see :func:`ctm_jump`.
        sigma_min: lowest noise level (paper: 0.002).
        sigma_max: highest noise level (paper: 80).
        rho: spacing of the grid (paper: 7).

    Returns:
        The loss of each example.

    Raises:
        ValueError: an argument is outside its range.

    References:
        Kim et al., *Consistency Trajectory Models*, ICLR 2024, arXiv 2310.02279.
    """
    check_range("p_std", p_std, "(0, inf)")
    check_range("upper_share", upper_share, "(0, 1]")
    key_lognormal, key_upper, key_noise = jax.random.split(key, 3)
    half = len(x) // 2
    lognormal = jnp.exp(p_mean + p_std * jax.random.normal(key_lognormal, [half]))
    low, high = (jnp.asarray(sigma, jnp.float32) ** (1 / rho) for sigma in (sigma_min, sigma_max))
    upper = (high + upper_share * (low - high) * jax.random.uniform(key_upper, [len(x) - half])) ** rho
    q = jnp.concatenate([lognormal, upper])

    def denoiser(noisy, level):
        return ctm_jump(apply_fn, params, noisy, level, level, sigma_data=sigma_data).denoised

    return denoising_loss(denoiser, key_noise, x, q, sigma_data=sigma_data)


@checked
def ctm_adversarial_losses(
    apply_fn: Callable[..., Any],
    params: PyTree,
    critic_fn: Callable[..., Any],
    critic_params: PyTree,
    key: PRNGKeyArray,
    x: Float[Array, "batch *features"],
    *,
    n_grid: int = 18,
    sigma_data: ScalarLike = 0.5,
    sigma_min: ScalarLike = 0.002,
    sigma_max: ScalarLike = 80.0,
    rho: ScalarLike = 7.0,
) -> tuple[Float[Array, "batch"], Float[Array, "batch"]]:
    r"""A hinge critic of jumps to the end, which lets the model be better than its teacher.

    .. math::
        -D\bigl(G(x_t, t, \sigma_{\min})\bigr), \qquad
        \max(0, 1 - D(x)) + \max\bigl(0, 1 + D(\operatorname{sg} G(x_t, t, \sigma_{\min}))\bigr)

    Args:
        apply_fn: the network, see :func:`ctm_jump`.
        params: of the network.
        critic_fn: ``D``, called as ``critic_fn(critic_params, x) -> [batch]``.
        critic_params: of the critic.
        key: source of noise and levels.
        x: clean examples.
        n_grid: points of the grid, of which the lowest is left out.
        sigma_data: see :func:`ctm_jump`.
        sigma_min: lowest noise level (paper: 0.002).
        sigma_max: highest noise level (paper: 80).
        rho: spacing of the grid (paper: 7).

    Returns:
        The loss of the model, through which no gradient reaches the critic, and that of the critic, through which none
        reaches the model.

    Raises:
        ValueError: ``n_grid`` is below 2.

    References:
        Kim et al., *Consistency Trajectory Models*, ICLR 2024, arXiv 2310.02279.
    """
    check_range("n_grid", n_grid, "[2, inf)")
    key_t, key_noise = jax.random.split(key)
    index = jax.random.randint(key_t, [len(x)], 1, n_grid)
    t = karras_sigma(index, n_grid, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
    noisy = at_least_float32(x) + per_example(t, x) * jax.random.normal(key_noise, x.shape)
    fake = ctm_jump(apply_fn, params, noisy.astype(x.dtype), t, sigma_min, sigma_data=sigma_data).point
    generator = -critic_fn(jax.lax.stop_gradient(critic_params), fake)
    of_data, of_fakes = critic_fn(critic_params, x), critic_fn(critic_params, jax.lax.stop_gradient(fake))
    return generator, jax.nn.relu(1 - of_data) + jax.nn.relu(1 + of_fakes)


@checked
def adaptive_balance(
    grad_a: PyTree, grad_b: PyTree, *, eps: ScalarLike = 1e-4, clip: tuple[ScalarLike, ScalarLike] = (0.0, 1e4)
) -> Float[Array, ""]:
    r"""The weight of a second loss that gives it as large a gradient as the first.

    .. math:: \operatorname{clip}\Bigl(\frac{\|\nabla_a\|}{\|\nabla_b\| + \epsilon}\Bigr)

    Args:
        grad_a: gradient of the first loss with respect to the last layer.
        grad_b: gradient of the second.
        eps: > 0 (paper: 1e-4).
        clip: lowest and highest weight. Paper: at most 1e4 for score matching; 0.01 to 10 for the adversarial loss.

    Returns:
        The weight, without gradient.

    Raises:
        ValueError: ``eps`` is not positive.

    References:
        Esser et al., *Taming Transformers for High-Resolution Image Synthesis*, CVPR 2021, arXiv 2012.09841; Kim et
        al., *Consistency Trajectory Models*, ICLR 2024, arXiv 2310.02279.
    """
    check_range("eps", eps, "(0, inf)")
    norm_a, norm_b = (optax.tree.norm(jax.tree.map(at_least_float32, grad)) for grad in (grad_a, grad_b))
    return jax.lax.stop_gradient(jnp.clip(norm_a / (norm_b + eps), *clip))


@checked
def ctm_sample(
    apply_fn: Callable[..., Any],
    params: PyTree,
    key: PRNGKeyArray,
    shape: Sequence[int],
    *,
    sigmas: Float[Array, "steps"] | Sequence[ScalarLike],
    gamma: ScalarLike = 0.0,
    sigma_data: ScalarLike = 0.5,
    sigma_min: ScalarLike = 0.002,
) -> Float[Array, "..."]:
    r"""Samples of a trajectory model, in one step or several.

    From each level :math:`t` it jumps below the next one, :math:`t'`, and adds noise up to it:

    .. math:: x \leftarrow G(x, t, s) + \sqrt{t'^2 - s^2}\, z, \qquad
        s = \sqrt{1 - \gamma^2}\, (t' - \sigma_{\min}) + \sigma_{\min}

    and from the last one to :math:`\sigma_{\min}`.

    Args:
        apply_fn: the network, see :func:`ctm_jump`.
        params: averaged (paper: decay 0.999).
        key: source of the noise.
        shape: of the samples, the batch first.
        sigmas: decreasing noise levels, one for each step, above ``sigma_min``.
        gamma: in [0, 1]: 0 follows the ODE (paper: best), 1 is the sampler of consistency models.
        sigma_data: see :func:`ctm_jump`.
        sigma_min: lowest noise level (paper: 0.002).

    Returns:
        The samples.

    Raises:
        ValueError: ``gamma`` is outside [0, 1], or there are no ``sigmas``.

    References:
        Kim et al., *Consistency Trajectory Models*, ICLR 2024, arXiv 2310.02279.
    """
    check_range("gamma", gamma, "[0, 1]")
    if len(sigmas) == 0:
        raise ValueError("sigmas must have at least one noise level, got none")
    kept = root(1 - jnp.square(at_least_float32(jnp.asarray(gamma))))
    x = sigmas[0] * jax.random.normal(jax.random.fold_in(key, 0), shape)
    for position, (t, following) in enumerate(zip(sigmas, [*sigmas[1:], sigma_min], strict=True), start=1):
        s = kept * (following - sigma_min) + sigma_min
        x = ctm_jump(apply_fn, params, x, t, s, sigma_data=sigma_data).point
        # The difference of the squares of t' and s, such that it is zero without noise.
        spread = root((1 - kept) * (following - sigma_min) * (following + s))
        x = x + spread * jax.random.normal(jax.random.fold_in(key, position), shape)
    return x
