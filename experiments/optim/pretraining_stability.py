"""Stability of pretraining: a small Llama on Python's documentation while gradients spike, in 4 bits, at large rates.

People who use the published SPAM report that a well-tuned Adam with clipping is better. The claim is the paper's all
the same, and falsifiable: when all gradients are now and then a thousand times too large, as with the trainer's
``--spike-probability 0.02``, and all arms are tuned alike, SPAM ends at least 1% below Adam and Adam with clipping.

Alike means that in every condition every arm tunes its learning rate and one constant of its own, with two values:
Adam's ``b2``, by which it forgets a spike; the norm to which its gradients are clipped; the threshold of SPAM's
clipping, of which 5000 is published; the decay of Stable-SPAM's largest entry. Rates warm up for a tenth of the steps
and follow a cosine. Moments are reset four times in a run; after a reset SPAM warms up for 30%, and does not clip for
4%, of the steps to the next, which are the paper's 150 and 20 of 500.

Beside it: Stable-SPAM; no spikes; 4-bit weights, with and without spikes; constants as published; and, in each of the
four conditions, 3, 10 and 30 times RATE, the rate of a grid that was best for Adam with clipping when spikes and grids
were chosen, on other keys. Spikes were chosen by what they do to Adam: entries that spike on one step in twenty cost it
nothing, and then there is nothing to be stable against.
"""

import jax
import jax.numpy as jnp
import optax

from experiments.harness.claim import Claim, Comparison
from experiments.harness.faults import inject_spikes
from experiments.harness.language import llama_task
from experiments.harness.llama import LlamaConfig
from experiments.harness.training import train
from jaxreg.compression import fake_quant_int4
from jaxreg.optim import spam, stable_spam
from jaxreg.paths import is_named

MODEL = LlamaConfig(vocab_size=64, context=32, layers=2, width=32, heads=2, hidden=88, scan=False)
ADAMS = ("adam", "adam_norm_clip")
RATE = 8e-3
RATES = {"learning_rate": (2e-3, 4e-3, RATE, 3 * RATE)}
CONDITIONS = {
    "spikes": {},
    "no spikes": {"spike_probability": 0.0},
    "4 bits": {"spike_probability": 0.0, "four_bits": 1.0},
    "4 bits and spikes": {"four_bits": 1.0},
}


def _both(says, settings, *, curves=False, is_claim=False):
    """SPAM against Adam, unless that is the claim itself, and Stable-SPAM against all."""
    alone = () if is_claim else (Comparison(f"SPAM, {says}", settings=settings),)
    stable = Comparison(f"Stable-SPAM, {says}", (*ADAMS, "spam"), "stable_spam", settings, curves)
    return (*alone, stable)


CLAIM = Claim(
    slug="pretraining_stability",
    paper="SPAM: Spike-Aware Adam with Momentum Reset for Stable LLM Training",
    arxiv="2501.06842",
    says="When on 2% of the steps of pretraining all gradients are multiplied by 1000, and learning rates and every "
    "optimizer's own constant are tuned alike, SPAM reaches a validation loss at least 1% below that of Adam and of "
    "Adam with global-norm clipping.",
    metric="validation loss (nats/byte)",
    better="lower",
    worst=float(jnp.log(MODEL.vocab_size)),
    min_effect=0.01,
    method="spam",
    baselines=ADAMS,
    arm_grid={
        "adam": {**RATES, "b2": (0.9, 0.999)},
        "adam_norm_clip": {**RATES, "clip": (0.3, 1.0)},
        "spam": {**RATES, "threshold": (50.0, 5000.0)},
        "stable_spam": {**RATES, "gamma3": (0.9, 0.999)},
    },
    beside=(
        *(
            comparison
            for name, settings in CONDITIONS.items()
            for comparison in _both(name, settings, curves=True, is_claim=not settings)
        ),
        *(
            Comparison(
                f"SPAM, {name}, threshold 5000 and Adam's clip 1",
                baselines=ADAMS[1:],
                settings={**settings, "threshold": 5000.0, "clip": 1.0},
            )
            for name, settings in list(CONDITIONS.items())[:2]
        ),
        *(
            comparison
            for name, settings in CONDITIONS.items()
            for multiple in (3, 10, 30)
            for comparison in _both(
                f"{name}, {multiple} times the rate",
                {**settings, "learning_rate": multiple * RATE},
                curves=multiple == 10,
            )
        ),
    ),
    finding="What users report holds here. Tuned alike, SPAM is 3.7% behind Adam with clipping when gradients spike "
    "and, when they do not, 4.0% behind Adam, whose best b2 is then 0.9; in 4 bits 4.6 and 2.6%. (On eight "
    "other seeds: 5.2 and 1.7%.) With the published threshold it is 9.3% behind under spikes. Stable-SPAM is "
    "ahead in none of these, but 1.9% behind at most, and its intervals include zero (other seeds: 2.8% behind "
    "with spikes, 0.8% ahead without). What SPAM has is a wider range under spikes: at 3 and 10 times the rate "
    "it is 2.4% [0.3, 5.1] and 5.7% [0.9, 8.5] ahead of Adam with clipping, at losses far above those of the "
    "tuned rate. Without spikes it is level with Adam there. At 30 times the rate no arm learns much. Adam "
    "without clipping does not get over spikes with either b2. Four bits cost nothing. Four resets within 300 "
    "steps may cost SPAM more than one in 500 does in a long run.",
    steps=300,
)


def run(
    key,
    arm,
    *,
    learning_rate,
    steps,
    b2=0.999,
    clip=1.0,
    threshold=5000.0,
    gamma3=0.999,
    spike_probability=0.02,
    four_bits=0.0,
):
    """Trains one model; the score is its loss, in the precision it trains in, on the last tenth of the text."""

    def quantize(path, leaf):
        return jnp.where(four_bits, fake_quant_int4(leaf), leaf) if is_named(path, ["kernel"]) else leaf

    def spike(key, gradients):
        return inject_spikes(key, 0, gradients, probability=spike_probability, scale=1000.0)

    key_init, key_train = jax.random.split(key)
    task = llama_task(key_init, MODEL, weights=lambda params: jax.tree_util.tree_map_with_path(quantize, params))
    shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, steps // 10, steps)  # whose peak has to be a number

    def schedule(step):
        return learning_rate * shape(step)

    reset_every = max(1, steps // 4)
    pauses = {"warmup_steps": round(0.3 * reset_every), "grace_steps": round(0.04 * reset_every)}
    optimizer = {
        "adam": lambda: optax.adam(schedule, b2=b2),
        "adam_norm_clip": lambda: optax.chain(optax.clip_by_global_norm(clip), optax.adam(schedule)),
        "spam": lambda: spam(schedule, threshold=threshold, reset_every=reset_every, **pauses),
        "stable_spam": lambda: stable_spam(schedule, gamma3=gamma3, reset_every=reset_every),
    }[arm]()
    _, _, curve = train(
        key_train,
        task.params,
        optimizer,
        task.loss,
        steps=steps,
        distort=spike,
        measure=task.validation_loss,
        points=10,
    )
    return {"score": curve[-1], "curve": curve}
