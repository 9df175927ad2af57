"""Per-example training objectives on model outputs."""

from jaxreg.losses.co_teaching import co_teaching_mask, forget_schedule
from jaxreg.losses.comp_sum import (
    comp_sum,
    comp_sum_bayes_risk,
    h_consistency_bound,
    h_consistency_transform,
    margin_change,
    minimizability_gap,
    smooth_adversarial_comp_sum,
)
from jaxreg.losses.contrastive import hoc_loss
from jaxreg.losses.coverage import confidence_factor, dco_loss, dco_sequence, dco_step
from jaxreg.losses.decoupled_mixup import (
    decoupled_mixup_bce,
    decoupled_mixup_ce,
    decoupled_regularizer,
    rescale_lambda,
)
from jaxreg.losses.distillation import adapt_soft_labels, binary_kl_norm, kd_kl
from jaxreg.losses.ensloss import calibrated_derivatives, ensloss, sample_box_cox
from jaxreg.losses.evidential import (
    dirichlet_cross_entropy,
    dirichlet_kl,
    exponential_evidence,
    flexible_evidential,
    tlc_loss,
)
from jaxreg.losses.generalized_gaussian import (
    GgdFit,
    ggd_fit,
    ggd_kurtosis,
    ggd_log_prob,
    ggd_quantile,
    ggd_sample,
    ggd_variance,
)
from jaxreg.losses.imbalanced_regression import conr
from jaxreg.losses.intrusion import adamixup_loss, intrusion_loss
from jaxreg.losses.label_dro import AldrState, aldr_kl, aldr_kl_init, ldr_kl, ldr_kl_bayes_probabilities
from jaxreg.losses.long_tail import consistency_self_distillation, diversity_loss, mdcs
from jaxreg.losses.mixture_ranking import mixup_ranking, mndcg
from jaxreg.losses.mixup import bang_finetune_loss, mixup_loss
from jaxreg.losses.noisy_labels import ElrState, elr, elr_init, elr_plus, elr_plus_targets, sigmoid_rampup
from jaxreg.losses.noisy_segmentation import (
    LearningCurve,
    correct_labels,
    correction_due,
    fit_learning_curve,
    learning_slowdown,
    multiscale_jsd,
)
from jaxreg.losses.robust_regression import cauchy, pseudo_huber
from jaxreg.losses.self_distillation import PskdState, pskd, pskd_gradient_scale, pskd_init
from jaxreg.losses.soft_targets import expected_loss, soft_cross_entropy
from jaxreg.losses.stablemax import log_stablemax, stablemax_cross_entropy
from jaxreg.losses.z_loss import z_loss

__all__ = [
    "AldrState",
    "ElrState",
    "GgdFit",
    "LearningCurve",
    "PskdState",
    "adamixup_loss",
    "adapt_soft_labels",
    "aldr_kl",
    "aldr_kl_init",
    "bang_finetune_loss",
    "binary_kl_norm",
    "calibrated_derivatives",
    "cauchy",
    "co_teaching_mask",
    "comp_sum",
    "comp_sum_bayes_risk",
    "confidence_factor",
    "conr",
    "consistency_self_distillation",
    "correct_labels",
    "correction_due",
    "dco_loss",
    "dco_sequence",
    "dco_step",
    "decoupled_mixup_bce",
    "decoupled_mixup_ce",
    "decoupled_regularizer",
    "dirichlet_cross_entropy",
    "dirichlet_kl",
    "diversity_loss",
    "elr",
    "elr_init",
    "elr_plus",
    "elr_plus_targets",
    "ensloss",
    "expected_loss",
    "exponential_evidence",
    "fit_learning_curve",
    "flexible_evidential",
    "forget_schedule",
    "ggd_fit",
    "ggd_kurtosis",
    "ggd_log_prob",
    "ggd_quantile",
    "ggd_sample",
    "ggd_variance",
    "h_consistency_bound",
    "h_consistency_transform",
    "hoc_loss",
    "intrusion_loss",
    "kd_kl",
    "ldr_kl",
    "ldr_kl_bayes_probabilities",
    "learning_slowdown",
    "log_stablemax",
    "margin_change",
    "mdcs",
    "minimizability_gap",
    "mixup_loss",
    "mixup_ranking",
    "mndcg",
    "multiscale_jsd",
    "pseudo_huber",
    "pskd",
    "pskd_gradient_scale",
    "pskd_init",
    "rescale_lambda",
    "sample_box_cox",
    "sigmoid_rampup",
    "smooth_adversarial_comp_sum",
    "soft_cross_entropy",
    "stablemax_cross_entropy",
    "tlc_loss",
    "z_loss",
]
