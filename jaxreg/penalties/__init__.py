"""Regularizers: penalties on parameters, features and Jacobians."""

from jaxreg.penalties.path_norms import diagonal_net_l1, path_norm

__all__ = ["diagonal_net_l1", "path_norm"]
