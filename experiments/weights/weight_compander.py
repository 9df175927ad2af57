"""Weight companders: a wide network on 300 digits, where it can memorize.

Plain weights against companded ones whose hyperparameters are trained with the same loss, and against companders that
stay as they start. SGD with momentum 0.9 and weight decay 1e-4 (on the numbers behind the weights, and on the weights
in the plain arm); every arm tunes its learning rate.
"""

import jax
import jax.numpy as jnp
import optax

from experiments.harness import data, models
from experiments.harness.claim import Claim, Comparison
from experiments.harness.training import train
from jaxreg.weights import apply_compander, init_compander

TRAIN, BATCH, CLASSES = 300, 32, 10
WEIGHT_DECAY = 1e-4

CLAIM = Claim(
    slug="weight_compander",
    paper="Weight Compander: A Simple Weight Reparameterization for Regularization",
    arxiv="2306.16993",
    says="With 300 training examples, a network of companded weights whose hyperparameters are learned has a test "
    "accuracy at least 0.5 points above that of the same network with plain weights.",
    metric="test accuracy",
    better="higher",
    worst=1 / CLASSES,
    min_effect=0.005,
    relative=False,
    method="learned_compander",
    baselines=("plain",),
    grid={"learning_rate": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)},
    beside=(Comparison("companders that are not trained", method="fixed_compander"),),
    finding="Companders do bound weights: to 4 initial deviations where they stay as they start, while the largest "
    "plain weight grows to 11. It does not help here: both networks fit all 300 examples and are right on 95% of the "
    "others. Trained hyperparameters give up half of the bound, need a tenth of the learning rate and lose a "
    "quarter of a point. The function, arctan, and its constants are our choice; the paper's may do better.",
    steps=1500,
    smoke_steps=20,
    seeds=32,
)


def run(key, arm, *, learning_rate, steps):
    """Trains one network; the score is its accuracy on the 1497 other digits."""
    key_data, key_init, key_train = jax.random.split(key, 3)
    split = data.digits(key_data, train=TRAIN)
    model = models.Mlp((256, 256, CLASSES))
    params = model.init(key_init, split.train_x)
    v, hyper = init_compander(params)
    if arm == "plain":
        v, hyper = params, jax.tree.map(lambda _: None, params)

    def weights(trained):
        v, learned = trained
        return apply_compander(v, learned if arm == "learned_compander" else hyper)

    def loss(trained, state, key):
        chosen = jax.random.randint(key, [BATCH], 0, TRAIN)
        logits = model.apply(weights(trained), split.train_x[chosen])
        return optax.softmax_cross_entropy_with_integer_labels(logits, split.train_y[chosen]).mean(), state

    def measure(trained, state):
        return jnp.mean(model.apply(weights(trained), split.test_x).argmax(-1) == split.test_y)

    optimizer = optax.chain(
        optax.add_decayed_weights(WEIGHT_DECAY, mask=lambda trained: (True, False)),
        optax.sgd(learning_rate, momentum=0.9),
    )
    trained, _, curve = train(key_train, (v, hyper), optimizer, loss, steps=steps, measure=measure, points=15)
    kernels = [leaf for leaf in jax.tree.leaves(weights(trained)) if leaf.ndim == 2]
    start = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 2]
    return {
        "score": curve[-1],
        "curve": curve,
        "train_accuracy": jnp.mean(model.apply(weights(trained), split.train_x).argmax(-1) == split.train_y),
        "largest_weight_in_initial_deviations": jnp.stack(
            [jnp.max(jnp.abs(w)) / jnp.std(w0) for w, w0 in zip(kernels, start, strict=True)]
        ).max(),
        "share_of_weights_below_a_tenth_deviation": jnp.stack(
            [jnp.mean(jnp.abs(w) < 0.1 * jnp.std(w)) for w in kernels]
        ).mean(),
    }
