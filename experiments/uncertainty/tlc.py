"""Trustworthy long-tailed classification: three experts, digits of which the rarest has 3 examples and the first 140.

TLC trains an expert on the examples of which those before it are not sure, with margins for rare classes, and scores
an example by the uncertainty of the experts' opinions combined. The equal ensembles average the scores of three experts
that are trained on everything, with cross-entropy or with the same margins, and score by the largest probability. All
networks are the same, with cosine outputs times 30. The uncertainty has to tell wrong predictions from right ones, and
the three rarest classes from the others, better than that, at no less accuracy (1 point), with fewer than 2.5 of the
three experts engaged by a test example.

The authors' 200 epochs, reweighted after 160, are mapped onto 1000 steps. Every arm chooses the learning rate with the
best accuracy.
"""

import jax
import jax.numpy as jnp
import optax

from experiments.harness import data, models
from experiments.harness.claim import Claim, Comparison, Criterion
from experiments.harness.training import train
from jaxreg.losses import tlc_loss
from jaxreg.metrics import auroc
from jaxreg.uncertainty import engaged_logits, engagement_weights

CLASSES, RARE, EXPERTS, BATCH, ENGAGE = 10, 3, 3, 64, 0.54
EPOCHS, REWEIGHT_EPOCH = 200, 160
KL_PERIOD = (REWEIGHT_EPOCH + 500) / 0.05

CLAIM = Claim(
    slug="tlc",
    paper="Trustworthy Long-Tailed Classification",
    arxiv="2111.09030",
    says="The combined uncertainty of three experts, trained on what those before them are not sure of, tells wrong "
    "predictions and rare classes with AUROCs at least 0.02 above those of the largest probability of an equal "
    "ensemble, at an accuracy not more than a point lower and with fewer than 2.5 experts engaged.",
    metric="AUROC of wrong predictions",
    better="higher",
    worst=0.0,
    min_effect=0.02,
    relative=False,
    tuned_on=("accuracy", "higher"),
    also=(
        Criterion(
            metric="AUROC of rare classes", better="higher", worst=0.0, min_effect=0.02, relative=False, score="rare"
        ),
        Criterion(metric="accuracy", better="higher", worst=0.1, margin=0.01, relative=False, score="accuracy"),
        Criterion(
            metric="experts engaged by a test example",
            better="lower",
            worst=3.0,
            min_effect=0.5,
            relative=False,
            score="engaged",
        ),
    ),
    method="tlc",
    baselines=("equal_ensemble", "equal_ensemble_with_margins"),
    grid={"learning_rate": (1e-3, 3e-3, 1e-2, 3e-2)},
    beside=(Comparison("TLC scored by its largest probability", method="tlc_probability"),),
    finding="With exponentials of cosines times 30 as evidence, one expert is sure of nearly everything: of a batch "
    "only the least certain example or two engage the second, and TLC is a single expert with margins, as accurate as "
    "three. Wrong predictions are told by its uncertainty as well as by the largest probability. Rare classes it tells "
    "6 points better than an ensemble with the same margins does, which hide them by making them probable; the "
    "ensemble without margins, 2 points less accurate, tells them better still.",
    steps=1000,
    seeds=16,
)


def run(key, arm, *, learning_rate, steps):
    """Trains three experts; the score is the AUROC of wrong predictions among the test digits."""
    key_data, key_init, key_train = jax.random.split(key, 3)
    split = data.long_tailed_digits(key_data)
    counts = jnp.asarray(data.long_tailed_counts())
    model = models.Experts(CLASSES, experts=EXPERTS, cosine_scale=30.0)
    params = model.init(key_init, split.train_x)

    def loss(params, step, key):
        chosen = jax.random.randint(key, [BATCH], 0, len(split.train_y))
        logits, y = model.apply(params, split.train_x[chosen]), split.train_y[chosen]
        epoch = EPOCHS * step / steps
        options = {"kl_period": KL_PERIOD, "reweighted": epoch > REWEIGHT_EPOCH}
        if arm.startswith("tlc"):
            losses, engaged = tlc_loss(logits, y, counts, engagement_weights(logits), epoch=epoch, **options)
            per_expert = jnp.sum(losses * engaged, axis=1) / jnp.maximum(engaged.sum(axis=1), 1)
            return per_expert.sum(), step + 1
        margin = 0.5 if arm.endswith("margins") else 0.0
        options |= {"max_margin": margin, "epoch": 0.0, "diversity": 0.0}
        if not margin:
            options["reweighted"] = False
        losses, _ = tlc_loss(logits, y, counts, jnp.ones([EXPERTS + 1, BATCH]), **options)
        return losses.mean(axis=1).sum(), step + 1

    params, _, _ = train(key_train, params, optax.adam(learning_rate), loss, steps=steps, state=jnp.zeros([]))
    logits = model.apply(params, split.test_x)
    weights = engagement_weights(logits)
    equal = not arm.startswith("tlc")
    together = logits.mean(axis=0) if equal else engaged_logits(logits, weights)
    uncertainty = weights[-1] if arm == "tlc" else -jax.nn.softmax(together).max(axis=-1)
    wrong = together.argmax(-1) != split.test_y
    needed = weights[:-1] > ENGAGE * weights[:-1].max(axis=1, keepdims=True)
    return {
        "score": auroc(uncertainty, wrong),
        "rare": auroc(uncertainty, split.test_y >= CLASSES - RARE),
        "accuracy": 1 - wrong.mean(),
        "engaged": jnp.asarray(float(EXPERTS)) if equal else needed.sum(axis=0).mean(),
    }
