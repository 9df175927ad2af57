"""Bytes counted by hand, for every way to run clients on devices."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxreg.distributed import bytes_sent

TREE = {"a": jnp.zeros([3, 2]), "b": jnp.zeros([5], jnp.int8), "c": jnp.zeros([4], jnp.bfloat16)}
TREE_BYTES = 3 * 2 * 4 + 5 + 4 * 2


def gather(x):
    return jax.lax.all_gather(x, "clients")


@pytest.mark.parametrize("collective", [jax.lax.all_gather, jax.lax.pmax, jax.lax.psum, jax.lax.pmean])
def test_a_tree_counts_with_all_its_leaves(collective):
    def function(tree):
        return jax.tree.map(lambda leaf: collective(leaf, "clients"), tree)

    assert bytes_sent(function, TREE, axes={"clients": 8}) == TREE_BYTES
    assert bytes_sent(jax.jit(function), TREE, axes={"clients": 2}) == TREE_BYTES


@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map_counts_the_part_of_one_device(check_vma):
    mesh = jax.make_mesh((8,), ("clients",), axis_types=(AxisType.Auto,))
    axes = dict(mesh=mesh, in_specs=P("clients"), out_specs=P(), check_vma=check_vma)
    sharded = jax.shard_map(lambda x: jax.lax.psum(x, "clients"), **axes)
    assert bytes_sent(jax.jit(sharded), jnp.zeros([16, 5])) == 2 * 5 * 4


def test_pmap_counts_the_part_of_one_device():
    assert bytes_sent(jax.pmap(gather, axis_name="clients"), jnp.zeros([8, 5])) == 5 * 4


def test_vmap_moves_nothing():
    assert bytes_sent(jax.vmap(gather, axis_name="clients"), jnp.zeros([8, 5])) == 0


def test_a_scan_counts_every_iteration():
    def rounds(x):
        return jax.lax.scan(lambda x, _: (jax.lax.pmean(x, "clients"), None), x, length=7)[0]

    assert bytes_sent(rounds, jnp.zeros(5), axes={"clients": 8}) == 7 * 5 * 4


def test_a_cond_counts_its_largest_branch():
    def maybe(x):
        return jax.lax.cond(x[0] > 0, lambda: gather(x), lambda: gather(x[:1]) * jnp.ones(5))

    assert bytes_sent(maybe, jnp.zeros(5), axes={"clients": 8}) == 5 * 4


def test_a_loop_of_unknown_length_is_refused_if_it_communicates():
    def loop(step):
        return lambda x: jax.lax.while_loop(lambda x: x[0] < 3, step, x)

    assert bytes_sent(loop(lambda x: x + 1), jnp.zeros(5)) == 0
    with pytest.raises(ValueError, match="a while loop communicates"):
        bytes_sent(loop(lambda x: jax.lax.pmax(x, "clients")), jnp.zeros(5), axes={"clients": 8})


def test_the_gradient_of_a_communicating_loss_counts_too():
    """The transpose of a gather sums the clients' cotangents of all that was gathered, and hands out the parts."""
    gradient = jax.grad(lambda x: jnp.sum(gather(x) ** 2))
    assert bytes_sent(gradient, jnp.zeros(5), axes={"clients": 8}) == 5 * 4 + 8 * 5 * 4
