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
from jaxreg.data.synthetic import gaussian_ring, multi_color, ring_denoiser, ring_means, two_moons

__all__ = [
    "GaussianGenerator",
    "Mixup",
    "ModularTable",
    "PolicyInterval",
    "SeaLosses",
    "SelfMix",
    "augment",
    "dc_loss",
    "dcc_loss",
    "dcc_schedule",
    "fit_class_gaussian",
    "gaussian_ring",
    "match_distance",
    "mix",
    "mixup",
    "modular_table",
    "multi_color",
    "noisy_modular",
    "policy_blend",
    "policy_interval",
    "replay_union",
    "ring_denoiser",
    "ring_means",
    "sample_generator",
    "sample_policy",
    "sea_losses",
    "self_mix",
    "two_moons",
]
