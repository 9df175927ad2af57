"""The settings of a consistency or diffusion model's training, and what they are by default."""

import dataclasses
from typing import Literal, NamedTuple

import tyro

from experiments.harness.examples import DENSITIES
from experiments.harness.run_settings import OptimizationSettings, filled
from jaxreg.validation import check_range


class Size(NamedTuple):
    """Of a network: its width, its layers or blocks at each side, and multiples of the width at the sides."""

    width: int
    layers: int
    multipliers: tuple[int, ...] = ()


class Recipe(NamedTuple):
    """What examples of some kind are usually trained with."""

    network: str
    sizes: dict[str, Size]
    batch: int
    steps: int
    learning_rate: float
    sigma_data: float
    s1: int
    decay: float


RECIPES = {
    "digits": Recipe("mlp", {"mlp": Size(512, 4), "unet": Size(32, 1, (1, 2))}, 256, 6000, 1e-3, 0.75, 160, 0.995),
    "points": Recipe("mlp", {"mlp": Size(64, 3)}, 256, 3000, 3e-3, 0.5, 160, 0.99),
    # Those of iCT on CIFAR-10, the network's of EDM.
    "images": Recipe(
        "unet", {"mlp": Size(1024, 4), "unet": Size(128, 3, (1, 2, 2, 2))}, 1024, 400_000, 1e-4, 0.5, 1280, 0.99993
    ),
}
TRAJECTORY_INTERVALS = 17


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """The data.

    Attributes:
        data: digits, ring, moons, file:PATH (a folder of images, an .npy or .npz file) or hf:NAME.
        size: side to which the images of a folder or a data set are scaled.
        flip: whether images are mirrored at random.
        batch: examples of a batch, over all devices; the recipe's for this kind of data by default, as below.
        seed: of their order, the initial parameters and the noise.
    """

    data: str = "digits"
    size: int | None = None
    flip: bool = False
    batch: int | None = None
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class NetworkSettings:
    """The network.

    Attributes:
        network: mlp or unet.
        width: of the MLP's layers, or channels of the U-Net at the full side.
        layers: of the MLP, or blocks of the U-Net at each side.
        multipliers: of the channels at each side of the U-Net, which halves from one to the next.
        attention: sides at which the U-Net has attention.
        dropout: within the U-Net.
        dtype: of the U-Net's computation.
    """

    network: Literal["mlp", "unet"] | None = None
    width: int | None = None
    layers: int | None = None
    multipliers: tuple[int, ...] | None = None
    attention: tuple[int, ...] = (16,)
    dropout: float = 0.0
    dtype: Literal["float32", "bfloat16"] = "float32"


@dataclasses.dataclass(frozen=True)
class ObjectiveSettings:
    """What is trained for.

    Attributes:
        objective: ict or slct, consistency models; ctm, a trajectory model; diffusion, a diffusion model.
        sigma_data: standard deviation of the data.
        s0: intervals of the grid of noise levels at first.
        s1: intervals at last; those of ctm are as many from the start.
        solver_steps: most steps of ctm's solver.
        coupling: how many examples at a time slct couples with noise; 0 for none.
        decay: of the average of the parameters, which is what is sampled from.
    """

    objective: Literal["ict", "slct", "ctm", "diffusion"] = "ict"
    sigma_data: float | None = None
    s0: int = 10
    s1: int | None = None
    solver_steps: int = 17
    coupling: int = 16
    decay: float | None = None


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that decides what is computed; a run is resumed with the same, but for the devices."""

    data: tyro.conf.OmitArgPrefixes[DataSettings] = DataSettings()
    network: tyro.conf.OmitArgPrefixes[NetworkSettings] = NetworkSettings()
    objective: tyro.conf.OmitArgPrefixes[ObjectiveSettings] = ObjectiveSettings()
    optimization: tyro.conf.OmitArgPrefixes[OptimizationSettings] = OptimizationSettings(
        optimizer="radam", schedule="constant", warmup=0.0
    )

    def complete(self) -> "Settings":
        """The settings with the recipe's in place of those left open.

        Raises:
            ValueError: one of them is outside its range.
        """
        kind = "digits" if self.data.data == "digits" else "points" if self.data.data in DENSITIES else "images"
        recipe = RECIPES[kind]
        chosen = self.network.network or recipe.network
        if chosen not in recipe.sizes:
            raise ValueError(f"network must be {' or '.join(recipe.sizes)} for {self.data.data}, got {chosen}")
        s1 = TRAJECTORY_INTERVALS if self.objective.objective == "ctm" else recipe.s1
        # The Cauchy loss is steep: where rates were tuned, in the claim `slct`, its best is a tenth of the others'.
        learning_rate = recipe.learning_rate * (0.1 if self.objective.objective == "slct" else 1.0)
        data = filled(self.data, batch=recipe.batch)
        settings = Settings(
            data,
            filled(self.network, network=chosen, **recipe.sizes[chosen]._asdict()),
            filled(self.objective, sigma_data=recipe.sigma_data, s1=max(s1, self.objective.s0), decay=recipe.decay),
            self.optimization.complete(steps=recipe.steps, learning_rate=learning_rate, batch=data.batch),
        )
        settings.check()
        return settings

    def check(self) -> None:
        """Raises a ValueError unless all of the complete settings are within their ranges."""
        network, objective = self.network, self.objective
        for name, value, interval in (
            ("width", network.width, "[1, inf)"),
            ("layers", network.layers, "[1, inf)"),
            ("dropout", network.dropout, "[0, 1)"),
            ("sigma_data", objective.sigma_data, "(0, inf)"),
            ("s0", objective.s0, "[1, inf)"),
            ("s1", objective.s1, f"[{objective.s0 if objective.objective in ('ict', 'slct') else 1}, inf)"),
            ("solver_steps", objective.solver_steps, "[1, inf)"),
            ("coupling", objective.coupling, "[0, inf)"),
            ("decay", objective.decay, "[0, 1]"),
        ):
            check_range(name, value, interval)
        if network.network == "mlp":
            for name in ("dropout", "dtype"):
                if getattr(network, name) != getattr(NetworkSettings(), name):
                    raise ValueError(f"{name} is for the unet, got {getattr(network, name)} for the mlp")
        elif not network.multipliers or min(network.multipliers) < 1:
            raise ValueError(f"multipliers must be at least 1, one for each side, got {network.multipliers}")
