"""Devices of one or many hosts as one mesh: rows of a batch over all of it, parameters over a part of it if wanted."""

import json
import math
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxreg.typing import Array

MIN_SHARDED = 2**14
"""Entries from which on it pays to shard an array."""


def join_hosts(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Makes one computation of the processes of a run; without arguments only where a cluster shows in the environment.

    To be called before anything else touches the devices. On CPUs the processes talk through gloo. A TPU slice of
    Google's Compute Engine shows in no environment: JAX asks a server for it, which is done for ``"auto"`` only.

    Args:
        coordinator: address of process 0, ``host:port``; or ``"auto"``, for JAX to find all three out.
        processes: how many there are.
        process: number of this one, from 0.

    Raises:
        ValueError: some of the arguments are given and some are not, ``process`` is not below ``processes``, or there
            is no cluster that JAX knows.
    """
    given = (coordinator, processes, process)
    if given == ("auto", None, None) or (all(value is None for value in given) and _on_a_cluster()):
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        try:
            jax.distributed.initialize()
        except ValueError as error:
            raise ValueError(f"JAX finds no cluster to join: {error}") from error
        return
    if all(value is None for value in given):
        return
    if any(value is None for value in given):
        raise ValueError(
            f"coordinator, processes and process go together: got {coordinator!r}, {processes!r}, {process!r}"
        )
    if not 0 <= process < processes:
        raise ValueError(f"process must be in [0, {processes}), got {process}")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, processes, process)


def _on_a_cluster():
    """Whether this is one of several processes on a TPU slice, of Slurm or of MPI, the rest of which JAX finds out."""
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").count(",") + 1
    tasks = [int(os.environ.get(name, 1)) for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")]
    return max(hosts, *tasks) > 1 or "JAX_COORDINATOR_ADDRESS" in os.environ


def make_mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of the axes ``data`` and ``fsdp``.

    Args:
        fsdp: over how many devices the parameters are spread; has to divide their number.
        devices: all of them, those of other hosts included, by default.

    Returns:
        The mesh; neighbours of the list are neighbours along ``fsdp``.

    Raises:
        ValueError: ``fsdp`` does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if fsdp < 1 or len(devices) % fsdp:
        raise ValueError(f"fsdp must divide the number of devices, {len(devices)}, got {fsdp}")
    return Mesh(np.array(devices).reshape(-1, fsdp), ("data", "fsdp"))


def state_sharding(mesh: Mesh, state: Any) -> Any:
    """How parameters and optimizer state lie on a mesh, by their shapes alone: like shapes lie alike.

    An array of ``MIN_SHARDED`` entries or more is split along its longest axis that ``fsdp`` divides, the last of them
    if several are as long; everything else is on every device.

    Args:
        mesh: from :func:`make_mesh`.
        state: pytree of arrays, or of their shapes.

    Returns:
        The same tree of shardings.
    """
    parts = mesh.shape["fsdp"]

    def place(leaf):
        shape = np.shape(leaf)
        axes = [axis for axis, length in enumerate(shape) if length % parts == 0 and length >= parts]
        if parts == 1 or not axes or math.prod(shape) < MIN_SHARDED:
            return NamedSharding(mesh, PartitionSpec())
        longest = max(axes, key=lambda axis: (shape[axis], axis))
        return NamedSharding(mesh, PartitionSpec(*([None] * longest), "fsdp"))

    return jax.tree.map(place, state)


def rows_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def global_rows(mesh: Mesh, rows: np.ndarray) -> Array:
    """One array over the mesh from the rows that each process has, in the processes' order."""
    return jax.make_array_from_process_local_data(rows_sharding(mesh), rows)


def gather_json(value: Any) -> list[Any]:
    """What each process has, in their order; all of them have to call it.

    Args:
        value: of this process, anything that JSON can hold.
    """
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    if jax.process_count() == 1:
        return [json.loads(text.tobytes())]
    lengths = multihost_utils.process_allgather(np.array(len(text)))
    texts = multihost_utils.process_allgather(np.pad(text, (0, int(lengths.max()) - len(text))))
    return [json.loads(row[:length].tobytes()) for row, length in zip(texts, lengths, strict=True)]
