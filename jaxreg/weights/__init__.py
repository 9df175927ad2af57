"""Operations on parameters and checkpoints: average, merge, edit, search, initialize."""

from jaxreg.weights.ggd import deepshape, ggd_init
from jaxreg.weights.periodic import ModularMlp, analytic_modular_mlp, modular_mlp, modular_mlp_init, prune_neurons

__all__ = [
    "ModularMlp",
    "analytic_modular_mlp",
    "deepshape",
    "ggd_init",
    "modular_mlp",
    "modular_mlp_init",
    "prune_neurons",
]
