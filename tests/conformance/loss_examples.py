"""Example arguments for every loss, read off its signature.

Axes have fixed sizes by name, and an argument's kind follows from its annotation: integers named ``index`` are
distinct positions in the training set, other integers are classes, ``logits`` are normal, other floating arrays with
an axis of classes are probabilities, and the state comes from the ``*_init`` that returns its type. What a signature
leaves open is filled in by the table EXAMPLES.
"""

import dataclasses
import inspect
import itertools
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg import losses
from jaxreg.typing import ScalarLike

SIZES = {
    "batch": 5,
    "classes": 4,
    "examples": 9,
    "experts": 3,
    "height": 4,
    "width": 4,
    "features": 3,
    "items": 6,
    "length": 3,
    "mixtures": 3,
}
BATCH = SIZES["batch"]

# Arguments that a signature does not tell: function -> argument -> value.
EXAMPLES: dict[str, dict[str, typing.Any]] = {
    "cauchy": {"c": 0.4},
    "confidence_factor": {"n": 4.0},
    "dco_loss": {"n": 4.0},
    "dco_sequence": {"n": 4.0},
    "dco_step": {"n": 4.0},
    "decoupled_mixup_bce": {"weight": 0.7},
    "decoupled_mixup_ce": {"weight": 0.7},
    "ensloss": {"key": jax.random.key(0), "labels": jnp.arange(SIZES["items"]) % 2},
    "calibrated_derivatives": {"key": jax.random.key(0)},
    "conr": {"targets": jnp.array([0.0, 0.5, 5.0, 5.5, 0.2, 9.0]), "predictions": jnp.arange(6) / 5},
    "correct_labels": {"due": jnp.array([False, True, False, True])},
    "mdcs": {"epoch": 3},
    "multiscale_jsd": {"scale_logits": jnp.sin(jnp.arange(3.0 * 5 * 4 * 4 * 4)).reshape(3, 5, 4, 4, 4)},
    "forget_schedule": {"step": 3, "rate": 0.4, "ramp": 10},
    "h_consistency_bound": {"num_classes": 4},
    "h_consistency_transform": {"num_classes": 4},
    "minimizability_gap": {"least_risk": 1.5},
    "ggd_log_prob": {"shape": 1.5, "scale": 0.8},
    "pseudo_huber": {"c": 0.4},
    "rescale_lambda": {"weight": jnp.linspace(0.0, 1.0, SIZES["batch"])},
    "pskd": {"alpha": 0.4},
    "pskd_gradient_scale": {"alpha": 0.4},
    "tlc_loss": {
        "counts": jnp.array([9, 3, 1, 5]),
        "weights": jnp.linspace(0.3, 1.0, 24).reshape(4, 6),
        "epoch": 3,
        "kl_period": 20.0,
    },
    "sigmoid_rampup": {"step": 3, "rampup_steps": 10},
}

# Values that a hyperparameter must refuse, where they are not the default. NaN is refused by every range.
REFUSED_BY_DEFAULT = (-1.0, math.nan)
REFUSED: dict[str, tuple[float, ...]] = {
    "temperature": (-1.0, 0.0, math.nan),
    "alpha": (-1.0, 1.0, math.nan),
    "beta": (-1.0, 1.0, math.nan),
    "kl_period": (-1.0, 0.0, math.nan),
    "box_cox": (math.inf, math.nan),
    "ramp_epochs": (-1.0, 0.0, math.nan),
    "scale": (-1.0, 0.0, math.nan),
}


# Their tests are those of their module: what a loss is made of, measured on samples, drawn, or without examples ...
TESTED_ELSEWHERE = {"GgdFit", "ggd_fit", "ggd_kurtosis", "ggd_quantile", "ggd_sample", "ggd_variance", "intrusion_loss"}
TESTED_ELSEWHERE |= {"LearningCurve", "correction_due", "fit_learning_curve", "learning_slowdown", "sample_box_cox"}
TESTED_ELSEWHERE |= {"co_teaching_mask"}  # it compares the examples of a batch
# ... what calls the network itself, on examples that it mixes, and what makes one loss of another.
TESTED_ELSEWHERE |= {
    "adamixup_loss",
    "bang_finetune_loss",
    "expected_loss",
    "mixup_loss",
    "smooth_adversarial_comp_sum",
}


def is_state(value) -> bool:
    return isinstance(value, type) and issubclass(value, tuple)


def public(predicate):
    return [name for name in losses.__all__ if name not in TESTED_ELSEWHERE and predicate(getattr(losses, name))]


STATES = public(is_state)
INITS = [name for name in public(callable) if name.endswith("_init")]
FUNCTIONS = [name for name in public(callable) if name not in {*STATES, *INITS}]


def signature(name: str) -> inspect.Signature:
    return inspect.signature(getattr(losses, name))


def is_array(annotation) -> bool:
    return hasattr(annotation, "dim_str")


def axes(annotation) -> list[str]:
    return annotation.dim_str.split()


def is_per_example(annotation) -> bool:
    return is_array(annotation) and axes(annotation)[:1] in (["batch"], ["*batch"])


def takes_any_batch(name: str) -> bool:
    return any(is_array(p.annotation) and "*batch" in axes(p.annotation) for p in signature(name).parameters.values())


