"""Measurements: of algorithms from a few runs, of models and of samples."""

from jaxreg.metrics.bias_variance import BiasVariance, bias_variance
from jaxreg.metrics.calibration import aurc, excess_aurc, expected_calibration_error
from jaxreg.metrics.coverage import coverage, optimal_coverage_policy, pass_at_n
from jaxreg.metrics.curvature import (
    hessian_vector_product,
    hutchinson_trace,
    lanczos_top_eigenvalue,
    top_eigenvalue,
)
from jaxreg.metrics.dynamical_stability import (
    critical_lr,
    frobenius_bound,
    gauss_newton_features,
    hessian_frobenius,
    hessian_trace,
    noise_alignment,
    sgd_stability_operator,
    trace_bound,
)
from jaxreg.metrics.ensembles import false_false_true, prediction_variance
from jaxreg.metrics.generalization import expected_gaussian_gap, generalization_gap
from jaxreg.metrics.gradient_conflict import gradient_cosine
from jaxreg.metrics.intrusion import intrusion_rate
from jaxreg.metrics.kernel_dynamics import kernel_velocity, tangent_kernel
from jaxreg.metrics.lr_sensitivity import extrapolate_instability, lr_sensitivity, max_attention_logit
from jaxreg.metrics.mask_spread import mask_spread
from jaxreg.metrics.memorization import LabelOutcomes, early_learning_alignment, label_outcomes
from jaxreg.metrics.periodicity import ipr, neuron_ipr
from jaxreg.metrics.propagation_tightness import (
    initial_tightness,
    linear_tightness,
    propagation_tightness,
    sign_condition,
)
from jaxreg.metrics.regret import SeaQuantities, dynamic_regret, path_length, sea_quantities, static_regret
from jaxreg.metrics.reliable import (
    Interval,
    interval,
    iqm,
    mean,
    median,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
    stratified_bootstrap,
)
from jaxreg.metrics.retrieval import average_accuracy, average_compatibility, compatibility_matrix, compatible_pairs
from jaxreg.metrics.river_valley import RiverProgress, river_progress, river_valley_loss
from jaxreg.metrics.roc import auroc
from jaxreg.metrics.segmentation import class_iou
from jaxreg.metrics.softmax_collapse import collapse_fraction, nlm_alignment
from jaxreg.metrics.telemetry import Telemetry, TelemetryState, read_telemetry, telemetry, telemetry_init
from jaxreg.metrics.two_sample import energy_distance, frechet_distance, mean_distance
from jaxreg.metrics.unlearning import (
    UnlearningMetrics,
    klom,
    margin,
    membership_inference_efficacy,
    unlearning_gap,
    unlearning_metrics,
)
from jaxreg.metrics.weight_distance import UltraSlowFit, distance_from_init, fit_ultra_slow

__all__ = [
    "BiasVariance",
    "Interval",
    "LabelOutcomes",
    "RiverProgress",
    "SeaQuantities",
    "Telemetry",
    "TelemetryState",
    "UltraSlowFit",
    "UnlearningMetrics",
    "aurc",
    "auroc",
    "average_accuracy",
    "average_compatibility",
    "bias_variance",
    "class_iou",
    "collapse_fraction",
    "compatibility_matrix",
    "compatible_pairs",
    "coverage",
    "critical_lr",
    "distance_from_init",
    "dynamic_regret",
    "early_learning_alignment",
    "energy_distance",
    "excess_aurc",
    "expected_calibration_error",
    "expected_gaussian_gap",
    "extrapolate_instability",
    "false_false_true",
    "fit_ultra_slow",
    "frechet_distance",
    "frobenius_bound",
    "gauss_newton_features",
    "generalization_gap",
    "gradient_cosine",
    "hessian_frobenius",
    "hessian_trace",
    "hessian_vector_product",
    "hutchinson_trace",
    "initial_tightness",
    "interval",
    "intrusion_rate",
    "ipr",
    "iqm",
    "kernel_velocity",
    "klom",
    "label_outcomes",
    "lanczos_top_eigenvalue",
    "linear_tightness",
    "lr_sensitivity",
    "margin",
    "mask_spread",
    "max_attention_logit",
    "mean",
    "mean_distance",
    "median",
    "membership_inference_efficacy",
    "neuron_ipr",
    "nlm_alignment",
    "noise_alignment",
    "optimal_coverage_policy",
    "optimality_gap",
    "pass_at_n",
    "path_length",
    "performance_profile",
    "prediction_variance",
    "probability_of_improvement",
    "propagation_tightness",
    "read_telemetry",
    "river_progress",
    "river_valley_loss",
    "sea_quantities",
    "sgd_stability_operator",
    "sign_condition",
    "static_regret",
    "stratified_bootstrap",
    "tangent_kernel",
    "telemetry",
    "telemetry_init",
    "top_eigenvalue",
    "trace_bound",
    "unlearning_gap",
    "unlearning_metrics",
]
