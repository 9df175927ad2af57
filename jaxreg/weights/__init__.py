"""Operations on parameters and checkpoints: average, merge, edit, search, initialize."""

from jaxreg.weights.compander import Compander, apply_compander, compand, compand_inverse, init_compander
from jaxreg.weights.ggd import deepshape, ggd_init
from jaxreg.weights.periodic import ModularMlp, analytic_modular_mlp, modular_mlp, modular_mlp_init, prune_neurons

__all__ = [
    "Compander",
    "ModularMlp",
    "analytic_modular_mlp",
    "apply_compander",
    "compand",
    "compand_inverse",
    "deepshape",
    "ggd_init",
    "init_compander",
    "modular_mlp",
    "modular_mlp_init",
    "prune_neurons",
]
