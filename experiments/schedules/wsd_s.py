"""WSD-S: one training run that yields finished language models after 500, 1000 and 2000 steps.

It decays the learning rate for the last fifth of the steps before each of them and goes on from the decayed weights.
Against it: a cosine that restarts after each of them, WSD, which throws the decayed copies away and therefore gets
fewer steps on its main branch, and a cosine run for each, which together take 1.75 times the steps.
"""

import jax
import jax.numpy as jnp
import optax

from experiments.harness.claim import Claim, Comparison, Criterion
from experiments.harness.language import char_task
from experiments.harness.training import train
from jaxreg.schedules import cyclic_cosine, wsd, wsd_s

CLASSES = 64
POINTS = 20  # of the learning curve: at 500, 1000 and 2000 steps, and where a decay begins, at 400, 900 and 1800
CHECKPOINTS = (5, 10, 20)  # in points, as are the lengths of the decays
DECAYS = (1, 1, 2)

CLAIM = Claim(
    slug="wsd_s",
    paper="Understanding Warmup-Stable-Decay Learning Rates: A River Valley Loss Landscape Perspective",
    arxiv="2410.05192",
    says="One WSD-S run, measured after 500, 1000 and 2000 steps, has a mean validation loss at most 0.5% above the "
    "strongest of cyclic cosine, WSD with equal total steps, and three separate cosine runs (1.75 times the steps); "
    "and in each of its decays the loss falls by at least 3 percentage points more than that of cyclic cosine over "
    "the same steps.",
    metric="validation loss (nats/byte), mean over three budgets",
    better="lower",
    worst=float(jnp.log(CLASSES)),
    margin=0.005,
    also=(
        Criterion(
            metric="smallest fall of the loss over a decay (share)",
            better="higher",
            worst=0.0,
            min_effect=0.03,
            relative=False,
            score="smallest_fall",
            baselines=("cyclic_cosine",),
        ),
    ),
    method="wsd_s",
    baselines=("cyclic_cosine", "wsd", "separate_cosines"),
    grid={"learning_rate": (5e-3, 7e-3, 1e-2, 1.4e-2, 2e-2)},
    variants={
        "wsd_s_tenth": ("wsd_s", {"decay_fraction": 0.1}),
        "wsd_s_two_fifths": ("wsd_s", {"decay_fraction": 0.4}),
    },
    beside=(
        Comparison("three separate cosine runs", baselines=("separate_cosines",)),
        Comparison("WSD with equal total steps", baselines=("wsd",)),
        Comparison("cyclic cosine", baselines=("cyclic_cosine",)),
        Comparison("decays of a tenth of each period", method="wsd_s_tenth"),
        Comparison("decays of two fifths of each period", method="wsd_s_two_fifths"),
    ),
    finding="WSD-S is no worse than WSD, and its decays lower the loss by 5 to 6%, as published, but it loses about 1% "
    "to separate cosine runs. At its tuned peak of 1e-2 it is level with them after 500 steps, and 1 and 2% behind "
    "after 1000 and 2000. The last decay is then but a tenth of all steps, likely too short for the noise at that "
    "peak: decays twice as long halve the gap at the end, and open one at 500 steps. On the seeds from 100000 the peak "
    "is tuned to 7e-3, and the gap lies at 500 and 1000 steps rather than at the end; the falls are smaller, and the "
    "second criterion fails too.",
    steps=2000,
    smoke_steps=40,
)


def run(key, arm, *, learning_rate, steps, decay_fraction=0.2):
    """Trains one model, or one for each budget; the score is the mean of the losses at the three budgets."""
    key_init, key_train = jax.random.split(key)
    task = char_task(key_init, classes=CLASSES)
    stretch, warmup = steps // POINTS, steps // 40
    budgets = [stretch * point for point in CHECKPOINTS]

    def curve(schedule, steps, points):
        optimizer = optax.adam(schedule, b2=0.99)
        return train(
            key_train, task.params, optimizer, task.loss, steps=steps, measure=task.validation_loss, points=points
        )[2]

    if arm in ("wsd_s", "cyclic_cosine"):
        settings = dict(checkpoints=budgets, warmup_steps=warmup)
        if arm == "wsd_s":
            schedule = wsd_s(learning_rate, decay_fraction=decay_fraction, **settings)
        else:
            schedule = cyclic_cosine(learning_rate, **settings)
        losses = curve(schedule, steps, POINTS)
        ends = jnp.array(CHECKPOINTS)
        at_ends = losses[ends - 1]
        falls = 1 - at_ends / losses[ends - jnp.array(DECAYS) - 1]
        more = {"smallest_fall": falls.min(), "largest_fall": falls.max(), "curve": losses}
    elif arm == "wsd":
        # Steps spent on the decays of earlier budgets are lost. The same key makes the main branch one and the same.
        lost = [sum(DECAYS[:i]) for i in range(3)]
        totals = [stretch * (end - spent) for end, spent in zip(CHECKPOINTS, lost, strict=True)]
        fractions = [stretch * decay / total for decay, total in zip(DECAYS, totals, strict=True)]
        schedules = [
            wsd(learning_rate, total_steps=total, warmup_steps=warmup, decay_fraction=fraction)
            for total, fraction in zip(totals, fractions, strict=True)
        ]
        at_ends = jnp.stack([curve(schedule, total, 1)[-1] for schedule, total in zip(schedules, totals, strict=True)])
        more = {}
    else:
        schedules = [cyclic_cosine(learning_rate, checkpoints=(total,), warmup_steps=warmup) for total in budgets]
        at_ends = jnp.stack([curve(schedule, total, 1)[-1] for schedule, total in zip(schedules, budgets, strict=True)])
        more = {}
    names = ("after_a_quarter", "after_half", "at_the_end")
    return {"score": at_ends.mean(), **dict(zip(names, at_ends, strict=True)), **more}
