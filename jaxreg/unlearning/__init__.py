"""Machine unlearning: making a trained model forget part of its data."""

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
    "forget_gradients",
    "masked",
    "random_label_loss",
    "random_labels",
    "saliency_mask",
    "salun_diffusion_loss",
]
