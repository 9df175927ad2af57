"""Layers and heads, as functions and flax.linen modules."""

from jaxreg.layers.multi_sample_dropout import (
    MultiSampleDropout,
    antithetic_masks,
    multi_sample_dropout,
    multi_sample_loss,
)
from jaxreg.layers.qk_norm import QKNormAttention

__all__ = ["MultiSampleDropout", "QKNormAttention", "antithetic_masks", "multi_sample_dropout", "multi_sample_loss"]
