"""Regularizers: penalties on parameters, features and Jacobians."""

from jaxreg.penalties.ggd_rate import backslash_rate, exp_golomb_bits, ggd_bits
from jaxreg.penalties.path_norms import diagonal_net_l1, path_norm

__all__ = [
    "backslash_rate",
    "diagonal_net_l1",
    "exp_golomb_bits",
    "ggd_bits",
    "path_norm",
]
