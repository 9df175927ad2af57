"""SPAM: a character-level language model on Python's documentation, while gradients spike.

Every step multiplies a random 0.1% of the gradient's entries by 1000. Adam with two ways of clipping, at the
constants that are customary (norm 1) and that the paper compares with (value 1e-3), against SPAM as published.
"""

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from experiments.harness.claim import Claim, Comparison
from experiments.harness.language import char_task
from experiments.harness.training import train
from jaxreg.optim import spam

CLASSES = 64

CLAIM = Claim(
    slug="spam",
    paper="SPAM: Spike-Aware Adam with Momentum Reset for Stable LLM Training",
    arxiv="2501.06842",
    says="When gradient entries spike, SPAM reaches a validation loss at least 3% below that of Adam, of Adam with "
    "global-norm clipping (1.0) and of Adam with value clipping (1e-3).",
    metric="validation loss (nats/byte)",
    better="lower",
    worst=float(jnp.log(CLASSES)),
    min_effect=0.03,
    method="spam",
    baselines=("adam", "adam_norm_clip", "adam_value_clip"),
    grid={"learning_rate": (3e-3, 1e-2, 3e-2)},
    variants={
        "adam_value_clip_1e-2": ("adam_value_clip", {"clip": 1e-2}),
        "spam_threshold_500": ("spam", {"threshold": 500.0}),
    },
    beside=(
        Comparison("value clipping tuned to 1e-2", baselines=("adam_value_clip_1e-2",)),
        Comparison(
            "value clipping tuned to 1e-2 and SPAM's threshold to 500",
            method="spam_threshold_500",
            baselines=("adam_value_clip_1e-2",),
        ),
        Comparison("no spikes", baselines=("adam",), settings={"spike_probability": 0.0}),
        Comparison(
            "spikes in bunches: 1% of the entries on one step in twenty",
            baselines=("adam_norm_clip",),
            settings={"spike_probability": 0.05, "spike_share": 0.01},
        ),
    ),
    finding="It depends on the constant of value clipping: at 1e-2, ten times the one compared with, value clipping is "
    "better than SPAM. Without spikes, and with spikes bunched on few steps, SPAM gains nothing.",
    steps=2000,
)


def run(
    key,
    arm,
    *,
    learning_rate,
    steps,
    clip=1e-3,
    threshold=5000.0,
    spike_probability=1.0,
    spike_share=0.001,
    spike_scale=1000.0,
):
    """Trains one model; the score is its loss on the last tenth of the text."""
    key_init, key_train = jax.random.split(key)
    task = char_task(key_init, classes=CLASSES)

    def spike(key, gradients):
        flat, unravel = ravel_pytree(gradients)
        key_whether, key_where = jax.random.split(key)
        # The most entries any condition needs; those beyond spike_share are multiplied by one.
        where = jax.random.randint(key_where, [round(0.01 * flat.size)], 0, flat.size)
        struck = jnp.arange(len(where)) < jnp.round(spike_share * flat.size)
        struck &= jax.random.bernoulli(key_whether, spike_probability)
        return unravel(flat.at[where].multiply(jnp.where(struck, spike_scale, 1.0)))

    schedule = optax.cosine_decay_schedule(learning_rate, steps)
    optimizer = {
        "adam": lambda: optax.adam(schedule),
        "adam_norm_clip": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule)),
        "adam_value_clip": lambda: optax.chain(optax.clip(clip), optax.adam(schedule)),
        "spam": lambda: spam(schedule, threshold=threshold),
    }[arm]()
    _, _, curve = train(
        key_train, task.params, optimizer, task.loss, steps=steps, distort=spike, measure=task.validation_loss
    )
    return {"score": curve[-1], "curve": curve}
