"""Predictions that say how much they can be trusted."""

from jaxreg.uncertainty.dempster_shafer import (
    Opinion,
    dempster_combine,
    engaged_logits,
    engagement_weights,
    opinion,
)
from jaxreg.uncertainty.subjective_logic import SingletonOpinion, flexible_decision, plausibility, singleton_opinion

__all__ = [
    "Opinion",
    "SingletonOpinion",
    "dempster_combine",
    "engaged_logits",
    "engagement_weights",
    "flexible_decision",
    "opinion",
    "plausibility",
    "singleton_opinion",
]
