"""LR sensitivity: a small byte-level transformer, with and without normalized queries and keys.

The learning rate is the axis of the claim: one run is a sweep of seven rates from 1e-3 to 1, evenly spaced in their
logarithm, from the same start on the same batches, and its score is how far the final loss is above its best on
average over them, a loss above that before training counting as that. Training is the paper's otherwise: AdamW with
independent decay 1e-4 and betas 0.9 and 0.95, gradients clipped at norm 1, linear warmup, cosine decay to zero, z-loss
1e-4, weights drawn with variance 1 / fan-in.
"""

import jax
import jax.numpy as jnp
import optax

from experiments.harness import models
from experiments.harness.claim import Claim, Comparison
from experiments.harness.language import transformer_task, validation_windows
from experiments.harness.training import train
from jaxreg.losses import z_loss
from jaxreg.metrics import lr_sensitivity
from jaxreg.optim import independent_weight_decay
from jaxreg.schedules import cyclic_cosine

CLASSES, BATCH = 64, 4
RATES = tuple(10.0 ** (n / 2) for n in range(-6, 1))

CLAIM = Claim(
    slug="lr_sensitivity",
    paper="Small-scale proxies for large-scale Transformer training instabilities",
    arxiv="2309.14322",
    says="Over learning rates from 1e-3 to 1, the sensitivity of the final loss to the learning rate is with "
    "normalized queries and keys at most 70% of what it is without.",
    metric="LR sensitivity of the validation loss (nats/byte)",
    better="lower",
    worst=float(jnp.log(CLASSES)),
    min_effect=0.3,
    method="qk_norm",
    baselines=("plain",),
    variants={
        "qk_norm_without_z_loss": ("qk_norm", {"z_coeff": 0.0}),
        "plain_without_z_loss": ("plain", {"z_coeff": 0.0}),
        "qk_norm_long_warmup": ("qk_norm", {"warmup": 0.3}),
        "plain_long_warmup": ("plain", {"warmup": 0.3}),
    },
    beside=(
        Comparison("without z-loss", settings={"z_coeff": 0.0}),
        Comparison("warmup of 30% of the steps instead of 10%", settings={"warmup": 0.3}),
        Comparison("the z-loss itself, with qk-norm", baselines=("qk_norm_without_z_loss",)),
        Comparison("the z-loss itself, without qk-norm", method="plain", baselines=("plain_without_z_loss",)),
        Comparison("the longer warmup itself, with qk-norm", method="qk_norm_long_warmup", baselines=("qk_norm",)),
        Comparison("the longer warmup itself, without qk-norm", method="plain_long_warmup"),
    ),
    finding="Attention logits stay bounded as published: at a rate of 0.1 they reach 17 instead of 16,000, and the "
    "loss is 0.3 lower. But a range has two ends. At 1 both arms fall back to a loss of about 3.2, for then the gains "
    "of queries and keys grow in place of the weights; at 1e-3 neither is trained after 300 steps. Both ends add the "
    "same to both sensitivities. Without the last rate (sensitivity_to_0.3) qk-norm lowers it by 25 to 29%. A longer "
    "warmup lowers it by another tenth with qk-norm, and does nothing without; nor does the z-loss: output logits do "
    "not diverge in so few steps. With 8 seeds and batches of 8, rounding alone decided between a failure and an "
    "inconclusive verdict, for what diverges is chaotic: hence 16 seeds, on half of the batch to take no longer.",
    steps=300,
    seeds=16,
)


def run(key, arm, *, steps, z_coeff=1e-4, warmup=0.1):
    """Trains one model at each rate; the score is the sensitivity."""
    key_init, key_train = jax.random.split(key)
    model = models.CharTransformer(
        CLASSES, width=64, hidden=128, qk_norm=arm == "qk_norm", kernel_init=models.scaled_normal
    )
    task = transformer_task(key_init, model, batch=BATCH, penalty=lambda logits: z_loss(logits, coeff=z_coeff))
    shape = cyclic_cosine(1.0, checkpoints=(steps,), warmup_steps=warmup * steps, min_ratio=0.0)

    def measure(params, state):
        _, seen = model.apply(params, validation_windows(model)[:, :-1], mutable=["intermediates"])
        logits = jnp.stack([logit.max() for logit in jax.tree.leaves(seen)])
        return {"final_loss": task.validation_loss(params, state), "log_max_attention_logit": jnp.log(logits.max())}

    def one(rate):
        adam = optax.adam(lambda step: rate * shape(step), b2=0.95)
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), independent_weight_decay(adam, schedule=shape))
        figures = train(
            key_train, task.params, optimizer, task.loss, steps=steps, state=task.state, measure=measure, points=1
        )[2]
        return jax.tree.map(lambda curve: curve[-1], figures)

    figures = jax.lax.map(one, jnp.asarray(RATES))
    initial = task.validation_loss(task.params, task.state)
    losses = figures["final_loss"]
    return {
        "score": lr_sensitivity(losses, initial),
        "sensitivity_to_0.3": lr_sensitivity(losses[:-1], initial),
        "best_rate": jnp.asarray(RATES)[jnp.nanargmin(losses)],
        "initial_loss": initial,
        **figures,
    }
