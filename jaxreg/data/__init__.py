"""Augmentation, mixing and sampling of training data."""

from jaxreg.data.mixing import Mixup, mix, mixup
from jaxreg.data.modular import ModularTable, modular_table, noisy_modular

__all__ = [
    "Mixup",
    "ModularTable",
    "mix",
    "mixup",
    "modular_table",
    "noisy_modular",
]
