"""Robustness: attacks on inputs, bounds that hold against all of them, and training by either."""

from jaxreg.robustness.attacks import fgsm, pgd, project_to_ball
from jaxreg.robustness.fast_ibp import fast_ibp_loss, ibp_init, relu_balance_penalty, tightness_penalty
from jaxreg.robustness.ibp import interval_conv, interval_dense, interval_relu, propagate, robust_margins
from jaxreg.robustness.interval_bounds import NetworkBounds, interval_bounds, network_bounds
from jaxreg.robustness.interval_rules import Bounds
from jaxreg.robustness.margin_attack import margin_pgd
from jaxreg.robustness.mtard import MtardState, mtard_init, mtard_update

__all__ = [
    "Bounds",
    "MtardState",
    "NetworkBounds",
    "fast_ibp_loss",
    "fgsm",
    "ibp_init",
    "interval_bounds",
    "interval_conv",
    "interval_dense",
    "interval_relu",
    "margin_pgd",
    "mtard_init",
    "mtard_update",
    "network_bounds",
    "pgd",
    "project_to_ball",
    "propagate",
    "relu_balance_penalty",
    "robust_margins",
    "tightness_penalty",
]
