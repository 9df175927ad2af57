"""Layers and heads, as functions and flax.linen modules."""

from jaxreg.layers.adapters import ConditionAdapter
from jaxreg.layers.dual_head import DualHead, DualLogits
from jaxreg.layers.ghost_batch_norm import GhostBatchNorm
from jaxreg.layers.lora import LoRADense, lora_mask
from jaxreg.layers.multi_sample_dropout import (
    MultiSampleDropout,
    antithetic_masks,
    multi_sample_dropout,
    multi_sample_loss,
)
from jaxreg.layers.nested_dropout import NestedDropout, best_width, nested_dropout, nested_pmf, truncate
from jaxreg.layers.noise_embedding import NoiseEmbedding
from jaxreg.layers.normalization import NonScalingLayerNorm
from jaxreg.layers.power_norm import (
    PowerNorm,
    group_scaling,
    keep_backward_stats,
    power_norm,
    power_norm_v,
    update_psi2,
)
from jaxreg.layers.qk_norm import QKNormAttention
from jaxreg.layers.simplex import FixedSimplexClassifier, simplex_vertices
from jaxreg.layers.stable_embedding import StableEmbedding
from jaxreg.layers.vector_quantization import Quantized, restart_dead_codes, vector_quantize

__all__ = [
    "ConditionAdapter",
    "DualHead",
    "DualLogits",
    "FixedSimplexClassifier",
    "GhostBatchNorm",
    "LoRADense",
    "MultiSampleDropout",
    "NestedDropout",
    "NoiseEmbedding",
    "NonScalingLayerNorm",
    "PowerNorm",
    "QKNormAttention",
    "Quantized",
    "StableEmbedding",
    "antithetic_masks",
    "best_width",
    "group_scaling",
    "keep_backward_stats",
    "lora_mask",
    "multi_sample_dropout",
    "multi_sample_loss",
    "nested_dropout",
    "nested_pmf",
    "power_norm",
    "power_norm_v",
    "restart_dead_codes",
    "simplex_vertices",
    "truncate",
    "update_psi2",
    "vector_quantize",
]
