"""Injected spikes: where, when and how large, counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from experiments.harness.faults import inject_spikes, is_struck

KEY = jax.random.key(0)
GRADIENTS = {
    "params": {
        "blocks": {"mlp": {"kernel": jnp.linspace(1.0, 2.0, 800).reshape(2, 20, 20)}, "norm": jnp.full([20], 3.0)},
        "head": jnp.full([40, 10], -1.5, jnp.bfloat16),
    }
}


def factors(gradients):
    """By what each leaf was multiplied, entry by entry."""
    return jax.tree.map(lambda g, old: np.asarray(g / old, np.float32), gradients, GRADIENTS)["params"]


def test_all_entries_of_the_leaves_whose_path_has_the_pattern_are_multiplied():
    struck = factors(inject_spikes(KEY, 3, GRADIENTS, probability=1.0, scale=1000.0, leaves="blocks/.*kernel$"))
    np.testing.assert_allclose(struck["blocks"]["mlp"]["kernel"], np.full([2, 20, 20], 1000.0), rtol=1e-6)
    np.testing.assert_array_equal(struck["blocks"]["norm"], np.ones(20))
    np.testing.assert_array_equal(struck["head"], np.ones([40, 10]))
    everywhere = inject_spikes(KEY, 3, GRADIENTS, probability=1.0, scale=4.0)
    assert {float(f) for leaf in jax.tree.leaves(factors(everywhere)) for f in np.unique(leaf)} == {4.0}
    assert jax.tree.map(lambda g: g.dtype, everywhere) == jax.tree.map(lambda g: g.dtype, GRADIENTS)


def test_steps_are_struck_as_often_as_said_and_others_keep_every_bit():
    steps = jnp.arange(2000)
    norm = GRADIENTS["params"]["blocks"]["norm"]
    after = jax.jit(jax.vmap(lambda n: inject_spikes(KEY, n, norm, probability=0.1, scale=7.0)))(steps)
    struck = np.asarray(after[:, 0]) == 21.0
    np.testing.assert_array_equal(after, np.where(struck[:, None], 21.0, 3.0) * np.ones(20))
    assert abs(struck.mean() - 0.1) < 4 * np.sqrt(0.1 * 0.9 / 2000)
    assert abs((struck[1:] & struck[:-1]).mean() - 0.01) < 0.01  # one step says nothing of the next
    np.testing.assert_array_equal(jax.vmap(lambda n: is_struck(KEY, n, probability=0.1))(steps), struck)


def test_a_share_of_the_entries_is_drawn_anew_on_every_step():
    @jax.jit
    def spike(step):
        return inject_spikes(KEY, step, GRADIENTS, probability=1.0, scale=100.0, leaves="kernel|head", entries=0.2)

    first, second = (factors(spike(step)) for step in (0, 1))
    wheres = [leaves["blocks"]["mlp"]["kernel"].ravel() > 50 for leaves in (first, second)]
    wheres.append(first["head"].ravel() > 50)
    for where in wheres:
        assert abs(where.mean() - 0.2) < 4 * np.sqrt(0.2 * 0.8 / where.size)
    assert abs((wheres[0] & wheres[1]).mean() - 0.04) < 0.03
    assert abs((wheres[0][:400] & wheres[2]).mean() - 0.04) < 0.04  # leaves are drawn apart
    np.testing.assert_array_equal(first["blocks"]["norm"], np.ones(20))
    np.testing.assert_array_equal(factors(spike(0))["head"], first["head"])


def test_probability_zero_is_no_operation():
    assert inject_spikes(KEY, 0, GRADIENTS, probability=0.0, scale=9.0) is GRADIENTS
    traced = jax.jit(lambda p: inject_spikes(KEY, 0, GRADIENTS, probability=p, scale=9.0, entries=0.5))(0.0)
    jax.tree.map(np.testing.assert_array_equal, traced, GRADIENTS)


def test_probability_and_scale_can_be_vmapped():
    def norm(probability, scale):
        return inject_spikes(KEY, 0, GRADIENTS, probability=probability, scale=scale)["params"]["blocks"]["norm"][0]

    values = jax.vmap(norm)(jnp.array([0.0, 1.0, 1.0]), jnp.array([9.0, 2.0, jnp.inf]))
    np.testing.assert_array_equal(values, [3.0, 6.0, np.inf])


def test_sharded_gradients_are_struck_at_the_same_entries_and_stay_sharded():
    mesh = jax.make_mesh((8,), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    head = jnp.ones([40, 10])

    @jax.jit
    def spike(gradients):
        return inject_spikes(KEY, 5, gradients, probability=1.0, scale=3.0, entries=0.5)

    sharded = spike(jax.device_put(head, sharding))
    np.testing.assert_array_equal(sharded, spike(head))
    assert sharded.sharding.is_equivalent_to(sharding, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probability": 1.5}, r"probability must be in \[0, 1\], got 1.5"),
        ({"entries": -0.1}, r"entries must be in \[0, 1\], got -0.1"),
        ({"leaves": "("}, r"leaves must be a regular expression, got '\('"),
        ({"leaves": "attention"}, "found in one of the paths params/blocks/mlp/kernel, .*; got 'attention'"),
        ({"leaves": "attention", "probability": 0.0}, "got 'attention'"),
    ],
)
def test_what_cannot_be_injected_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        inject_spikes(KEY, 0, GRADIENTS, **{"probability": 1.0, "scale": 2.0} | arguments)
