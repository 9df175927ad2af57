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
from jaxreg.diffusion.denoising import denoising_loss
from jaxreg.diffusion.samplers import switch_params
from jaxreg.diffusion.trajectory import (
    Jump,
    adaptive_balance,
    ctm_adversarial_losses,
    ctm_dsm_loss,
    ctm_jump,
    ctm_loss,
    ctm_sample,
    ctm_score,
    heun_step,
)

__all__ = [
    "Jump",
    "SigmaPair",
    "adaptive_balance",
    "consistency_apply",
    "consistency_pair",
    "consistency_sample",
    "ctm_adversarial_losses",
    "ctm_dsm_loss",
    "ctm_jump",
    "ctm_loss",
    "ctm_sample",
    "ctm_score",
    "denoising_loss",
    "heun_step",
    "ict_loss",
    "minibatch_ot",
    "sample_sigma_pair",
    "slct_loss",
    "switch_params",
]
