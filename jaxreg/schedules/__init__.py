"""Schedules: of learning rates, as optax takes them, and of noise levels."""

from jaxreg.schedules.discretization import (
    adaptive_c,
    doubling_steps,
    karras_index,
    karras_sigma,
    lognormal_index_probs,
)
from jaxreg.schedules.large_batch import adapted_regime, sqrt_scaled_lr
from jaxreg.schedules.linear import pskd_alpha
from jaxreg.schedules.refined import as_schedule, last_iterate_schedule, linear_decay, refine_schedule, weight_bound
from jaxreg.schedules.wsd import cyclic_cosine, wsd, wsd_s

__all__ = [
    "adapted_regime",
    "adaptive_c",
    "as_schedule",
    "cyclic_cosine",
    "doubling_steps",
    "karras_index",
    "karras_sigma",
    "last_iterate_schedule",
    "linear_decay",
    "lognormal_index_probs",
    "pskd_alpha",
    "refine_schedule",
    "sqrt_scaled_lr",
    "weight_bound",
    "wsd",
    "wsd_s",
]