def make_array(key, argument: str, annotation, batch: tuple[int, ...]):
    shape = [size for axis in axes(annotation) for size in (batch if axis == "*batch" else [SIZES[axis]])]
    if any(dtype.startswith("float") for dtype in annotation.dtypes):
        normal = jax.random.normal(key, shape)
        if argument.startswith("log_prob"):
            return jax.nn.log_softmax(normal)
        return 2 * normal if argument == "logits" else jax.nn.softmax(normal)
    if "bool" in annotation.dtypes:
        return jax.random.bernoulli(key, 0.7, shape)
    if argument == "index":
        return jax.random.permutation(key, SIZES["examples"])[: SIZES["batch"]]
    return jax.random.randint(key, shape, 0, SIZES["classes"])


def make_state(annotation):
    (init,) = [name for name in INITS if signature(name).return_annotation is annotation]
    sizes = {"num_examples": SIZES["examples"], "num_classes": SIZES["classes"]}
    given = {p: sizes[p] for p in signature(init).parameters if p in sizes}
    return getattr(losses, init)(**given, **EXAMPLES.get(init, {}))


@dataclasses.dataclass(frozen=True)
class Case:
    """One function with one choice of its options (flags and literals)."""

    name: str
    options: tuple[tuple[str, typing.Any], ...]

    def __str__(self):
        return "-".join([self.name, *(f"{option}={value}" for option, value in self.options)])

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        return dict(signature(self.name).parameters)

    @property
    def returns_state(self) -> bool:
        return typing.get_origin(signature(self.name).return_annotation) is tuple

    @property
    def result_annotation(self):
        returned = signature(self.name).return_annotation
        return typing.get_args(returned)[0] if self.returns_state else returned

    @property
    def per_example(self) -> list[str]:
        return [name for name, p in self.parameters.items() if is_per_example(p.annotation)]

    def arguments(self, batch: tuple[int, ...] = (BATCH,)) -> dict[str, typing.Any]:
        """All arguments without a default."""
        filled = dict(EXAMPLES.get(self.name, {}))
        for i, (argument, parameter) in enumerate(self.parameters.items()):
            if argument in filled or parameter.default is not parameter.empty:
                continue
            if is_array(parameter.annotation):
                filled[argument] = make_array(jax.random.key(i), argument, parameter.annotation, batch)
            elif is_state(parameter.annotation):
                filled[argument] = make_state(parameter.annotation)
            else:
                raise TypeError(f"{self.name} needs {argument}: add it to EXAMPLES in {__file__}")
        return filled

    def __call__(self, **arguments):
        """The result, always with a state, which is None for functions without."""
        result = getattr(losses, self.name)(**arguments, **dict(self.options))
        return result if self.returns_state else (result, None)


def _choices(parameter):
    """All values of a flag or a literal; nothing for other parameters."""
    if parameter.annotation is bool:
        return [False, True]
    members = (parameter.annotation, *typing.get_args(parameter.annotation))  # of a union, if it is one
    literals = [v for member in members if typing.get_origin(member) is typing.Literal for v in typing.get_args(member)]
    return literals + ([None] if literals and type(None) in members else [])


def _cases(name):
    choices = {p: _choices(parameter) for p, parameter in signature(name).parameters.items()}
    choices = {p: values for p, values in choices.items() if values}
    return [Case(name, tuple(zip(choices, values, strict=True))) for values in itertools.product(*choices.values())]


CASES = [case for name in FUNCTIONS for case in _cases(name)]
LOSSES = [case for case in CASES if "logits" in case.parameters]


def hyperparameters(name: str) -> dict[str, typing.Any]:
    """Real-valued keyword-only arguments and the values to try them at."""
    given = EXAMPLES.get(name, {})
    return {
        p: given.get(p, parameter.default)
        for p, parameter in signature(name).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.annotation == ScalarLike
    }


def refused(hyperparameter: str) -> tuple[float, ...]:
    return REFUSED.get(hyperparameter, REFUSED_BY_DEFAULT)


def extreme_logits() -> dict[str, jax.Array]:
    """Batches of logits as large as a loss must bear: every case the batch's own labels make easy or hopeless."""
    shape = BATCH, SIZES["classes"]
    rng = np.random.default_rng(0)
    one_hot = np.eye(SIZES["classes"])
    patterns = {
        "zero": np.zeros(shape),
        "all large": np.full(shape, 1e4),
        "all small": np.full(shape, -1e4),
        "tiny": np.full(shape, 1e-30),
        "normal": np.clip(5e3 * rng.normal(size=shape), -1e4, 1e4),
        "signs": 1e4 * rng.choice([-1.0, 1.0], size=shape),
        "one below": np.where(np.arange(shape[1]) == 0, -1e4, 0.0) + np.zeros(shape),
    }
    for winner in range(SIZES["classes"]):
        patterns[f"class {winner} wins"] = 1e4 * one_hot[[winner] * BATCH]
        patterns[f"class {winner} loses"] = -1e4 * one_hot[[winner] * BATCH]
        patterns[f"class {winner} wins by far"] = 2e4 * one_hot[[winner] * BATCH] - 1e4
    return {name: jnp.asarray(pattern, jnp.float32) for name, pattern in patterns.items()}
