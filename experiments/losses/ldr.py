"""Label-distributionally robust losses: 60% of the training labels of the digits are wrong.

ALDR-KL gives each example its own temperature: the more certain the prediction, the lower. Against cross-entropy,
both choosing their hyperparameters on held-out *noisy* labels. ALDR-KL has two, the learning rate and the initial
temperature (the values of the released runs); cross-entropy spends the same twelve tries on the learning rate.
"""

import jax
import jax.numpy as jnp
import optax

from experiments.harness import data, models
from experiments.harness.claim import Claim, Comparison
from experiments.harness.training import train
from jaxreg.losses import aldr_kl, aldr_kl_init, ldr_kl

NOISE = 0.6
TRAIN, HELD_OUT, BATCH, CLASSES = 1000, 200, 128, 10

CLAIM = Claim(
    slug="ldr",
    paper="Label Distributionally Robust Losses for Multi-class Classification: Consistency, Robustness and Adaptivity",
    arxiv="2112.14869",
    says="With 60% of the labels flipped, the clean test accuracy of ALDR-KL is at least 3 points above that of "
    "cross-entropy.",
    metric="clean test accuracy",
    better="higher",
    worst=1 / CLASSES,
    min_effect=0.03,
    relative=False,
    tuned_on=("held_out_accuracy", "higher"),
    method="aldr_kl",
    baselines=("cross_entropy",),
    grid={"learning_rate": (1e-4, 3e-4, 1e-3, 3e-3), "temperature": (0.1, 1.0, 10.0)},
    arm_grid={
        "cross_entropy": {"learning_rate": (2e-5, 5e-5, 7e-5, 1e-4, 1.5e-4, 2e-4, 3e-4, 5e-4, 7e-4, 1e-3, 2e-3, 3e-3)}
    },
    beside=(
        Comparison("LDR-KL, one temperature for all examples, against cross-entropy", method="ldr_kl"),
        Comparison("ALDR-KL against LDR-KL", baselines=("ldr_kl",)),
        Comparison("ALDR-KL against LDR-KL with ALDR-KL's normalisation", baselines=("ldr_kl_l1",)),
        Comparison("ALDR-KL with LDR-KL's normalisation, against cross-entropy", method="aldr_kl_softplus"),
    ),
    finding="ALDR-KL is tuned to the temperature 10, at which it adapts to examples so little that it equals LDR-KL "
    "with the same normalisation of the scores (by their mean absolute value). LDR-KL's own normalisation (softplus "
    "over its mean) is what makes the difference: with it either loss gains over 3 points.",
    steps=1500,
    seeds=16,
)


def run(key, arm, *, learning_rate, steps, temperature=1.0):
    """Trains one network; the score is its accuracy on clean test labels."""
    key_data, key_noise, key_init, key_train = jax.random.split(key, 4)
    split = data.digits(key_data, train=TRAIN + HELD_OUT)
    noisy = data.flip_labels(key_noise, split.train_y, rate=NOISE, num_classes=CLASSES)
    train_x, train_y = split.train_x[:TRAIN], noisy[:TRAIN]
    model = models.Mlp((128, CLASSES))
    params = model.init(key_init, train_x)

    def loss(params, state, key):
        chosen = jax.random.randint(key, [BATCH], 0, TRAIN)
        logits, labels = model.apply(params, train_x[chosen]), train_y[chosen]
        normalize = "l1_mean" if arm in ("aldr_kl", "ldr_kl_l1") else "softplus_mean"
        if arm.startswith("aldr_kl"):
            losses, state = aldr_kl(state, logits, labels, chosen, temperature=temperature, normalize=normalize)
        elif arm.startswith("ldr_kl"):
            losses = ldr_kl(logits, labels, temperature=temperature, normalize=normalize)
        else:
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), state

    def accuracies(params, state):
        return {
            "score": jnp.mean(model.apply(params, split.test_x).argmax(-1) == split.test_y),
            "held_out_accuracy": jnp.mean(model.apply(params, split.train_x[TRAIN:]).argmax(-1) == noisy[TRAIN:]),
        }

    _, _, curves = train(
        key_train,
        params,
        optax.adam(learning_rate),
        loss,
        steps=steps,
        state=aldr_kl_init(TRAIN, temperature),
        measure=accuracies,
    )
    return {**jax.tree.map(lambda curve: curve[-1], curves), "curve": curves["score"]}
