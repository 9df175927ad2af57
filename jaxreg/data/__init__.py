"""Augmentation, mixing and sampling of training data."""

from jaxreg.data.mixing import Mixup, mix, mixup

__all__ = [
    "Mixup",
    "mix",
    "mixup",
]
