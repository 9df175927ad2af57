"""What a generative model of noisy examples may be trained for, and how it is sampled then.

All take the network as ``apply_fn(params, x, *noises)``, with a quarter of the logarithm of each example's noise level;
a trajectory model has a second noise, the level to jump to.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.harness.train_step import Moment
from jaxreg.diffusion import (
    adaptive_balance,
    consistency_sample,
    ctm_dsm_loss,
    ctm_jump,
    ctm_loss,
    ctm_sample,
    denoising_loss,
    heun_step,
    ict_loss,
    slct_loss,
)
from jaxreg.schedules import karras_sigma
from jaxreg.typing import Array, Float, PRNGKeyArray, ScalarLike, checked
from jaxreg.validation import check_range

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0

Apply = Callable[..., Array]
Denoiser = Callable[[Float[Array, "batch *features"], Float[Array, "batch"]], Float[Array, "batch *features"]]


class Plan(NamedTuple):
    """What a loss has to know of its run.

    Attributes:
        total_steps: of training.
        sigma_data: standard deviation of the data.
        s0: intervals of the grid of noise levels at first.
        s1: intervals at last; the points of a trajectory model's grid are one more.
        solver_steps: most steps of the solver that a trajectory model learns from.
        coupling: how many examples at a time are coupled with noise by sLCT; 0 for none.
        last_layer: name of the network's last layer in its parameters.
    """

    total_steps: int
    sigma_data: float
    s0: int
    s1: int
    solver_steps: int
    coupling: int
    last_layer: str


class Objective(NamedTuple):
    """A loss, and the sampler that goes with it.

    Attributes:
        levels: how many noise levels the network takes.
        loss: ``(apply_fn, params, key, x, moment, plan) -> [batch]``; noise levels come from the key, ``moment`` has
            step and averaged parameters.
        sample: ``(apply_fn, params, key, shape, steps, sigma_data) -> samples`` in a number of steps.
        sample_steps: how many it takes by default.
    """

    levels: int
    loss: Callable[..., Float[Array, "batch"]]
    sample: Callable[..., Array]
    sample_steps: int


def noise_levels(steps: int) -> list[Float[Array, ""]]:
    """The levels to sample at: the upper ones of as many and one more that are evenly spaced as training spaces them.

    Args:
        steps: of sampling, at least 1.

    Returns:
        Decreasing levels, the first of them 80.
    """
    return [karras_sigma(steps - taken, steps + 1) for taken in range(steps)]


@checked
def denoise(
    apply_fn: Callable[..., Any],
    params: Any,
    x: Float[Array, "batch *features"],
    sigma: ScalarLike | Float[Array, "batch"],
    *,
    sigma_data: ScalarLike = 0.5,
) -> Float[Array, "batch *features"]:
    r"""A diffusion model's estimate of clean examples.

    .. math:: D(x, \sigma) = \frac{\sigma_d^2}{\sigma^2 + \sigma_d^2}\, x
        + \frac{\sigma \sigma_d}{\sqrt{\sigma^2 + \sigma_d^2}}
        F\Bigl(\frac{x}{\sqrt{\sigma^2 + \sigma_d^2}}, \tfrac14 \log \sigma\Bigr)

    Args:
        apply_fn: ``F``, called as ``apply_fn(params, x, noise)``.
        params: of the network.
        x: noisy examples.
        sigma: their noise levels, > 0.
        sigma_data: ``sigma_d > 0``, standard deviation of the data.

    Returns:
        The estimates.

    References:
        Karras et al., *Elucidating the Design Space of Diffusion-Based Generative Models*, NeurIPS 2022,
        arXiv 2206.00364.
    """

    def one_level(params, x, noise, _):
        return apply_fn(params, x, noise)

    return ctm_jump(one_level, params, x, sigma, sigma, sigma_data=sigma_data).denoised


@checked
def diffusion_loss(
    apply_fn: Callable[..., Any],
    params: Any,
    key: PRNGKeyArray,
    x: Float[Array, "batch *features"],
    *,
    p_mean: ScalarLike = -1.2,
    p_std: ScalarLike = 1.2,
    sigma_data: ScalarLike = 0.5,
) -> Float[Array, "batch"]:
    r"""Denoising score matching at lognormal levels, weighted such that every level counts alike at first.

    .. math:: \frac{\sigma^2 + \sigma_d^2}{(\sigma \sigma_d)^2}\, \|D(x + \sigma z, \sigma) - x\|_2^2,
        \qquad \log \sigma \sim \mathcal N(P_m, P_s^2)

    Args:
        apply_fn: the network, see :func:`denoise`.
        params: of the network.
        key: source of noise and noise levels.
        x: clean examples.
        p_mean: mean of the level's logarithm (paper: -1.2).
        p_std: its standard deviation, > 0 (paper: 1.2).
        sigma_data: standard deviation of the data.

    Returns:
        The loss of each example.

    Raises:
        ValueError: ``p_std`` is not positive.

    References:
        Karras et al., *Elucidating the Design Space of Diffusion-Based Generative Models*, NeurIPS 2022,
        arXiv 2206.00364.
    """
    check_range("p_std", p_std, "(0, inf)")
    key_sigma, key_noise = jax.random.split(key)
    sigma = jnp.exp(p_mean + p_std * jax.random.normal(key_sigma, [len(x)]))

    def denoiser(noisy, level):
        return denoise(apply_fn, params, noisy, level, sigma_data=sigma_data)

    return denoising_loss(denoiser, key_noise, x, sigma, sigma_data=sigma_data)


def heun_sample(denoiser: Denoiser, key: PRNGKeyArray, shape: Sequence[int], steps: int) -> Array:
    """Samples of a diffusion model: Heun's method along the probability-flow ODE, denoised at the end.

    Args:
        denoiser: ``(x, sigma) -> x``.
        key: source of the noise at the start.
        shape: of the samples, the batch first.
        steps: of the method, each of which denoises twice; 0 denoises pure noise.

    Returns:
        The samples.
    """

    def level(index):
        return jnp.full(shape[:1], karras_sigma(steps - index, steps + 1))

    def advance(index, x):
        return heun_step(denoiser, x, level(index), level(index + 1))

    x = SIGMA_MAX * jax.random.normal(key, shape)
    if not steps:
        return denoiser(x, jnp.full(shape[:1], SIGMA_MAX))
    return denoiser(jax.lax.fori_loop(0, steps, advance, x), jnp.full(shape[:1], SIGMA_MIN))


def _ict(apply_fn, params, key, x, moment: Moment, plan: Plan):
    levels = dict(total_steps=plan.total_steps, s0=plan.s0, s1=plan.s1, sigma_data=plan.sigma_data)
    return ict_loss(apply_fn, params, key, x, moment.step, **levels)


def _slct(apply_fn, params, key, x, moment, plan):
    levels = dict(total_steps=plan.total_steps, s0=plan.s0, s1=plan.s1, sigma_data=plan.sigma_data)
    if plan.coupling and len(x) % plan.coupling:
        raise ValueError(f"coupling must divide the examples of a device and a part, {len(x)}, got {plan.coupling}")
    groups = len(x) // plan.coupling if plan.coupling else 0
    return slct_loss(apply_fn, params, key, x, moment.step, coupling_groups=groups, **levels)


def _ctm(apply_fn, params, key, x, moment, plan):
    key_jump, key_denoise = jax.random.split(key)

    def own_average(x, sigma):
        return ctm_jump(apply_fn, moment.average, x, sigma, sigma, sigma_data=plan.sigma_data).denoised

    def jumps(params):
        return ctm_loss(
            apply_fn,
            params,
            moment.average,
            own_average,
            key_jump,
            x,
            n_grid=plan.s1 + 1,
            max_solver_steps=min(plan.solver_steps, plan.s1),
            sigma_data=plan.sigma_data,
        )

    def denoising(params):
        return ctm_dsm_loss(apply_fn, params, key_denoise, x, sigma_data=plan.sigma_data)

    def at_last_layer(part):
        layer = params[plan.last_layer]
        return jax.grad(lambda layer: jnp.mean(part({**params, plan.last_layer: layer})))(layer)

    balance = adaptive_balance(at_last_layer(jumps), at_last_layer(denoising))
    return jumps(params) + balance * denoising(params)


def _diffusion(apply_fn, params, key, x, moment, plan):
    return diffusion_loss(apply_fn, params, key, x, sigma_data=plan.sigma_data)


def _sample_consistency(apply_fn, params, key, shape, steps, sigma_data):
    return consistency_sample(apply_fn, params, key, shape, sigmas=noise_levels(steps), sigma_data=sigma_data)


def _sample_trajectory(apply_fn, params, key, shape, steps, sigma_data):
    return ctm_sample(apply_fn, params, key, shape, sigmas=noise_levels(steps), sigma_data=sigma_data)


def _sample_diffusion(apply_fn, params, key, shape, steps, sigma_data):
    return heun_sample(lambda x, sigma: denoise(apply_fn, params, x, sigma, sigma_data=sigma_data), key, shape, steps)


OBJECTIVES = {
    "ict": Objective(1, _ict, _sample_consistency, sample_steps=1),
    "slct": Objective(1, _slct, _sample_consistency, sample_steps=1),
    "ctm": Objective(2, _ctm, _sample_trajectory, sample_steps=1),
    "diffusion": Objective(1, _diffusion, _sample_diffusion, sample_steps=18),
}
