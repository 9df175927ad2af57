"""Grokking without weight decay: addition modulo 53, half of the table given, the other half to be found.

A ReLU network without biases (as the authors', who have 200 units a layer and modulo 113) fits its half within some
dozen full-batch steps. AdamW then follows the gradient along the weights, towards softmax collapse. Projected, it goes
on to learn.

Every arm tunes its learning rate, on the test accuracy of other seeds. AdamW is without weight decay, as in the paper;
with it, tuned on the same budget, it stands beside.
"""

import jax
import jax.numpy as jnp
import optax

from experiments.harness import models
from experiments.harness.claim import Claim, Comparison
from experiments.harness.training import train
from jaxreg.data import modular_table
from jaxreg.losses import stablemax_cross_entropy
from jaxreg.metrics import collapse_fraction, nlm_alignment
from jaxreg.optim import perp_grad

MODULUS, TRAIN_SHARE = 53, 0.5

CLAIM = Claim(
    slug="perp_grad",
    paper="Grokking at the Edge of Numerical Stability",
    arxiv="2501.04697",
    says="On addition modulo 53 without weight decay, AdamW on gradients orthogonal to the weights reaches within 300 "
    "steps a test accuracy at least 50 points above that of AdamW.",
    metric="test accuracy",
    better="higher",
    worst=1 / MODULUS,
    min_effect=0.5,
    relative=False,
    method="perp_grad",
    baselines=("adamw",),
    tuned_on=("test_accuracy", "higher"),
    grid={"learning_rate": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)},
    arm_grid={"adamw_decay": {"learning_rate": (1e-2, 3e-2), "weight_decay": (1.0, 3.0, 10.0)}},
    beside=(
        Comparison("both at the paper's learning rate 0.01", settings={"learning_rate": 1e-2}),
        Comparison("AdamW with weight decay", baselines=("adamw_decay",)),
        Comparison("StableMax instead of softmax, neither projected", method="stablemax"),
        Comparison("projected but not rescaled, the paper's equation", method="perp_grad_not_rescaled"),
    ),
    finding="Weight decay, tuned on the same budget, does as well to within a point: what matters is that weights "
    "do not grow. Rescaling makes no difference. Plain AdamW fails at every rate, at most of them before "
    "any collapse: at rate 0.01 no training example has lost its gradient after 300 steps, but most of "
    "the gradient lies along the weights. StableMax alone does not generalize within 300 steps; the "
    "authors give it tens of thousands.",
    steps=300,
)


def run(key, arm, *, learning_rate, steps, weight_decay=0.0):
    """Trains one network; the score is its accuracy on the other half of the table."""
    key_split, key_init, key_train = jax.random.split(key, 3)
    train_x, train_y, test_x, test_y, _ = modular_table(key_split, MODULUS, train_fraction=TRAIN_SHARE)
    model = models.Mlp((128, 128, MODULUS), use_bias=False)
    params = model.init(key_init, train_x)

    def softmax_loss(params):
        return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, train_x), train_y).mean()

    def loss(params, state, key):
        if arm == "stablemax":
            return stablemax_cross_entropy(model.apply(params, train_x), train_y).mean(), state
        return softmax_loss(params), state

    def measure(params, state):
        logits = model.apply(params, train_x)
        return {
            "test_accuracy": jnp.mean(model.apply(params, test_x).argmax(-1) == test_y),
            "train_accuracy": jnp.mean(logits.argmax(-1) == train_y),
            "collapsed": collapse_fraction(logits, train_y),
            "nlm_alignment": nlm_alignment(jax.grad(softmax_loss)(params), params),
            "weight_norm": optax.tree.norm(params),
        }

    optimizer = optax.adamw(learning_rate, b2=0.99, weight_decay=weight_decay)
    if arm in ("perp_grad", "perp_grad_not_rescaled"):
        optimizer = optax.chain(perp_grad(rescale=arm == "perp_grad"), optimizer)
    _, _, curves = train(key_train, params, optimizer, loss, steps=steps, measure=measure, points=10)
    return {"score": curves["test_accuracy"][-1], "curve": curves["test_accuracy"]} | {
        name: curve[-1] for name, curve in curves.items()
    }
