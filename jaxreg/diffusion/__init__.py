"""Training and sampling of diffusion and consistency models."""

from jaxreg.diffusion.consistency import (
    SigmaPair,
    consistency_apply,
    consistency_pair,
    consistency_sample,
    ict_loss,
    sample_sigma_pair,
)
from jaxreg.diffusion.samplers import switch_params

__all__ = [
    "SigmaPair",
    "consistency_apply",
    "consistency_pair",
    "consistency_sample",
    "ict_loss",
    "sample_sigma_pair",
    "switch_params",
]
