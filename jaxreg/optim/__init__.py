"""Optimizers and wrappers around optimizers, as optax gradient transformations."""

from jaxreg.optim.adamp import RadialProjectionState, adamp, project_radial, radial_projection, sgdp
from jaxreg.optim.descend import descend
from jaxreg.optim.independent_decay import independent_weight_decay
from jaxreg.optim.momentum_reset import MomentumResetState, momentum_reset, warmup_after_reset
from jaxreg.optim.mu_param import mu_scale
from jaxreg.optim.multiplicative_noise import multiplicative_noise_gradient
from jaxreg.optim.optimistic_md import (
    DynamicEnsembleState,
    OnlineLearner,
    OptimisticMdState,
    dynamic_ensemble,
    optimistic_md,
)
from jaxreg.optim.perp_grad import perp_grad
from jaxreg.optim.spam import ScaleBySpamState, scale_by_spam, spam, spike_clip, spike_score

__all__ = [
    "DynamicEnsembleState",
    "MomentumResetState",
    "OnlineLearner",
    "OptimisticMdState",
    "RadialProjectionState",
    "ScaleBySpamState",
    "adamp",
    "descend",
    "dynamic_ensemble",
    "independent_weight_decay",
    "momentum_reset",
    "mu_scale",
    "multiplicative_noise_gradient",
    "optimistic_md",
    "perp_grad",
    "project_radial",
    "radial_projection",
    "scale_by_spam",
    "sgdp",
    "spam",
    "spike_clip",
    "spike_score",
    "warmup_after_reset",
]
