"""What every metric must bear, whatever its paper: one battery for all of ``jaxreg.metrics``.

A metric that measures arrays stands in ``CASES`` with an example: the floating-point arrays that it measures, and
whatever else it takes. Those that take a loss or a model, keep a state or only count are tested with their family.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg import metrics

RNG = np.random.default_rng(0)


class Case(NamedTuple):
    """A metric, what it measures, and what else it is given."""

    measured: tuple[Any, ...]
    rest: dict[str, Any] = {}


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def uniform(*shape):
    return RNG.uniform(0.05, 0.95, size=shape).astype(np.float32)


def classes(*shape, count=4):
    return RNG.integers(0, count, size=shape)


def distribution(*shape):
    weights = uniform(*shape)
    return weights / weights.sum(axis=-1, keepdims=True)


CORRECT = np.arange(12) % 3 > 0
CASES: dict[str, Case] = {
    "aurc": Case((uniform(12),), {"correct": CORRECT}),
    "auroc": Case((normal(12),), {"positives": CORRECT}),
    "average_accuracy": Case((uniform(4, 4),)),
    "average_compatibility": Case((uniform(4, 4),)),
    "bias_variance": Case((normal(5, 6, 2), normal(6, 2))),
    "collapse_fraction": Case((normal(12, 4),), {"labels": classes(12)}),
    "compatibility_matrix": Case(
        (normal(3, 6, 4), normal(3, 8, 4)), {"query_labels": classes(6), "gallery_labels": classes(8)}
    ),
    "compatible_pairs": Case((normal(8, 3), normal(8, 3)), {"labels": np.arange(8) % 3}),
    "coverage": Case((uniform(6),), {"n": 3}),
    "critical_lr": Case((normal(6, 3),)),
    "distance_from_init": Case((normal(3, 4), normal(3, 4))),
    "dynamic_regret": Case((normal(7), normal(7))),
    "early_learning_alignment": Case((normal(3, 4), normal(3, 4))),
    "energy_distance": Case((normal(7, 3), normal(5, 3))),
    "excess_aurc": Case((uniform(12),), {"correct": CORRECT}),
    "expected_calibration_error": Case((distribution(12, 4),), {"labels": classes(12)}),
    "fit_ultra_slow": Case((1 + np.log(np.arange(2.0, 9.0, dtype=np.float32)),), {"steps": np.arange(1, 8)}),
    "frechet_distance": Case((normal(9, 3), normal(8, 3))),
    "gradient_cosine": Case((normal(3, 4), normal(3, 4))),
    "hessian_frobenius": Case((normal(6, 3),)),
    "hessian_trace": Case((normal(6, 3),)),
    "interval": Case((normal(40, 2),)),
    "ipr": Case((normal(3, 7),)),
    "iqm": Case((normal(5, 3),)),
    "kernel_velocity": Case((normal(4, 4), normal(4, 4))),
    "klom": Case((normal(6, 3), normal(6, 3))),
    "lr_sensitivity": Case((1 + uniform(5, 2), 2 + uniform(2))),
    "margin": Case((normal(6, 4),), {"labels": classes(6)}),
    "max_attention_logit": Case((normal(2, 5, 4), normal(2, 5, 4))),
    "mean": Case((normal(5, 3),)),
    "mean_distance": Case((normal(7, 3), normal(5, 3))),
    "median": Case((normal(5, 3),)),
    "membership_inference_efficacy": Case((normal(9), normal(9), normal(5))),
    "neuron_ipr": Case((normal(3, 7), normal(3, 7), normal(7, 3))),
    "nlm_alignment": Case((normal(3, 4), normal(3, 4))),
    "noise_alignment": Case((normal(6, 3), normal(6))),
    "optimal_coverage_policy": Case((distribution(3, 4),), {"n": 2}),
    "optimality_gap": Case((uniform(5, 3),)),
    "path_length": Case((normal(6, 3),)),
    "performance_profile": Case((normal(5, 3),), {"taus": np.linspace(-1, 1, 4, dtype=np.float32)}),
    "prediction_variance": Case((distribution(3, 6, 4),)),
    "probability_of_improvement": Case((normal(5, 3), normal(4, 3))),
    "river_progress": Case((normal(6, 2),), {"sharpness": 3.0, "slope": 0.5}),
    "river_valley_loss": Case((normal(6, 2),), {"sharpness": 3.0, "slope": 0.5}),
    "sea_quantities": Case((normal(6, 3), normal(6, 3))),
    "sgd_stability_operator": Case((normal(6, 3),), {"learning_rate": 0.1}),
    "static_regret": Case((normal(7), normal(7, 3))),
    "trace_bound": Case((normal(6, 3),)),
    "unlearning_gap": Case((uniform(4), uniform(4))),
}
NAN_MEANS = {"lr_sensitivity": 0}
"""Measured arrays in which NaN stands for something: a run that diverged has learnt nothing."""
NUMBERS_OR_COUNTS = {  # of integers, or of a few numbers that are settings
    *("class_iou", "expected_gaussian_gap", "false_false_true", "frobenius_bound", "initial_tightness"),
    *("label_outcomes", "pass_at_n"),
}
OF_FUNCTIONS = {
    *("gauss_newton_features", "generalization_gap", "hessian_vector_product", "hutchinson_trace"),
    *("lanczos_top_eigenvalue", "mask_spread", "stratified_bootstrap", "tangent_kernel", "telemetry", "top_eigenvalue"),
}
OTHERS = {  # which measure lists, tuples and states
    *("extrapolate_instability", "intrusion_rate", "linear_tightness", "propagation_tightness", "read_telemetry"),
    *("sign_condition", "telemetry_init", "unlearning_metrics"),
}


def call(name: str) -> tuple[Callable, tuple[Any, ...]]:
    case = CASES[name]
    function = getattr(metrics, name)
    free = [p for p in inspect.signature(function).parameters if p not in case.rest]

    def measure(*measured):
        return function(**dict(zip(free, measured, strict=False)), **case.rest)

    return measure, case.measured


def test_every_public_function_is_covered():
    functions = {name for name in metrics.__all__ if inspect.isfunction(getattr(metrics, name))}
    assert functions == CASES.keys() | NUMBERS_OR_COUNTS | OF_FUNCTIONS | OTHERS


@pytest.mark.parametrize("name", CASES)
def test_jit_agrees_and_is_finite(name):
    measure, measured = call(name)
    for jitted, eager in zip(
        jax.tree.leaves(jax.jit(measure)(*measured)), jax.tree.leaves(measure(*measured)), strict=True
    ):
        assert np.isfinite(eager).all()
        np.testing.assert_allclose(jitted, eager, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", CASES)
def test_vmap_agrees(name):
    measure, measured = call(name)
    pairs = [np.stack([array, array[::-1]]) for array in measured]
    together = jax.jit(jax.vmap(measure))(*pairs)
    for i in range(2):
        alone = jax.jit(measure)(*(pair[i] for pair in pairs))
        for part, whole in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
            np.testing.assert_allclose(whole[i], part, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_what_is_no_number_gives_none(name):
    measure, measured = call(name)
    measure = jax.jit(measure)
    for position, array in enumerate(measured):
        if NAN_MEANS.get(name) == position:
            continue
        broken = array.copy()
        broken.flat[array.size // 2] = np.nan
        results = jax.tree.leaves(measure(*measured[:position], broken, *measured[position + 1 :]))
        assert any(np.isnan(result).any() for result in results)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_measured_in_float32(name, dtype):
    measure, measured = call(name)
    rounded = [jnp.asarray(array, dtype) for array in measured]
    results = jax.tree.leaves(jax.eval_shape(measure, *rounded))
    assert all(result.dtype in (jnp.float32, jnp.int32, jnp.bool_) for result in results)


@pytest.mark.parametrize("name", CASES)
def test_float32_stays_so_in_float64_mode(name):
    measure, measured = call(name)
    with jax.enable_x64(True):
        results = jax.tree.leaves(jax.eval_shape(measure, *measured))
    assert all(result.dtype != jnp.float64 for result in results)
