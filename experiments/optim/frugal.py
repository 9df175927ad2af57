"""FRUGAL: a character-level language model whose hidden matrices have little optimizer state.

As in the paper, embedding, output head and biases are Adam's in every arm; the arms differ in how the two hidden
matrices move. Both FRUGAL and GaLore keep Adam's state for the gradient's 25% leading singular directions, chosen anew
every 100 steps. GaLore drops the rest of the gradient (with moments reset at every choice, as FRUGAL's, or kept, as in
GaLore itself); FRUGAL takes a step along its sign. The arm `sign` has no state for these matrices at all. Whole tensors
in turn (`block`) stand beside, at density 50% since there are two.
"""

import jax
import jax.numpy as jnp
import optax

from experiments.harness.claim import Claim, Comparison, Criterion
from experiments.harness.language import char_task
from experiments.harness.training import train
from jaxreg.optim import frugal

CLASSES = 64
UPDATE_GAP = 100
HIDDEN = ("Dense_0", "Dense_1")

ARMS = {
    "frugal_svd": dict(projection="svd"),
    "galore": dict(projection="svd", state_free="none"),
    "galore_keeping_moments": dict(projection="svd", state_free="none", reset_statistics=False),
    "sign": dict(density=0),
    "frugal_block": dict(density=0.5),
    "block_adam": dict(density=0.5, state_free="none"),
    "adam": dict(projectable=lambda params: jax.tree.map(lambda _: False, params)),
}

CLAIM = Claim(
    slug="frugal",
    paper="FRUGAL: Memory-Efficient Optimization by Reducing State Overhead for Scalable Training",
    arxiv="2411.07837",
    says="With a quarter of Adam's state for the hidden matrices, FRUGAL on singular directions reaches a validation "
    "loss at least 5% below that of GaLore, which drops the rest of the gradient, and at least 1% below that of "
    "signSGD, which has no state.",
    metric="validation loss (nats/byte)",
    better="lower",
    worst=float(jnp.log(CLASSES)),
    min_effect=0.05,
    method="frugal_svd",
    baselines=("galore", "galore_keeping_moments"),
    also=(
        Criterion(
            metric="validation loss (nats/byte), against signSGD",
            better="lower",
            worst=float(jnp.log(CLASSES)),
            min_effect=0.01,
            baselines=("sign",),
        ),
    ),
    grid={"learning_rate": (3e-3, 1e-2, 3e-2, 1e-1)},
    beside=(
        Comparison("whole tensors in turn: FRUGAL and block Adam", method="frugal_block", baselines=("block_adam",)),
        Comparison("whole tensors in turn: FRUGAL and signSGD", method="frugal_block", baselines=("sign",)),
        Comparison("Adam for all, with four times the state", baselines=("adam",)),
    ),
    finding="What GaLore drops is worth keeping, 6% of the loss, but the singular directions are not what does it: "
    "here signSGD without any state for the hidden matrices is as good as FRUGAL on a quarter of Adam's, and "
    "Adam itself is only 2% better than both. Whole tensors in turn do about as well as singular directions, "
    "at a fraction of the cost.",
    one_device=True,
    steps=2000,
    seeds=16,
)


def run(key, arm, *, learning_rate, steps):
    """Trains one model; the score is its loss on the last tenth of the text."""
    key_init, key_train = jax.random.split(key)
    task = char_task(key_init, classes=CLASSES)

    def hidden(params):
        return jax.tree.map_with_path(
            lambda path, leaf: leaf.ndim == 2 and any(part.key in HIDDEN for part in path), params
        )

    schedule = optax.cosine_decay_schedule(learning_rate, steps)
    optimizer = frugal(schedule, update_gap=UPDATE_GAP, **{"projectable": hidden} | ARMS[arm])
    _, _, curve = train(key_train, task.params, optimizer, task.loss, steps=steps, measure=task.validation_loss)
    return {"score": curve[-1], "curve": curve}
