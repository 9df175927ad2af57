"""Losses, regularizers, optimizers and training methods from papers, as pure functions for JAX.

Subpackages load on first use, so that ``import jaxreg`` costs nothing:

>>> import jaxreg
>>> optimizer = jaxreg.optim.spam(1e-3)
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxreg import compression as compression
    from jaxreg import continual as continual
    from jaxreg import data as data
    from jaxreg import diffusion as diffusion
    from jaxreg import distributed as distributed
    from jaxreg import layers as layers
    from jaxreg import losses as losses
    from jaxreg import metrics as metrics
    from jaxreg import optim as optim
    from jaxreg import penalties as penalties
    from jaxreg import rl as rl
    from jaxreg import robustness as robustness
    from jaxreg import schedules as schedules
    from jaxreg import structured as structured
    from jaxreg import uncertainty as uncertainty
    from jaxreg import unlearning as unlearning
    from jaxreg import weights as weights

_SUBPACKAGES = (
    "compression",
    "continual",
    "data",
    "diffusion",
    "distributed",
    "layers",
    "losses",
    "metrics",
    "optim",
    "penalties",
    "rl",
    "robustness",
    "schedules",
    "structured",
    "uncertainty",
    "unlearning",
    "weights",
)

__all__ = ["__version__", *_SUBPACKAGES]


def __getattr__(name: str):
    if name in _SUBPACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name == "__version__":
        from importlib.metadata import version

        return version(__name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *__all__})
