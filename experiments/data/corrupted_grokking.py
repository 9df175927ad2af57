"""Grokking a corrupted table: addition modulo 53, a fifth of the known labels random.

Without weight decay a network fits the wrong labels and finds the rule nevertheless. The two live in different neurons:
those with periodic weights generalize, the others memorize. Half of the neurons are set to zero after training, the
least periodic ones or a random half; all of this is done to the same trained network. A second network of each seed is
trained with weight decay, which should keep it from memorizing at all, and a third modulo 43 with fewer and noisier
labels. Nothing is tuned; constants are the paper's.
"""

import jax
import jax.numpy as jnp
import optax

from experiments.harness.claim import Claim, Comparison, Criterion
from experiments.harness.training import train
from jaxreg.data import noisy_modular
from jaxreg.metrics import label_outcomes, neuron_ipr
from jaxreg.weights import modular_mlp, modular_mlp_init, prune_neurons

MODULUS, HIDDEN, TRAIN_FRACTION, NOISE = 53, 256, 0.6, 0.2
DECAY = 15.0
SMALL = 43
METHOD = "least_periodic_half_pruned"

CLAIM = Claim(
    slug="corrupted_grokking",
    paper="To grok or not to grok: Disentangling generalization and memorization on corrupted algorithmic datasets",
    arxiv="2310.13061",
    says="Of a network trained without weight decay on addition modulo 53 with 20% random labels, setting the half of "
    "the neurons with the lowest inverse participation ratio to zero takes away at least 60 points of the accuracy on "
    "corrupted training labels and none of the test accuracy (margin 2 points), which then is at least 20 points above "
    "that with a random half at zero; and with weight decay 15 at most 10% of the corrupted labels are fitted at all.",
    metric="corrupted training labels fitted (share), half pruned vs whole",
    better="lower",
    worst=1.0,
    min_effect=0.6,
    relative=False,
    score="memorized",
    also=(
        Criterion(
            metric="test accuracy, half pruned vs whole",
            better="higher",
            worst=1 / MODULUS,
            margin=0.02,
            relative=False,
            score="test_accuracy",
        ),
        Criterion(
            metric="test accuracy, least periodic half vs random half pruned",
            better="higher",
            worst=1 / MODULUS,
            min_effect=0.2,
            relative=False,
            score="test_accuracy",
            baselines=("random_half_pruned",),
        ),
        Criterion(
            metric="corrupted training labels fitted (share) with weight decay 15, against 10%",
            better="lower",
            worst=1.0,
            min_effect=0.0,
            relative=False,
            score="memorized_with_decay",
            baselines=("ten_percent",),
        ),
    ),
    method=METHOD,
    baselines=("whole",),
    beside=(Comparison("the most periodic half pruned instead", method="most_periodic_half_pruned"),),
    same_runs=True,
    steps=1000,
)


def run(key, *, steps):
    """Trains two networks on one table, prunes the first in three ways, and trains one on a smaller, noisier table."""
    key_data, key_init, key_random, key_small = jax.random.split(key, 4)
    table = noisy_modular(key_data, MODULUS, train_fraction=TRAIN_FRACTION, noise=NOISE)
    params, over_time = _trained(key_init, table, 0.0, steps)
    _, with_decay = _trained(key_init, table, DECAY, steps // 2)
    _, small = _trained(key_init, noisy_modular(key_small, SMALL, train_fraction=0.5, noise=0.35), 0.0, steps)

    scores = neuron_ipr(*params)
    shuffled = jax.random.uniform(key_random, scores.shape)
    arms = {
        "whole": params,
        "random_half_pruned": prune_neurons(params, shuffled, HIDDEN // 2),
        "most_periodic_half_pruned": prune_neurons(params, scores, HIDDEN // 2, lowest=False),
        METHOD: prune_neurons(params, scores, HIDDEN // 2),
    }
    outcomes = {arm: _outcomes(params, table) for arm, params in arms.items()}
    figures = {name: {arm: outcome[name] for arm, outcome in outcomes.items()} for name in outcomes["whole"]}
    return figures | {
        "memorized_with_decay": {METHOD: with_decay["memorized"][-1], "ten_percent": jnp.full([], 0.1)},
        "test_accuracy_with_decay": {METHOD: with_decay["test_accuracy"][-1]},
        "test_accuracy_modulo_43": {METHOD: small["test_accuracy"][-1]},
        "memorized_over_time": {"whole": over_time["memorized"]},
        "test_accuracy_over_time": {"whole": over_time["test_accuracy"]},
        "ipr_above_half": {"whole": jnp.mean(scores > 0.5)},
    }


def _trained(key, table, weight_decay, steps):
    """The network trained on all of the table's training entries at once, and how it did at ten points of the run."""
    modulus = table.train_x.shape[1] // 2
    targets = jax.nn.one_hot(table.train_y, modulus)

    def loss(params, state, key):
        return jnp.mean(jnp.square(modular_mlp(params, table.train_x) - targets)), state

    params, _, curves = train(
        key,
        modular_mlp_init(key, modulus, HIDDEN),
        optax.adamw(1e-2, b1=0.9, b2=0.98, weight_decay=weight_decay),
        loss,
        steps=steps,
        measure=lambda params, state: _outcomes(params, table),
        points=10,
    )
    return params, curves


def _outcomes(params, table):
    modulus = table.train_x.shape[1] // 2
    true_y = table.train_x.reshape(-1, 2, modulus).argmax(-1).sum(-1) % modulus
    outcomes = label_outcomes(modular_mlp(params, table.train_x).argmax(-1), table.train_y, true_y)
    return {
        "memorized": outcomes.memorized,
        "corrupted_predicted_correctly": outcomes.correct,
        "test_accuracy": jnp.mean(modular_mlp(params, table.test_x).argmax(-1) == table.test_y),
    }
