"""Measurements: of algorithms from a few runs, of models and of samples."""

from jaxreg.metrics.lr_sensitivity import extrapolate_instability, lr_sensitivity, max_attention_logit
from jaxreg.metrics.memorization import LabelOutcomes, early_learning_alignment, label_outcomes
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
from jaxreg.metrics.river_valley import RiverProgress, river_progress, river_valley_loss
from jaxreg.metrics.softmax_collapse import collapse_fraction, nlm_alignment

__all__ = [
    "Interval",
    "LabelOutcomes",
    "RiverProgress",
    "collapse_fraction",
    "early_learning_alignment",
    "extrapolate_instability",
    "interval",
    "iqm",
    "label_outcomes",
    "lr_sensitivity",
    "max_attention_logit",
    "mean",
    "median",
    "nlm_alignment",
    "optimality_gap",
    "performance_profile",
    "probability_of_improvement",
    "river_progress",
    "river_valley_loss",
    "stratified_bootstrap",
]
