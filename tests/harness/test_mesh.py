import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from experiments.harness import mesh as meshes


def test_the_devices_are_data_times_fsdp():
    assert dict(meshes.make_mesh(2).shape) == {"data": 4, "fsdp": 2}
    assert dict(meshes.make_mesh(1, jax.devices()[:3]).shape) == {"data": 3, "fsdp": 1}


@pytest.mark.parametrize("fsdp", [0, 3, 16])
def test_fsdp_has_to_divide_the_devices(fsdp):
    with pytest.raises(ValueError, match=f"fsdp must divide the number of devices, 8, got {fsdp}"):
        meshes.make_mesh(fsdp)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((256, 512), P(None, "fsdp")),
        ((512, 256), P("fsdp")),
        ((256, 256), P(None, "fsdp")),  # the last of equals
        ((12, 129, 64), P(None, None, "fsdp")),  # 129 is longer, but odd
        ((2**14,), P("fsdp")),
        ((2**14 - 2,), P()),  # too small
        ((3, 3, 3, 729), P()),  # nothing is even
        ((), P()),
    ],
)
def test_large_arrays_are_split_along_their_longest_axis_that_can_be(shape, spec):
    sharding = meshes.state_sharding(meshes.make_mesh(2), {"x": jax.ShapeDtypeStruct(shape, jnp.float32)})
    assert sharding["x"].spec == spec


def test_rows_lie_over_all_devices_in_their_order():
    mesh = meshes.make_mesh(2)
    rows = np.arange(16 * 3).reshape(16, 3)
    placed = meshes.global_rows(mesh, rows)
    np.testing.assert_array_equal(placed, rows)
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 3)}


def test_hosts_are_joined_by_all_three_or_by_none():
    with pytest.raises(ValueError, match="go together: got 'localhost:1', None, 0"):
        meshes.join_hosts("localhost:1", None, 0)
    with pytest.raises(ValueError, match=r"process must be in \[0, 2\), got 2"):
        meshes.join_hosts("localhost:1", 2, 2)


@pytest.mark.parametrize(
    ("variable", "alone", "together"),
    [
        ("TPU_WORKER_HOSTNAMES", "host-0", "host-0,host-1"),
        ("SLURM_STEP_NUM_TASKS", "1", "2"),
        ("OMPI_COMM_WORLD_SIZE", "1", "2"),
    ],
)
def test_a_cluster_is_joined_where_the_environment_tells_of_one(monkeypatch, variable, alone, together):
    joined = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args: joined.append(args))
    for value in (alone, together):
        monkeypatch.setenv(variable, value)
        meshes.join_hosts()
        assert len(joined) == (value == together)


def test_a_cluster_that_does_not_show_is_joined_where_this_is_asked_for(monkeypatch):
    joined = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args: joined.append(args))
    meshes.join_hosts()
    assert joined == []
    meshes.join_hosts("auto")
    assert joined == [()]
    with pytest.raises(ValueError, match="go together: got 'auto', 2, None"):
        meshes.join_hosts("auto", 2)


def test_where_there_is_no_cluster_to_join_it_is_said(monkeypatch):
    def initialize():
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(ValueError, match="JAX finds no cluster to join: coordinator_address should be defined"):
        meshes.join_hosts("auto")
