"""Augmentation, mixing and sampling of training data."""

from jaxreg.data.generative_augmentation import GaussianGenerator, augment, fit_class_gaussian, sample_generator
from jaxreg.data.gradient_matching import dc_loss, dcc_loss, dcc_schedule, match_distance, replay_union
from jaxreg.data.mixing import (
    Mixup,
    PolicyInterval,
    SelfMix,
    mix,
    mixup,
    policy_blend,
    policy_interval,
    sample_policy,
    self_mix,
)
from jaxreg.data.modular import ModularTable, modular_table, noisy_modular
from jaxreg.data.online import SeaLosses, sea_losses
from jaxreg.data.smooth_experts import clip_coefficients, input_gradient_penalty, representative_init, train_expert
from jaxreg.data.synthetic import gaussian_ring, multi_color, ring_denoiser, ring_means, two_moons
from jaxreg.data.trajectory_matching import balance_factor, inner_loop, matching_loss, perturb_weights

__all__ = [
    "GaussianGenerator",
    "Mixup",
    "ModularTable",
    "PolicyInterval",
    "SeaLosses",
    "SelfMix",
    "augment",
    "balance_factor",
    "clip_coefficients",
    "dc_loss",
    "dcc_loss",
    "dcc_schedule",
    "fit_class_gaussian",
    "gaussian_ring",
    "inner_loop",
    "input_gradient_penalty",
    "match_distance",
    "matching_loss",
    "mix",
    "mixup",
    "modular_table",
    "multi_color",
    "noisy_modular",
    "perturb_weights",
    "policy_blend",
    "policy_interval",
    "replay_union",
    "representative_init",
    "ring_denoiser",
    "ring_means",
    "sample_generator",
    "sample_policy",
    "sea_losses",
    "self_mix",
    "train_expert",
    "two_moons",
]
