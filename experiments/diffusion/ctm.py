"""Consistency trajectory models: more steps may not make samples worse. A ring of eight Gaussians.

The teacher is the closed-form denoiser. A consistency model distilled from it jumps to the end of a trajectory only, so
every further step adds noise and makes a new error; a trajectory model goes down the trajectory in steps of any size.
Two of those are distilled: one by the trajectory model's loss with all jumps going to the end, hence a teacher of many
steps; and one as usual, by single steps of the teacher, with the distance, weights and noise levels of improved
consistency training, without which it diverges. All are sampled at the same noise levels, evenly spaced on the grid,
from averaged weights; the decay is 0.99, for the paper's 0.999 remembers a third of a run as short as this. There is
no adversarial part.
"""

import jax
import jax.numpy as jnp
import optax

from experiments.harness.claim import Claim, Comparison, Criterion
from experiments.harness.models import NoiseMlp
from experiments.harness.training import train
from jaxreg.data import gaussian_ring, ring_denoiser
from jaxreg.diffusion import (
    adaptive_balance,
    consistency_apply,
    consistency_sample,
    ctm_dsm_loss,
    ctm_loss,
    ctm_sample,
    heun_step,
    sample_sigma_pair,
)
from jaxreg.losses import pseudo_huber
from jaxreg.metrics import energy_distance
from jaxreg.schedules import karras_sigma

BATCH, DECAY, GRID = 256, 0.99, 18
STEPS = (1, 2, 4, 8)  # of sampling
RESOLUTION = 0.0007  # standard deviation of the distance between two samples of data: less is not a difference

CLAIM = Claim(
    slug="ctm",
    paper="Consistency Trajectory Models: Learning Probability Flow ODE Trajectory of Diffusion",
    arxiv="2310.02279",
    says="Samples of a consistency trajectory model in eight steps are at least 15% closer to the data than those of a "
    "distilled consistency model, and not farther from it than its own in one step.",
    metric="energy distance of samples in 8 steps, 0.0007 if it is less",
    better="lower",
    worst=1.0,
    min_effect=0.15,
    method="ctm",
    baselines=("cm", "cm_single_steps"),
    grid={"learning_rate": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)},
    also=(
        Criterion(
            metric="energy distance in 8 steps minus that in 1",
            better="lower",
            worst=1.0,
            margin=0.001,
            relative=False,
            score="rise",
            tuned_on=("score", "lower"),
            baselines=("no_rise",),
        ),
    ),
    beside=(Comparison("the consistency model of the same loss", baselines=("cm",)),),
    finding="Distilled by single steps, with the weights of improved consistency training, a consistency model gets "
    "better with every step and after eight cannot be told from data: where all its jumps are learnt, new noise "
    "corrects what earlier steps did wrong. With the levels that the trajectory model draws, where low ones are rare, "
    "a consistency model gets worse with every step, as published: from 0.003 in one to 0.07 in eight. In one step the "
    "trajectory model is the best of the three.",
    steps=3000,
    smoke_steps=2,
    smoke_sizes={"samples": 64},
    seeds=8,
)


def run(key, arm, *, learning_rate, steps, samples=2048):
    """Distils one model; the score is the energy distance of its samples in eight steps."""
    if arm == "no_rise":
        return {"score": jnp.zeros([]), "rise": jnp.zeros([])}
    key_init, key_train, key_data, key_sample = jax.random.split(key, 4)
    model = NoiseMlp()
    noises = [jnp.zeros([1])] * (1 if arm == "cm_single_steps" else 2)
    variables = model.init(key_init, jnp.zeros([1, 2]), *noises)
    last_layer = "Dense_3"

    def apply_fn(params, x, *noises):
        return model.apply({"params": params, "buffers": variables["buffers"]}, x, *noises)

    def single_steps(params, key, x):
        key_sigma, key_noise = jax.random.split(key)
        _, low, high = sample_sigma_pair(key_sigma, GRID, BATCH)
        noisy = x + high[:, None] * jax.random.normal(key_noise, x.shape)
        student = consistency_apply(apply_fn, params, noisy, high)
        target = consistency_apply(apply_fn, params, heun_step(ring_denoiser, noisy, high, low), low)
        distance = pseudo_huber(student, jax.lax.stop_gradient(target), c=0.00054 * jnp.sqrt(2.0))
        return jnp.mean(distance / (high - low))

    def loss(params, average, key):
        key_x, key_ctm, key_dsm = jax.random.split(key, 3)
        x = gaussian_ring(key_x, BATCH)

        def consistency(params):
            if arm == "cm_single_steps":
                return single_steps(params, key_ctm, x)
            options = dict(n_grid=GRID, to_the_end=arm == "cm")
            return ctm_loss(apply_fn, params, average, ring_denoiser, key_ctm, x, **options).mean()

        def score_matching(params):
            return ctm_dsm_loss(apply_fn, params, key_dsm, x).mean()

        def at_last_layer(part):
            return jax.grad(lambda layer: part({**params, last_layer: layer}))(params[last_layer])

        total = consistency(params)
        if arm == "ctm":
            balance = adaptive_balance(at_last_layer(consistency), at_last_layer(score_matching))
            total = total + balance * score_matching(params)
        return total, optax.incremental_update(params, average, 1 - DECAY)

    def measure(params, average):
        data = gaussian_ring(key_data, samples)

        def distance(count):
            sigmas = [karras_sigma(count - i, count + 1) for i in range(count)]
            if arm == "cm_single_steps":
                drawn = consistency_sample(apply_fn, average, key_sample, (samples, 2), sigmas=sigmas)
            else:
                gamma = 1.0 if arm == "cm" else 0.0
                drawn = ctm_sample(apply_fn, average, key_sample, (samples, 2), sigmas=sigmas, gamma=gamma)
            return energy_distance(drawn, data, block_size=256)

        return {f"in_{count}_steps": distance(count) for count in STEPS}

    _, _, curves = train(
        key_train,
        variables["params"],
        optax.radam(learning_rate),
        loss,
        steps=steps,
        state=variables["params"],
        measure=measure,
        points=5,
    )
    figures = jax.tree.map(lambda curve: curve[-1], curves)
    rise = figures["in_8_steps"] - figures["in_1_steps"]
    return {
        **figures,
        "score": jnp.maximum(figures["in_8_steps"], RESOLUTION),
        "rise": rise,
        "curve": curves["in_8_steps"],
    }
