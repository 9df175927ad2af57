"""Where a training run lives: on a mesh, or replicated by ``jax.pmap``. The training loop does not care which."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.harness import mesh as meshes
from experiments.harness.packed import Packed

AXIS = "data"
"""Axis over which :class:`Replicated` devices differ."""


def bytes_needed(step: jax.stages.Compiled) -> int:
    """Memory of each device that a compiled step takes at its peak, if it overwrites the state that it is given."""
    memory = step.memory_analysis()
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes


class Placement(Protocol):
    """What the training loop needs to know of the devices.

    Attributes:
        axis_name: what a step has to average gradients over; None if it sees all rows.
        devices: of all processes.
    """

    axis_name: str | None
    devices: Sequence[jax.Device]

    def create(self, make: Callable[[], Any]) -> Any:
        """The state that a function makes, on the devices."""

    def put(self, state: Any) -> Any:
        """A state as :meth:`to_save` gives it, back on the devices."""

    def compile(self, step: Callable) -> Callable:
        """``(state, rows) -> (state, report)``, which may overwrite the state it is given; :meth:`fetch` the report."""

    def compile_mean(self, loss: Callable) -> Callable:
        """``(params, rows) -> mean over all rows``, given that of some."""

    def compile_on_copy(self, function: Callable) -> Callable:
        """``copy -> result``, which every process gets, of a state or a part as :meth:`to_save` gives it."""

    def rows(self, rows: np.ndarray) -> Any:
        """This process's rows of a batch, as what is compiled takes them."""

    def fetch(self, report: Packed) -> Any:
        """What a compiled step reports, as NumPy arrays."""

    def to_save(self, state: Any) -> Any:
        """The state as one copy."""

    def shapes(self, state: Any) -> Any:
        """How the arrays of such a copy are to lie, given their shapes."""


class OnMesh:
    """Rows over all devices of a mesh, large arrays of the state over its axis ``fsdp``."""

    axis_name = None

    def __init__(self, mesh: Mesh):
        self.mesh = mesh
        self.devices = mesh.devices.ravel()
        self._everywhere = NamedSharding(mesh, PartitionSpec())
        self._rows = meshes.rows_sharding(mesh)

    def create(self, make: Callable[[], Any]) -> Any:
        shardings = meshes.state_sharding(self.mesh, jax.eval_shape(make))
        return jax.jit(make, out_shardings=shardings)()

    def put(self, state: Any) -> Any:
        return jax.device_put(state, meshes.state_sharding(self.mesh, state))

    def compile(self, step: Callable) -> Callable:
        def placed(state, rows):
            state, report = step(state, rows)
            constrain = jax.lax.with_sharding_constraint
            state = constrain(state, meshes.state_sharding(self.mesh, state))
            return state, constrain(Packed.of(report), self._everywhere)

        return jax.jit(placed, donate_argnums=0, in_shardings=(None, self._rows))

    def compile_mean(self, loss: Callable) -> Callable:
        return jax.jit(loss, in_shardings=(None, self._rows), out_shardings=self._everywhere)

    def compile_on_copy(self, function: Callable) -> Callable:
        return jax.jit(function, out_shardings=self._everywhere)

    def rows(self, rows: np.ndarray) -> Any:
        # One process leaves it to the call to put them on its devices, which takes less time than to do so before.
        return rows if jax.process_count() == 1 else meshes.global_rows(self.mesh, rows)

    def fetch(self, report: Packed) -> Any:
        return report.unpack()

    def to_save(self, state: Any) -> Any:
        return state

    def shapes(self, state: Any) -> Any:
        shardings = meshes.state_sharding(self.mesh, state)
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)


class Replicated:
    """The classic form: every device has the whole state, ``jax.pmap`` runs the step on all of them.

    Args:
        devices: all of this process by default.

    Raises:
        ValueError: there is more than one process.
    """

    axis_name = AXIS

    def __init__(self, devices: Sequence[jax.Device] | None = None):
        if jax.process_count() > 1:
            raise ValueError(f"pmap is for one process, there are {jax.process_count()}; use the mesh")
        self.devices = jax.local_devices() if devices is None else devices
        self._first = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf[0], state))

    def create(self, make: Callable[[], Any]) -> Any:
        return self.put(jax.jit(make)())

    def put(self, state: Any) -> Any:
        def replicate(leaf):
            return np.broadcast_to(np.asarray(leaf), (len(self.devices), *np.shape(leaf)))

        return jax.pmap(lambda leaf: leaf, devices=self.devices)(jax.tree.map(replicate, state))

    def compile(self, step: Callable) -> Callable:
        def packed(state, rows):
            state, report = step(state, rows)
            return state, Packed.of(report)

        return jax.pmap(packed, axis_name=AXIS, devices=self.devices, donate_argnums=0)

    def compile_mean(self, loss: Callable) -> Callable:
        mean = jax.pmap(
            lambda params, rows: jax.lax.pmean(loss(params, rows), AXIS), axis_name=AXIS, devices=self.devices
        )
        return lambda params, rows: mean(params, rows)[0]

    def compile_on_copy(self, function: Callable) -> Callable:
        return jax.jit(function)

    def rows(self, rows: np.ndarray) -> Any:
        if len(rows) % len(self.devices):
            raise ValueError(f"batch must be a multiple of the number of devices, {len(self.devices)}, got {len(rows)}")
        return rows.reshape(len(self.devices), -1, *rows.shape[1:])

    def fetch(self, report: Packed) -> Any:
        return jax.tree.map(lambda leaf: leaf[0], jax.device_get(report)).unpack()

    def to_save(self, state: Any) -> Any:
        return self._first(state)

    def shapes(self, state: Any) -> Any:
        one = jax.sharding.SingleDeviceSharding(self.devices[0])
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one), state)
