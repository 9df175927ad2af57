"""Regularizers: penalties on parameters, features and Jacobians."""

from jaxreg.penalties.anchor import anchor_distance, ewc, fisher_diagonal
from jaxreg.penalties.ggd_rate import backslash_rate, exp_golomb_bits, ggd_bits
from jaxreg.penalties.lipschitz import (
    dual_ascent,
    dual_init,
    neighbor_edges,
    pairwise_lipschitz_violation,
    project_spectral,
    spectral_norm_bound,
)
from jaxreg.penalties.parameter import repulsion
from jaxreg.penalties.path_norms import diagonal_net_l1, path_norm

__all__ = [
    "anchor_distance",
    "backslash_rate",
    "diagonal_net_l1",
    "dual_ascent",
    "dual_init",
    "ewc",
    "exp_golomb_bits",
    "fisher_diagonal",
    "ggd_bits",
    "neighbor_edges",
    "pairwise_lipschitz_violation",
    "path_norm",
    "project_spectral",
    "repulsion",
    "spectral_norm_bound",
]
