"""Layers and heads, as functions and flax.linen modules."""

from jaxreg.layers.multi_sample_dropout import (
    MultiSampleDropout,
    antithetic_masks,
    multi_sample_dropout,
    multi_sample_loss,
)

__all__ = ["MultiSampleDropout", "antithetic_masks", "multi_sample_dropout", "multi_sample_loss"]
