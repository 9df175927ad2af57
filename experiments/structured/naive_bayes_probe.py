"""Naive Bayes against logistic regression: how many examples does each need, in how many dimensions?

Five Gaussian classes as in the authors' simulation: every feature has the means -1, 1, 2, 4 and 8, half of the features
have variance 1 and half have variance n. (With means that shrink as n grows, as in the card, no feature says anything
by itself, which the theory of naive Bayes assumes.) For n = 16, 32 and 64 features, instead of 32 to 256, for time, the
sample size is found at which the error is within 0.02 of that with 50 n examples; scored is the slope of its logarithm
against log n. The other criteria are the two regimes: a few digits of each class, and all 1200.

Logistic regression is penalised as in scikit-learn and chooses the penalty, naive Bayes the variance floor, each for
the figure that is scored; for the slope that is the mean logarithm of the sample size.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.harness import data
from experiments.harness.claim import Claim, Criterion
from jaxreg.linalg import eigh
from jaxreg.losses import h_consistency_bound
from jaxreg.structured import as_linear, fit_naive_bayes

DIMENSIONS = (16, 32, 64)
MEANS = jnp.array([-1.0, 1.0, 2.0, 4.0, 8.0])
TEST, EXCESS, PER_CLASS = 2000, 0.02, (2, 3, 5, 10)
CONJUGATE_STEPS = 20

CLAIM = Claim(
    slug="naive_bayes_probe",
    paper="Revisiting Discriminative vs. Generative Classifiers: Theory and Implications",
    arxiv="2302.02334",
    says="The examples needed to come within 0.02 of the final error grow with the number of features by a power that "
    "is at least 0.3 smaller for naive Bayes than for logistic regression; of digits, naive Bayes is at least 2 points "
    "more accurate with 2 to 10 of each class, and less accurate with all.",
    metric="slope of log sample size against log features",
    better="lower",
    worst=3.0,
    min_effect=0.3,
    relative=False,
    score="slope",
    tuned_on=("mean_log_size", "lower"),
    also=(
        Criterion(
            metric="accuracy with 2 to 10 digits of each class",
            better="higher",
            worst=0.1,
            min_effect=0.02,
            relative=False,
            score="few_shot_accuracy",
            tuned_on=("few_shot_accuracy", "higher"),
        ),
        Criterion(
            metric="accuracy with 1200 digits (naive Bayes should be behind)",
            better="lower",
            worst=1.0,
            min_effect=0.01,
            relative=False,
            score="full_accuracy",
            tuned_on=("full_accuracy", "higher"),
        ),
    ),
    method="naive_bayes",
    baselines=("logistic",),
    arm_grid={
        "logistic": {"penalty": (1e-3, 1e-2, 1e-1, 1.0, 10.0)},
        "naive_bayes": {"var_floor": (1e-2, 0.1, 0.3, 1.0, 10.0)},
    },
    finding="The more features, the fewer examples naive Bayes needs (56, 39 and 24 for 16, 32 and 64), and the more "
    "logistic regression (242, 305 and 390; the theory's power of 1 is an upper bound). What fails is the "
    "other regime: with its penalty tuned, logistic regression is 1.6 points ahead with 2 to 10 digits of "
    "each class too. Pixels depend on each other, and naive Bayes does best with variances so alike that it "
    "takes the nearest mean. With all digits it is 6.5 points behind, as claimed. The consistency bound held "
    "in 99% of the fits, with excesses estimated on 2000 examples.",
    steps=12,
    smoke_sizes={"largest": 16},
    seeds=16,
)


def run(key, arm, *, steps, penalty=1.0, var_floor=1e-6, largest=DIMENSIONS[-1]):
    """Fits one kind of classifier to samples of all sizes; ``steps`` is for logistic regression."""
    key_mixture, key_digits = jax.random.split(key)

    def fit(x, y, weight, num_classes):
        if arm == "logistic":
            return fit_logistic(x, y, weight, num_classes, penalty, steps)
        return as_linear(fit_naive_bayes(x, y, num_classes=num_classes, var_floor=var_floor, weights=weight))

    dimensions = [n for n in DIMENSIONS if n <= largest]
    curves = [learning_curve(jax.random.fold_in(key_mixture, n), fit, n) for n in dimensions]
    log_size = jnp.stack([curve["log_size"] for curve in curves])
    log_n = np.log(dimensions) - np.mean(np.log(dimensions))
    return {
        "slope": log_n @ log_size / max(log_n @ log_n, 1e-9),
        "mean_log_size": log_size.mean(),
        **{f"size_{n}": jnp.exp(size) for n, size in zip(dimensions, log_size, strict=True)},
        **({"bound_held": jnp.stack([curve["bound_held"] for curve in curves]).mean()} if arm == "logistic" else {}),
        **digit_accuracies(key_digits, fit),
    }


def learning_curve(key, fit, n):
    """Of one dimension: the log of the sample size that reaches the final error but for 0.02."""
    full = 50 * n
    x, y = mixture(key, full + TEST, n)
    test_x, test_y = x[full:], y[full:]

    def measure(count, rows):
        weights, biases = fit(x[:rows], y[:rows], (jnp.arange(rows) < count).astype(x.dtype), len(MEANS))
        logits = test_x @ weights + biases
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, test_y).mean()
        return jnp.mean(logits.argmax(-1) != test_y, dtype=jnp.float32), loss

    # Small samples do not pay for the rows of large ones.
    sizes = np.unique(np.geomspace(2 * len(MEANS), full, 12).astype(np.int32))
    groups = [(sizes[sizes <= 6 * n], 6 * n), (sizes[sizes > 6 * n], full)]
    errors, losses = (
        jnp.concatenate(parts)
        for parts in zip(*[jax.lax.map(lambda m, r=rows: measure(m, r), group) for group, rows in groups], strict=True)
    )
    excess = errors - errors[-1]
    reached = jnp.argmax(excess < EXCESS)
    before = jnp.maximum(reached - 1, 0)
    logs = jnp.log(sizes)
    share = jnp.clip((excess[before] - EXCESS) / jnp.maximum(excess[before] - excess[reached], 1e-9), 0.0, 1.0)
    log_size = logs[before] + share * (logs[reached] - logs[before])
    # Of logistic regression's own loss, with its largest sample for the best of the class.
    bound = h_consistency_bound(jnp.maximum(losses - losses[-1], 0.0), num_classes=len(MEANS))
    return {"log_size": log_size, "bound_held": jnp.mean(excess <= bound + 1e-6)}


def digit_accuracies(key, fit):
    """On test digits, with a few examples of each class (the mean over several numbers) and with all."""
    x, y, test_x, test_y = data.digits(key)
    one_hot = jax.nn.one_hot(y, 10)
    rank = jnp.sum(jnp.cumsum(one_hot, axis=0) * one_hot, axis=-1)

    def accuracy(per_class):
        weights, biases = fit(x, y, (rank <= per_class).astype(x.dtype), 10)
        return jnp.mean((test_x @ weights + biases).argmax(-1) == test_y)

    accuracies = jax.lax.map(accuracy, jnp.array([*PER_CLASS, len(y)], jnp.float32))
    return {"few_shot_accuracy": accuracies[:-1].mean(), "full_accuracy": accuracies[-1]}


def mixture(key, count, n):
    """Examples of five Gaussian classes, all alike frequent."""
    key_label, key_noise = jax.random.split(key)
    y = jax.random.randint(key_label, [count], 0, len(MEANS))
    scale = jnp.where(jnp.arange(n) < n // 2, jnp.sqrt(n), 1.0)
    return MEANS[y][:, None] + scale * jax.random.normal(key_noise, [count, n]), y


def fit_logistic(x, y, weight, num_classes, penalty, steps):
    """Multinomial logistic regression by Newton's method, with conjugate gradients for the directions.

    Minimises the summed loss plus half the penalty times the squared norm of the weights, as scikit-learn does with
    ``C = 1 / penalty``. Coordinates are those in which all features together have unit covariance.
    """
    share = weight / weight.sum()
    ridge = penalty / weight.sum()
    centre = share @ x
    values, vectors = eigh((x - centre).T @ (share[:, None] * (x - centre)))
    scale = vectors / jnp.sqrt(jnp.maximum(values, 0.0) + ridge)
    z = jnp.concatenate([(x - centre) @ scale, jnp.ones([len(x), 1])], axis=1)
    shrink = jnp.pad(ridge * scale.T @ scale, (0, 1))
    target = jax.nn.one_hot(y, num_classes)

    def objective(v):
        logits = z @ v
        losses = jax.nn.logsumexp(logits, axis=-1) - jnp.sum(logits * target, axis=-1)
        return share @ losses + 0.5 * jnp.sum(v * (shrink @ v))

    def newton(v, _):
        p = jax.nn.softmax(z @ v)

        def curvature(d):
            u = z @ d
            return z.T @ (share[:, None] * p * (u - jnp.sum(p * u, axis=-1, keepdims=True))) + shrink @ d + 1e-7 * d

        def conjugate(carry, _):
            solution, residual, direction = carry
            curved, norm = curvature(direction), jnp.sum(jnp.square(residual))
            size = norm / jnp.maximum(jnp.sum(direction * curved), 1e-30)
            new = residual - size * curved
            turn = jnp.sum(jnp.square(new)) / jnp.maximum(norm, 1e-30)
            return (solution + size * direction, new, new + turn * direction), None

        downhill = -(z.T @ (share[:, None] * (p - target)) + shrink @ v)
        (direction, *_), _ = jax.lax.scan(conjugate, (jnp.zeros_like(v), downhill, downhill), length=CONJUGATE_STEPS)
        lengths = jnp.array([1.0, 0.5, 0.25, 0.1, 0.0])
        values = jnp.stack([objective(v + length * direction) for length in lengths])
        return v + lengths[jnp.nanargmin(values)] * direction, None

    v, _ = jax.lax.scan(newton, jnp.zeros([z.shape[1], num_classes]), length=steps)
    weights = scale @ v[:-1]
    return weights, v[-1] - centre @ weights
