"""Machine unlearning: making a trained model forget part of its data."""

from jaxreg.unlearning.datamodel import dmm_unlearn, fit_datamodel, leave_out_ridge, matching_loss, predict_oracle
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
    "NoisedBatch",
    "dmm_unlearn",
    "fit_datamodel",
    "forget_gradients",
    "leave_out_ridge",
    "masked",
    "matching_loss",
    "predict_oracle",
    "random_label_loss",
    "random_labels",
    "saliency_mask",
    "salun_diffusion_loss",
]
