"""Training on many clients or devices that cannot send each other everything."""

from jaxreg.distributed.co2 import Co2State, co2_init, co2_round, local_steps, round_time
from jaxreg.distributed.ef21_theory import ef21_stepsize, ef21_weights, rare_features_constant
from jaxreg.distributed.error_feedback import (
    ErrorFeedbackState,
    econtrol,
    ef14,
    ef21,
    ef21_pp,
    ef21_sgd,
    ef21_w,
    stacked,
)
from jaxreg.distributed.shared_seed_spsa import (
    SharedSeedState,
    adapt_scale,
    apply_projected,
    decode_byte,
    encode_byte,
    machine_key,
    perturbation,
    projected_gradient,
    shared_seed_init,
    shared_seed_round,
)
from jaxreg.distributed.wire import bytes_sent

__all__ = [
    "Co2State",
    "ErrorFeedbackState",
    "SharedSeedState",
    "adapt_scale",
    "apply_projected",
    "bytes_sent",
    "co2_init",
    "co2_round",
    "decode_byte",
    "econtrol",
    "ef14",
    "ef21",
    "ef21_pp",
    "ef21_sgd",
    "ef21_stepsize",
    "ef21_w",
    "ef21_weights",
    "encode_byte",
    "local_steps",
    "machine_key",
    "perturbation",
    "projected_gradient",
    "rare_features_constant",
    "round_time",
    "shared_seed_init",
    "shared_seed_round",
    "stacked",
]
