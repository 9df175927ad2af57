"""Optimizers and wrappers around optimizers, as optax gradient transformations."""

from jaxreg.optim.adam8bit import adam8bit, momentum8bit, scale_by_adam8bit
from jaxreg.optim.adamp import RadialProjectionState, adamp, project_radial, radial_projection, sgdp
from jaxreg.optim.allora import allora, scale_by_inverse_row_norm
from jaxreg.optim.blockwise8bit import dequantize_blockwise, dynamic_map, linear_map, quantize_blockwise
from jaxreg.optim.compression import Compressor, contraction, rand_k, stochastic_rounding, topk
from jaxreg.optim.descend import descend
from jaxreg.optim.frugal import GradientSplittingState, frugal, gradient_splitting
from jaxreg.optim.grad_align import align_to_primary
from jaxreg.optim.hesso import Group, HessoCricState, HessoState, hesso, hesso_cric, saliency
from jaxreg.optim.independent_decay import independent_weight_decay
from jaxreg.optim.momentum_reset import MomentumResetState, momentum_reset, warmup_after_reset
from jaxreg.optim.mu_param import mu_scale
from jaxreg.optim.multiplicative_noise import multiplicative_noise_gradient
from jaxreg.optim.optimistic_md import (
    DynamicEnsembleState,
    OnlineLearner,
    OptimisticMdState,
    dynamic_ensemble,
    optimistic_md,
)
from jaxreg.optim.perp_grad import perp_grad
from jaxreg.optim.projections import galore_projector
from jaxreg.optim.quantize_state import QuantizedState, quantize_state
from jaxreg.optim.spam import ScaleBySpamState, scale_by_spam, spam, spike_clip, spike_score
from jaxreg.optim.stable_spam import (
    GradNormState,
    ScaleByStableSpamState,
    SpikeClipState,
    adaptive_grad_norm,
    adaptive_spike_clip,
    scale_by_stable_spam,
    stable_spam,
)

__all__ = [
    "Compressor",
    "DynamicEnsembleState",
    "GradNormState",
    "GradientSplittingState",
    "Group",
    "HessoCricState",
    "HessoState",
    "MomentumResetState",
    "OnlineLearner",
    "OptimisticMdState",
    "QuantizedState",
    "RadialProjectionState",
    "ScaleBySpamState",
    "ScaleByStableSpamState",
    "SpikeClipState",
    "adam8bit",
    "adamp",
    "adaptive_grad_norm",
    "adaptive_spike_clip",
    "align_to_primary",
    "allora",
    "contraction",
    "dequantize_blockwise",
    "descend",
    "dynamic_ensemble",
    "dynamic_map",
    "frugal",
    "galore_projector",
    "gradient_splitting",
    "hesso",
    "hesso_cric",
    "independent_weight_decay",
    "linear_map",
    "momentum8bit",
    "momentum_reset",
    "mu_scale",
    "multiplicative_noise_gradient",
    "optimistic_md",
    "perp_grad",
    "project_radial",
    "quantize_blockwise",
    "quantize_state",
    "radial_projection",
    "rand_k",
    "saliency",
    "scale_by_adam8bit",
    "scale_by_inverse_row_norm",
    "scale_by_spam",
    "scale_by_stable_spam",
    "sgdp",
    "spam",
    "spike_clip",
    "spike_score",
    "stable_spam",
    "stochastic_rounding",
    "topk",
    "warmup_after_reset",
]
