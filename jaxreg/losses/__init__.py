"""Per-example training objectives on model outputs."""

from jaxreg.losses.contrastive import hoc_loss
from jaxreg.losses.generalized_gaussian import (
    GgdFit,
    ggd_fit,
    ggd_kurtosis,
    ggd_log_prob,
    ggd_quantile,
    ggd_sample,
    ggd_variance,
)
from jaxreg.losses.label_dro import AldrState, aldr_kl, aldr_kl_init, ldr_kl, ldr_kl_bayes_probabilities
from jaxreg.losses.mixup import bang_finetune_loss, mixup_loss
from jaxreg.losses.noisy_labels import ElrState, elr, elr_init, elr_plus, elr_plus_targets, sigmoid_rampup
from jaxreg.losses.robust_regression import cauchy, pseudo_huber
from jaxreg.losses.stablemax import log_stablemax, stablemax_cross_entropy
from jaxreg.losses.z_loss import z_loss

__all__ = [
    "AldrState",
    "ElrState",
    "GgdFit",
    "aldr_kl",
    "aldr_kl_init",
    "bang_finetune_loss",
    "cauchy",
    "elr",
    "elr_init",
    "elr_plus",
    "elr_plus_targets",
    "ggd_fit",
    "ggd_kurtosis",
    "ggd_log_prob",
    "ggd_quantile",
    "ggd_sample",
    "ggd_variance",
    "hoc_loss",
    "ldr_kl",
    "ldr_kl_bayes_probabilities",
    "log_stablemax",
    "mixup_loss",
    "pseudo_huber",
    "sigmoid_rampup",
    "stablemax_cross_entropy",
    "z_loss",
]
