"""Training and sampling of diffusion and consistency models."""

from jaxreg.diffusion.consistency import (
    SigmaPair,
    consistency_apply,
    consistency_pair,
    consistency_sample,
    ict_loss,
    sample_sigma_pair,
    slct_loss,
)
from jaxreg.diffusion.coupling import minibatch_ot
from jaxreg.diffusion.samplers import switch_params

__all__ = [
    "SigmaPair",
    "consistency_apply",
    "consistency_pair",
    "consistency_sample",
    "ict_loss",
    "minibatch_ot",
    "sample_sigma_pair",
    "slct_loss",
    "switch_params",
]
