"""Operations on parameters and checkpoints: average, merge, edit, search, initialize."""

from jaxreg.weights.average import (
    CheckpointBuffer,
    checkpoint_buffer_init,
    checkpoint_buffer_stack,
    checkpoint_buffer_update,
    ema_coefficients,
    linear_combination,
)
from jaxreg.weights.compander import Compander, apply_compander, compand, compand_inverse, init_compander
from jaxreg.weights.edit import (
    dare,
    decouple_inject,
    extrapolate,
    patch,
    quantize_signature,
    replace_by_mean,
    robust_signature,
    shallow_layers,
    unpatch,
)
from jaxreg.weights.ggd import deepshape, ggd_init
from jaxreg.weights.merge import flatten_stack, pcb_merge, pcb_parts, pcb_scores, task_vector
from jaxreg.weights.periodic import ModularMlp, analytic_modular_mlp, modular_mlp, modular_mlp_init, prune_neurons
from jaxreg.weights.search import (
    LCSCResult,
    LCSCState,
    lcsc_ask,
    lcsc_init,
    lcsc_population,
    lcsc_search,
    lcsc_tell,
)

__all__ = [
    "CheckpointBuffer",
    "Compander",
    "LCSCResult",
    "LCSCState",
    "ModularMlp",
    "analytic_modular_mlp",
    "apply_compander",
    "checkpoint_buffer_init",
    "checkpoint_buffer_stack",
    "checkpoint_buffer_update",
    "compand",
    "compand_inverse",
    "dare",
    "decouple_inject",
    "deepshape",
    "ema_coefficients",
    "extrapolate",
    "flatten_stack",
    "ggd_init",
    "init_compander",
    "lcsc_ask",
    "lcsc_init",
    "lcsc_population",
    "lcsc_search",
    "lcsc_tell",
    "linear_combination",
    "modular_mlp",
    "modular_mlp_init",
    "patch",
    "pcb_merge",
    "pcb_parts",
    "pcb_scores",
    "prune_neurons",
    "quantize_signature",
    "replace_by_mean",
    "robust_signature",
    "shallow_layers",
    "task_vector",
    "unpatch",
]
