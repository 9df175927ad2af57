"""Regularizers: penalties on parameters, features and Jacobians."""

from jaxreg.penalties.anchor import anchor_distance, ewc, fisher_diagonal
from jaxreg.penalties.ggd_rate import backslash_rate, exp_golomb_bits, ggd_bits
from jaxreg.penalties.parameter import repulsion
from jaxreg.penalties.path_norms import diagonal_net_l1, path_norm

__all__ = [
    "anchor_distance",
    "backslash_rate",
    "diagonal_net_l1",
    "ewc",
    "exp_golomb_bits",
    "fisher_diagonal",
    "ggd_bits",
    "path_norm",
    "repulsion",
]
