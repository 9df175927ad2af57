"""HESSO: digits, and a network of which 80% of the hidden units have to go.

A 64-64-64-10 network is trained for 1500 steps with Adam. The usual way trains for 500 steps, removes the units with
the smallest norms at once, either of both layers together or 80% of each, and goes on training for 1000. HESSO shrinks
the units it finds least salient during the steps 500 to 1000, and trains what is left for 500 more. A unit is its
column, its bias and its row in the next matrix. Accuracies are those of the smaller network.

CRIC stands beside. The hidden layers are rescaled after 500 steps by 10 and by 1/10 (which, with ReLU, changes no
prediction), so that norms mislead, and HESSO and HESSO-CRIC prune from there. CRIC's trial cycles take steps too: 10 of
25 steps at most, then 250 of pruning.
"""

import jax
import jax.numpy as jnp
import optax

from experiments.harness import data, models
from experiments.harness.claim import Claim, Comparison
from experiments.harness.training import train
from jaxreg.compression import alive_units
from jaxreg.optim import Group, hesso, hesso_cric

CLASSES, WIDTH, BATCH = 10, 64, 64
SPARSITY = 0.8
CYCLES, SAMPLING_STEPS, CRIC_PRUNING_STEPS = 10, 25, 250

GROUPS = [
    Group(
        (
            (("params", f"Dense_{i}", "kernel"), 1),
            (("params", f"Dense_{i}", "bias"), 0),
            (("params", f"Dense_{i + 1}", "kernel"), 0),
        ),
        WIDTH,
    )
    for i in range(2)
]

CLAIM = Claim(
    slug="hesso",
    paper="HESSO: Towards Automatic Efficient and User Friendly Any Neural Network Training and Pruning",
    arxiv="2409.09085",
    says="With 80% of the hidden units removed and the same number of steps, HESSO's test accuracy is at least one "
    "point above that of training, removing the units of the smallest norms at once, and fine-tuning.",
    metric="test accuracy",
    better="higher",
    worst=1 / CLASSES,
    min_effect=0.01,
    relative=False,
    method="hesso",
    baselines=("one_shot", "one_shot_per_layer"),
    grid={"learning_rate": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)},
    variants={
        "hesso_rescaled": ("hesso", {"scale": 10.0}),
        "hesso_cric_rescaled": ("hesso_cric", {"scale": 10.0}),
        "one_shot_per_layer_rescaled": ("one_shot_per_layer", {"scale": 10.0}),
    },
    beside=(
        Comparison("layers rescaled by 10 and 1/10: HESSO-CRIC and HESSO", ("hesso_rescaled",), "hesso_cric_rescaled"),
        Comparison(
            "layers rescaled by 10 and 1/10: HESSO and one shot", ("one_shot_per_layer_rescaled",), "hesso_rescaled"
        ),
        Comparison("HESSO-CRIC and HESSO, nothing rescaled", ("hesso",), "hesso_cric"),
        Comparison("nothing removed", baselines=("dense",)),
    ),
    finding="It depends on the one-shot baseline: HESSO is 11 points better than removing the smallest norms of both "
    "layers together, and no better than removing 80% of each layer. CRIC is 8 points worse than HESSO here: "
    "it keeps 6 units in the first layer and 20 in the second, HESSO the reverse. Rescaled layers hurt both "
    "far more than removal layer by layer.",
    steps=1500,
    smoke_steps=16,
    smoke_sizes={"dense_steps": 4, "pruning_steps": 10},
    seeds=16,
)


