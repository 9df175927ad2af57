"""Augmentation, mixing and sampling of training data."""

from jaxreg.data.mixing import Mixup, mix, mixup
from jaxreg.data.modular import ModularTable, modular_table, noisy_modular
from jaxreg.data.online import SeaLosses, sea_losses

__all__ = [
    "Mixup",
    "ModularTable",
    "SeaLosses",
    "mix",
    "mixup",
    "modular_table",
    "noisy_modular",
    "sea_losses",
]
