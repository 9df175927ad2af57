"""Some leaves of a checkpoint at a time, each checked when it is read."""

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from experiments.harness.checkpoints import CheckpointError, Checkpoints, first_difference, first_line, leaf_shapes

Select = Callable[[str], bool]


class LeafReader:
    """Reads selected leaves of the checkpoints of a run, and changes nothing.

    Args:
        checkpoints: of the run.
        like: what each of them holds, as a tree of ``jax.ShapeDtypeStruct`` with the shardings that leaves are to have.
        select: which leaves may be read, by name, such as ``params/embedding``.
        on_read: called with the step after every reading.

    Attributes:
        leaves: those of ``like``; a leaf's number is its place among them.
        names: theirs.
    """

    def __init__(self, checkpoints: Checkpoints, like: Any, select: Select, on_read: Callable[[int], None]):
        self.directory = checkpoints.directory
        self._there = checkpoints.steps()
        self.leaves, self._structure = jax.tree.flatten(like)
        self._select, self._on_read = select, on_read
        self.names = list(leaf_shapes(like))
        self._stored: dict[int, tuple[Any, tuple[str, ...]]] = {}
        kinds = {kind: ocp.type_handlers.get_type_handler(kind) for kind in ocp.type_handlers.supported_types()}
        kinds[jax.Array] = _ToTheEnd()
        registry = ocp.type_handlers.create_type_handler_registry(*kinds.items())
        self._handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
        self._orbax = ocp.Checkpointer(self._handler)

    def __enter__(self) -> "LeafReader":
        return self

    def __exit__(self, *exception: Any) -> None:
        self._orbax.close()

    def groups(self, group_bytes: int) -> Iterator[list[int]]:
        """Numbers of the selected leaves, so many at a time as are not larger."""
        group, size = [], 0
        for number, name in enumerate(self.names):
            if not self._select(name):
                continue
            leaf = self.leaves[number]
            leaf_bytes = math.prod(leaf.shape) * leaf.dtype.itemsize
            if group and size + leaf_bytes > group_bytes:
                yield group
                group, size = [], 0
            group.append(number)
            size += leaf_bytes
        if group:
            yield group

    def check(self, step: int) -> None:
        """Raises unless a step is there, and of this model."""
        if step not in self._there:
            raise CheckpointError(f"{self.directory} has no step {step}; there are {self._there or 'none'}")
        try:
            # The handler's: the checkpointer's own warns of every step that it has no metadata of another kind.
            tree = self._handler.metadata(self._item(step)).tree
        except Exception as error:  # Orbax and TensorStore raise whatever they like
            raise CheckpointError(f"step {step} in {self.directory} cannot be read: {first_line(error)}") from error
        stored = leaf_shapes(tree)
        # Of what Orbax knows, which is a lot, only this is needed when leaves are read.
        self._stored[step] = jax.tree.structure(tree, is_leaf=lambda node: hasattr(node, "shape")), tuple(stored)
        wanted = dict(zip(self.names, (leaf.shape for leaf in self.leaves), strict=True))
        stored, wanted = ({name: of[name] for name in of if self._select(name)} for of in (stored, wanted))
        if difference := first_difference(stored, wanted):
            raise CheckpointError(f"step {step} in {self.directory} is of another model: {difference}")

    def read(self, step: int, numbers: Sequence[int]) -> list[jax.Array]:
        """Leaves of a step that was checked, as they are to lie; raises unless they are finite."""
        if not numbers:
            return []
        try:
            leaves = self._restore(step, numbers)
        except Exception:
            leaves = [self._restore_one(step, number) for number in numbers]  # to find the one that it is
        for number, finite in zip(numbers, jax.device_get([*map(_all_finite, leaves)]), strict=True):
            if not finite:
                raise CheckpointError(
                    f"step {step} in {self.directory} has weights that are not finite at {self.names[number]}"
                )
        self._on_read(step)
        return leaves

    def finish(self, total: jax.Array, number: int, population: tuple[int, ...]) -> jax.Array:
        """A combined leaf as it is to lie."""
        leaf = self.leaves[number]
        total = jnp.broadcast_to(total, (*population, *leaf.shape)).astype(leaf.dtype)
        return jax.device_put(total, self.sharding(number, len(population)))

    def sharding(self, number: int, leading: int) -> Sharding:
        """How a leaf is to lie; see :func:`stacked_sharding`."""
        return stacked_sharding(self.leaves[number], leading)

    def tree(self, leaves: dict[int, jax.Array]) -> Any:
        """The leaves in their places, None elsewhere."""
        return self._structure.unflatten([leaves.get(number) for number in range(len(self.leaves))])

    def _restore_one(self, step, number):
        try:
            return self._restore(step, [number])[0]
        except Exception as error:
            raise CheckpointError(
                f"step {step} in {self.directory} cannot be read at {self.names[number]}: {first_line(error)}"
            ) from error

    def _restore(self, step, numbers):
        wanted = {self.names[number]: number for number in numbers}

        # The stored tree rather than that of ``like``, of which leaves that are not selected may be different.
        def place(name):
            if name not in wanted:
                return ocp.PLACEHOLDER
            leaf = self.leaves[wanted[name]]
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self.sharding(wanted[name], 0))

        structure, names = self._stored[step]
        item = structure.unflatten(map(place, names))
        how = ocp.args.PyTreeRestore(item, restore_args=ocp.checkpoint_utils.construct_restore_args(item))
        restored = dict(
            zip(names, structure.flatten_up_to(self._orbax.restore(self._item(step), args=how)), strict=True)
        )
        return [restored[name] for name in wanted]

    def _item(self, step):
        return self.directory / str(step) / "state"


def stacked_sharding(leaf: jax.ShapeDtypeStruct, leading: int) -> Sharding:
    """How several of a leaf are to lie as one: as one does, with so many axes before its own, which are not split."""
    sharding = getattr(leaf, "sharding", None) or SingleDeviceSharding(jax.local_devices()[0])
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec(*[None] * leading, *sharding.spec))
    return sharding


class _ToTheEnd(ocp.type_handlers.ArrayHandler):
    """Reads all leaves before it raises: Orbax leaves the others behind, which then find its event loop closed."""

    async def metadata(self, infos):
        read = super().metadata
        return await _all_of(read([info]) for info in infos)

    async def deserialize(self, infos, args=None):
        read = super().deserialize
        return await _all_of(read([info], [arg]) for info, arg in zip(infos, args, strict=True))


async def _all_of(reads):
    found = await asyncio.gather(*reads, return_exceptions=True)
    for one in found:
        if isinstance(one, BaseException):
            raise one
    return [leaf for (leaf,) in found]


@jax.jit
def _all_finite(leaf):
    return jnp.all(jnp.isfinite(leaf))
