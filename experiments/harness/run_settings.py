"""Settings that all training scripts have, and what is made of them: the optimizer, and where a run lives."""

import dataclasses
from typing import Annotated, Any, Literal, TypeVar

import jax
import optax
import tyro

from experiments.harness import mesh as meshes
from experiments.harness.optimizers import make_optimizer, parse_options
from experiments.harness.placement import OnMesh, Placement, Replicated
from jaxreg.typing import ScalarLike

Several = tyro.conf.UseAppendAction
"""Marks an option that may be given several times."""

AnySettings = TypeVar("AnySettings")


@dataclasses.dataclass(frozen=True)
class OptimizationSettings:
    """The optimization.

    Attributes:
        optimizer: any of jaxreg or optax, by name.
        option: an argument of it, such as b2=0.95; may be given several times.
        learning_rate: its peak; the preset's by default.
        schedule: constant, cosine, linear, wsd, any of optax or jaxreg by name, or refined:FILE.
        schedule_option: an argument of it; may be given several times.
        warmup: as a part of the steps, or their number.
        steps: the preset's by default.
        clip_norm: largest norm of the gradient.
        state_bits: 8 keeps the optimizer's state in 8 bits.
        accumulate: parts in which a batch is worked through, to save memory.
    """

    optimizer: str = "adamw"
    option: Annotated[tuple[str, ...], Several] = ()
    learning_rate: float | None = None
    schedule: str = "cosine"
    schedule_option: Annotated[tuple[str, ...], Several] = ()
    warmup: float = 0.1
    steps: int | None = None
    clip_norm: float | None = None
    state_bits: Literal[32, 8] = 32
    accumulate: int = 1

    def complete(self, *, steps: int, learning_rate: float, batch: int) -> "OptimizationSettings":
        """The settings with a preset's steps and learning rate in place of those left open.

        Raises:
            ValueError: there are no steps, or a batch cannot be cut in such parts.
        """
        settings = filled(self, steps=steps, learning_rate=learning_rate)
        for name, value in (("batch", batch), ("steps", settings.steps), ("accumulate", self.accumulate)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if batch % self.accumulate:
            raise ValueError(f"accumulate must divide the batch, {batch}, got {self.accumulate}")
        return settings

    def build(self, *, multipliers: Any = None, **changed: ScalarLike) -> optax.GradientTransformationExtraArgs:
        """The optimizer, of complete settings.

        Args:
            multipliers: see :func:`~experiments.harness.optimizers.make_optimizer`.
            changed: hyperparameters in place of the settings', arrays too: the learning rate or any option.
        """
        options = parse_options(self.option) | changed
        learning_rate = options.pop("learning_rate", self.learning_rate)
        return make_optimizer(
            self.optimizer,
            learning_rate,
            steps=self.steps,
            options=options,
            schedule=self.schedule,
            schedule_options=parse_options(self.schedule_option),
            warmup=self.warmup,
            clip_norm=self.clip_norm,
            state_bits=self.state_bits,
            multipliers=multipliers,
        )


@dataclasses.dataclass(frozen=True)
class DeviceSettings:
    """The devices.

    Attributes:
        devices: how many, of one host; all there are, those of other processes included, by default.
        fsdp: over how many devices parameters and optimizer state are spread.
        parallel: mesh, or pmap for its classic form.
        coordinator: address of process 0 where several processes are started by hand; auto on a TPU pod.
        processes: how many those are.
        process: number of this one, from 0.
    """

    devices: int | None = None
    fsdp: int = 1
    parallel: Literal["mesh", "pmap"] = "mesh"
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None

    def place(self) -> Placement:
        """Where the run lives.

        Raises:
            ValueError: there are not as many devices, ``fsdp`` does not divide them or is for the mesh, or there are
                other processes, which have not been joined or would be left out.
        """
        devices, processes = jax.devices(), jax.process_count()
        if processes > 1 and not jax.distributed.is_initialized():
            raise ValueError(f"there are {processes} processes: let --coordinator auto join them")
        if self.devices is not None and not 1 <= self.devices <= len(devices):
            raise ValueError(f"devices must be in [1, {len(devices)}], got {self.devices}")
        if self.devices not in (None, len(devices)) and processes > 1:
            raise ValueError(f"devices must be all {len(devices)} of the {processes} processes, got {self.devices}")
        if self.parallel == "pmap":
            if self.fsdp != 1:
                raise ValueError(f"fsdp is for parallel mesh, got {self.fsdp} for pmap")
            return Replicated(devices[: self.devices])
        return OnMesh(meshes.make_mesh(self.fsdp, devices[: self.devices]))


def filled(settings: AnySettings, **values: Any) -> AnySettings:
    """A group of settings with values in place of those left open, which are None."""
    given = {name: value for name, value in values.items() if getattr(settings, name) is None}
    return dataclasses.replace(settings, **given)


def from_json(kind: type[AnySettings], content: dict[str, dict[str, Any]]) -> AnySettings:
    """Groups of settings that ``dataclasses.asdict`` took apart, back from JSON.

    Args:
        kind: dataclass of the groups, each of them a dataclass with a default.
        content: their values, by group and name.

    Raises:
        KeyError: a group is missing.
        TypeError: a group has a setting of another name.
    """
    groups = {field.name: field.default for field in dataclasses.fields(kind)}
    values = {
        name: {key: tuple(value) if isinstance(value, list) else value for key, value in content[name].items()}
        for name in groups
    }
    return kind(**{name: dataclasses.replace(group, **values[name]) for name, group in groups.items()})