def run(key, arm, *, learning_rate, steps, scale=1.0, dense_steps=500, pruning_steps=500):
    """Trains and prunes one network; the score is the accuracy of what is left."""
    key_data, key_init, key_dense, key_rest = jax.random.split(key, 4)
    split = data.digits(key_data)
    model = models.Mlp((WIDTH, WIDTH, CLASSES))
    params = model.init(key_init, split.train_x)

    def loss(params, state, key):
        chosen = jax.random.randint(key, [BATCH], 0, len(split.train_x))
        logits = model.apply(params, split.train_x[chosen])
        return optax.softmax_cross_entropy_with_integer_labels(logits, split.train_y[chosen]).mean(), state

    def accuracy(params, state=()):
        return jnp.mean(model.apply(params, split.test_x).argmax(-1) == split.test_y)

    params, _, dense_curve = train(
        key_dense, params, optax.adam(learning_rate), loss, steps=dense_steps, measure=accuracy, points=10
    )
    params = rescaled(params, scale)
    if arm in ("one_shot", "one_shot_per_layer"):
        params = without_smallest(params, per_layer=arm == "one_shot_per_layer")
    inner = optax.adam(learning_rate)
    optimizer = {
        "dense": lambda: inner,
        "one_shot": lambda: optax.chain(inner, keep_zeros(params)),
        "one_shot_per_layer": lambda: optax.chain(inner, keep_zeros(params)),
        "hesso": lambda: hesso(inner, GROUPS, target_sparsity=SPARSITY, pruning_steps=pruning_steps),
        "hesso_cric": lambda: hesso_cric(
            inner,
            GROUPS,
            target_sparsity=SPARSITY,
            max_cycles=CYCLES,
            sampling_steps=SAMPLING_STEPS,
            pruning_steps=CRIC_PRUNING_STEPS,
        ),
    }[arm]()
    params, _, curve = train(key_rest, params, optimizer, loss, steps=steps - dense_steps, measure=accuracy, points=20)
    alive = alive_units(params, GROUPS)
    return {
        "score": curve[-1],
        "curve": jnp.concatenate([dense_curve, curve]),
        "units_left": alive.sum(),
        "units_left_in_the_first_layer": alive[:WIDTH].sum(),
    }


def rescaled(params, scale):
    """The same function, its first hidden layer's units larger and the second's smaller."""
    first, second, third = (params["params"][f"Dense_{i}"] for i in range(3))
    return {
        "params": {
            "Dense_0": {"kernel": first["kernel"] * scale, "bias": first["bias"] * scale},
            "Dense_1": {"kernel": second["kernel"] / scale**2, "bias": second["bias"] / scale},
            "Dense_2": {"kernel": third["kernel"] * scale, "bias": third["bias"]},
        }
    }


def without_smallest(params, *, per_layer):
    """The units of the smallest norms removed at once, of both layers together (each keeps its largest) or of each."""
    norms = jnp.stack(
        [
            jnp.sqrt(
                sum(
                    jnp.sum(jnp.square(jnp.moveaxis(params["params"][path[1]][path[2]], axis, 0).reshape(WIDTH, -1)), 1)
                    for path, axis in group.members
                )
            )
            for group in GROUPS
        ]
    )
    best = jnp.arange(WIDTH) == norms.argmax(axis=1, keepdims=True)
    if per_layer:
        keep = jnp.argsort(jnp.argsort(norms, axis=1), axis=1) >= int(SPARSITY * WIDTH)
    else:
        ranks = jnp.argsort(jnp.argsort(jnp.where(best, jnp.inf, norms).ravel())).reshape(norms.shape)
        keep = ranks >= int(SPARSITY * norms.size)
    layers = dict(params["params"])
    for i in range(2):
        here, after = layers[f"Dense_{i}"], layers[f"Dense_{i + 1}"]
        layers[f"Dense_{i}"] = {"kernel": here["kernel"] * keep[i], "bias": here["bias"] * keep[i]}
        layers[f"Dense_{i + 1}"] = after | {"kernel": after["kernel"] * keep[i][:, None]}
    return {"params": layers}


def keep_zeros(start):
    """Updates of parameters that were zero at the start are zero."""
    return optax.stateless(lambda updates, params: jax.tree.map(lambda u, p: jnp.where(p == 0, 0, u), updates, start))
