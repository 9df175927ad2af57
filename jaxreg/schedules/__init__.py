"""Schedules: functions from the step to a learning rate, as optax takes them."""

from jaxreg.schedules.large_batch import adapted_regime, sqrt_scaled_lr
from jaxreg.schedules.refined import as_schedule, last_iterate_schedule, linear_decay, refine_schedule, weight_bound
from jaxreg.schedules.wsd import cyclic_cosine, wsd, wsd_s

__all__ = [
    "adapted_regime",
    "as_schedule",
    "cyclic_cosine",
    "last_iterate_schedule",
    "linear_decay",
    "refine_schedule",
    "sqrt_scaled_lr",
    "weight_bound",
    "wsd",
    "wsd_s",
]
