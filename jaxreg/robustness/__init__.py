"""Robustness: attacks on inputs, bounds that hold against all of them, and training by either."""

from jaxreg.robustness.attacks import fgsm, pgd, project_to_ball
from jaxreg.robustness.interval_bounds import NetworkBounds, interval_bounds, network_bounds
from jaxreg.robustness.interval_rules import Bounds
from jaxreg.robustness.margin_attack import margin_pgd

__all__ = [
    "Bounds",
    "NetworkBounds",
    "fgsm",
    "interval_bounds",
    "margin_pgd",
    "network_bounds",
    "pgd",
    "project_to_ball",
]
