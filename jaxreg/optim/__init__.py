"""Optimizers and wrappers around optimizers, as optax gradient transformations."""

from jaxreg.optim.descend import descend
from jaxreg.optim.momentum_reset import MomentumResetState, momentum_reset, warmup_after_reset
from jaxreg.optim.spam import ScaleBySpamState, scale_by_spam, spam, spike_clip, spike_score

__all__ = [
    "MomentumResetState",
    "ScaleBySpamState",
    "descend",
    "momentum_reset",
    "scale_by_spam",
    "spam",
    "spike_clip",
    "spike_score",
    "warmup_after_reset",
]
