"""Machine unlearning: making a trained model forget part of its data."""

from jaxreg.unlearning.datamodel import dmm_unlearn, fit_datamodel, leave_out_ridge, matching_loss, predict_oracle
from jaxreg.unlearning.gan import (
    GanLosses,
    GanState,
    adapt_then_unlearn_step,
    discriminator_loss,
    gan_init,
    generator_loss,
    r1_penalty,
)
from jaxreg.unlearning.salun import (
    NoisedBatch,
    forget_gradients,
    masked,
    random_label_loss,
    random_labels,
    saliency_mask,
    salun_diffusion_loss,
)

__all__ = [
    "GanLosses",
    "GanState",
    "NoisedBatch",
    "adapt_then_unlearn_step",
    "discriminator_loss",
    "dmm_unlearn",
    "fit_datamodel",
    "forget_gradients",
    "gan_init",
    "generator_loss",
    "leave_out_ridge",
    "masked",
    "matching_loss",
    "predict_oracle",
    "r1_penalty",
    "random_label_loss",
    "random_labels",
    "saliency_mask",
    "salun_diffusion_loss",
]
