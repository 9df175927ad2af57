import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxreg.optim import (
    adam8bit,
    dequantize_blockwise,
    dynamic_map,
    momentum8bit,
    quantize_blockwise,
    quantize_state,
    scale_by_adam8bit,
    scale_by_spam,
)

SHAPES = {"embedding": (100, 64), "kernel": (64, 512), "odd": (3, 3, 37, 61), "head": (1000, 10), "bias": (512,)}
PARAMS = {name: jnp.zeros(shape) for name, shape in SHAPES.items()}


def gradients(seed=0, shapes=SHAPES):
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return {name: jax.random.normal(key, shapes[name]) for key, name in zip(keys, sorted(shapes), strict=True)}


def state_bytes(optimizer, params):
    state = jax.eval_shape(optimizer.init, params)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


# What is kept


def test_the_first_step_is_that_of_32_bits():
    ours, _ = adam8bit(0.1).update(gradients(), adam8bit(0.1).init(PARAMS))
    wanted, _ = optax.adam(0.1).update(gradients(), optax.adam(0.1).init(PARAMS))
    jax.tree.map(np.testing.assert_array_equal, ours, wanted)


def test_the_second_step_sees_the_quantized_moments():
    # A matrix whose rows are multiples of the block: then tiles are the blocks of the flattened array.
    first, second = (gradients(seed, {"kernel": (16, 512)})["kernel"] for seed in (0, 1))
    b1, b2, eps = 0.9, 0.99, 1e-8
    optimizer = scale_by_adam8bit(b1=b1, b2=b2, eps=eps, block_size=256)
    _, state = optimizer.update(first, optimizer.init(first))
    ours, _ = optimizer.update(second, state)

    def kept(moment, signed):
        code = dynamic_map(signed=signed)
        codes, absmax = quantize_blockwise(moment, code, block_size=256)
        return np.asarray(dequantize_blockwise(codes, absmax, code, shape=moment.shape), np.float64)

    g = np.asarray(second, np.float64)
    m = b1 * kept((1 - b1) * first, True) + (1 - b1) * g
    v = b2 * kept((1 - b2) * first**2, False) + (1 - b2) * g**2
    wanted = m / (1 - b1**2) / (np.sqrt(v / (1 - b2**2)) + eps)
    np.testing.assert_allclose(ours, wanted, rtol=2e-5, atol=1e-6)


def test_momentum_by_hand():
    optimizer = momentum8bit(0.1, momentum=0.5, min_size=1, block_size=4)
    state = optimizer.init(jnp.zeros(4))
    # Momentum 8, -4, 0, 2 relative to 8: 1 and 0 are codes, -0.5 and 0.25 go to the nearest of their decade's.
    updates, state = optimizer.update(jnp.array([8.0, -4.0, 0.0, 2.0]), state)
    np.testing.assert_allclose(updates, [-0.8, 0.4, 0.0, -0.2], rtol=1e-6)
    updates, _ = optimizer.update(jnp.zeros(4), state)
    code = dynamic_map()
    nearest = [code[np.argmin(np.abs(code - x))] for x in (1.0, -0.5, 0.0, 0.25)]
    np.testing.assert_allclose(updates, -0.1 * 0.5 * 8 * np.array(nearest), rtol=1e-6)


def test_each_block_has_its_own_scale():
    x = jnp.ones([2, 512]).at[1, 300].set(1e6)
    optimizer = quantize_state(optax.trace(0.9), min_size=1)
    _, state = optimizer.update(x, optimizer.init(x))
    np.testing.assert_array_equal(state.scales.trace, [[1, 1], [1, 1e6]])
    assert jnp.all(state.codes.trace[0] == 255)  # the code of 1
    assert jnp.all(state.codes.trace[1, :256] == 255)
    assert jnp.unique(state.codes.trace[1, 256:]).size == 2


@pytest.mark.parametrize("inner", [optax.scale_by_lion(), optax.scale_by_adam(), scale_by_spam()])
def test_blocks_have_at_most_their_size_and_nearly_that(inner):
    state = jax.eval_shape(quantize_state(inner, block_size=256).init, PARAMS)
    for name, codes in state.codes.mu.items():
        if codes.dtype == jnp.uint8:
            scale = state.scales.mu[name]
            assert codes.shape == SHAPES[name]
            assert scale.ndim == codes.ndim
            assert codes.size / 256 <= scale.size <= 2.01 * codes.size / 256, name


def test_adam_takes_two_bytes_a_parameter():
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SHAPES.items() if name != "bias"}
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    for block_size in (256, 2048):
        assert state_bytes(adam8bit(0.1, block_size=block_size), params) <= 2.1 * size
    assert state_bytes(optax.adam(0.1), params) >= 8 * size


# Which arrays are quantized


def test_small_arrays_stay_in_32_bits():
    state = adam8bit(0.1, min_size=513).init(PARAMS)[0]
    assert state.codes.mu["bias"].dtype == jnp.float32
    assert isinstance(state.scales.mu["bias"], optax.MaskedNode)
    assert adam8bit(0.1, min_size=512).init(PARAMS)[0].codes.mu["bias"].dtype == jnp.uint8


@pytest.mark.parametrize(
    "exempt",
    [
        {name: name == "embedding" for name in SHAPES},
        lambda params: {name: name == "embedding" for name in params},
    ],
)
@pytest.mark.parametrize("make", [scale_by_adam8bit, lambda **kw: quantize_state(optax.adam(0.1), **kw)])
def test_embeddings_can_stay_in_32_bits(make, exempt):
    optimizer = make(full_precision=exempt)
    state = optimizer.init(PARAMS)
    dtypes = {leaf.shape: leaf.dtype for leaf in jax.tree.leaves(state.codes)}
    assert dtypes[SHAPES["embedding"]] == jnp.float32
    assert dtypes[SHAPES["kernel"]] == jnp.uint8
    _, after = optimizer.update(gradients(), state)
    assert jax.tree.map(jnp.result_type, after) == jax.tree.map(jnp.result_type, state)


def test_state_that_does_not_mirror_the_parameters_is_quantized_too():
    optimizer = quantize_state(optax.scale_by_factored_rms(min_dim_size_to_factor=8), min_size=100)
    params = {"matrix": jnp.zeros([300, 200])}
    state = optimizer.init(params)
    assert state.codes.v_row["matrix"].dtype == state.codes.v_col["matrix"].dtype == jnp.uint8
    _, after = optimizer.update({"matrix": jnp.ones([300, 200])}, state, params)
    # Rows of ones have the mean square 1 + 1e-30, of which (1 - decay) is kept: the same for all.
    np.testing.assert_array_equal(after.codes.v_row["matrix"], 255)


def test_squares_have_the_finer_code():
    optimizer = quantize_state(optax.scale_by_adam(), min_size=1)
    x = jnp.linspace(0.5, 1, 256)
    _, state = optimizer.update(x, optimizer.init(x))
    assert len(np.unique(state.codes.mu)) <= 37  # of 64 codes from 0.1 to 1, and 1 itself
    assert len(np.unique(state.codes.nu)) > 64
    _, state = quantize_state(optax.scale_by_adam(), min_size=1, unsigned=()).update(x, optimizer.init(x))
    assert len(np.unique(state.codes.nu)) < 64


@pytest.mark.parametrize(
    "inner",
    [
        optax.lion(0.01),
        optax.contrib.ademamix(0.01),
        optax.adafactor(0.01, min_dim_size_to_factor=8),
        optax.chain(optax.clip_by_global_norm(1.0), optax.amsgrad(0.01)),
        optax.inject_hyperparams(optax.adabelief)(learning_rate=0.01),
        optax.masked(optax.adam(0.01), lambda params: {name: name != "head" for name in params}),
        scale_by_spam(density=0.5),
    ],
    ids=["lion", "ademamix", "adafactor", "amsgrad", "adabelief", "masked adam", "spam with density"],
)
def test_any_optimizer_keeps_close_to_its_32_bit_self(inner):
    optimizer = quantize_state(inner, min_size=512)
    state, wanted_state = optimizer.init(PARAMS), inner.init(PARAMS)
    step, wanted_step = jax.jit(optimizer.update), jax.jit(inner.update)
    for seed in range(3):
        updates, state = step(gradients(seed), state, PARAMS)
        wanted, wanted_state = wanted_step(gradients(seed), wanted_state, PARAMS)
    assert jax.tree.structure(state.codes) == jax.tree.structure(wanted_state)
    assert jax.tree.leaves(state.scales)
    for name in SHAPES:
        ours, theirs = np.ravel(updates[name]), np.ravel(wanted[name])
        assert ours @ theirs >= 0.97 * np.linalg.norm(ours) * np.linalg.norm(theirs), name


@pytest.mark.parametrize(
    "inner",
    [
        optax.sm3(0.1),
        # The estimates of the curvature are the gradients: of either sign.
        optax.contrib.sophia(
            0.1,
            weight_decay=0.0,
            b2=0.5,
            gamma=1.0,
            clip_threshold=None,
            update_interval=1,
            hessian_diagonal_fn=optax.identity(),
        ),
    ],
    ids=["sm3", "sophia"],
)
def test_nu_keeps_its_sign_where_it_has_one(inner):
    g = jnp.where(jax.random.bernoulli(jax.random.key(0), shape=[8, 16]), 2.0, -1.0)

    @functools.partial(jax.jit, static_argnums=0)
    def last(optimizer):
        state = optimizer.init(g)
        for sign in (-1, 1, 1):
            updates, state = optimizer.update(sign * g, state, g)
        return updates

    np.testing.assert_allclose(last(quantize_state(inner, min_size=1)), last(inner), rtol=0.05)


@pytest.mark.parametrize(
    "inner",
    [
        optax.contrib.schedule_free_sgd(0.1),
        optax.contrib.prodigy(),
        optax.contrib.dog(1.0),
        optax.contrib.dowg(1.0),
        optax.contrib.madgrad(0.1),
        optax.contrib.mechanize(optax.adam(0.1)),
        optax.contrib.cocob(),
        optax.contrib.sam(optax.adam(0.1), optax.sgd(0.1)),
        optax.chain(optax.identity(), optax.masked(optax.contrib.prodigy(), {"kernel": True})),
    ],
    ids=["schedule_free", "prodigy", "dog", "dowg", "madgrad", "mechanic", "cocob", "sam", "masked prodigy"],
)
def test_copies_of_the_weights_stay_in_32_bits(inner):
    params = {"kernel": jax.random.normal(jax.random.key(0), [8, 16])}
    copies = [np.array_equal(leaf, params["kernel"]) for leaf in jax.tree.leaves(inner.init(params))]
    codes = jax.tree.leaves(jax.eval_shape(quantize_state(inner, min_size=1).init, params).codes)
    assert any(copies)
    assert all(code.dtype == jnp.float32 for code, copy in zip(codes, copies, strict=True) if copy)


def test_fields_that_stay_in_32_bits_can_be_named():
    state = jax.eval_shape(quantize_state(optax.scale_by_adam(), unquantized=("mu",)).init, PARAMS)
    assert state.codes.mu["kernel"].dtype == jnp.float32
    assert state.codes.nu["kernel"].dtype == jnp.uint8


# Where it lives


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_codes_and_scales_are_sharded_like_the_parameters(axis_type):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    specs = {"kernel": P(None, "data"), "tall": P("data", None)}
    shapes = {"kernel": (16, 4096), "tall": (64, 512)}
    shardings = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    g = jax.device_put(gradients(0, shapes), shardings)
    optimizer = scale_by_adam8bit(block_size=256)
    with jax.set_mesh(mesh):
        step = jax.jit(optimizer.update)
        updates, state = step(g, step(g, jax.jit(optimizer.init)(g))[1])
    for name, sharding in shardings.items():
        for leaf in (updates[name], state.codes.mu[name], state.codes.nu[name], state.scales.mu[name]):
            assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim), (name, leaf.sharding)
    alone = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), g)
    wanted, _ = step(alone, step(alone, optimizer.init(alone))[1])
    jax.tree.map(lambda a, w: np.testing.assert_allclose(a, w, rtol=1e-5), updates, wanted)


def test_map_params_gives_codes_and_scales_the_parameters_specs():
    optimizer, params = scale_by_adam8bit(), {name: PARAMS[name] for name in ("kernel", "head")}
    specs = {"kernel": P("data"), "head": P(None, "data")}
    mapped = optax.tree.map_params(
        optimizer,
        lambda _, spec: spec,
        jax.eval_shape(optimizer.init, params),
        specs,
        transform_non_params=lambda _: P(),
    )
    assert mapped.codes == optax.ScaleByAdamState(P(), specs, specs)
    assert mapped.scales.mu == mapped.scales.nu == specs


def test_a_checkpoint_holds_the_codes(tmp_path):
    optimizer = adam8bit(0.1)
    params = {"kernel": jnp.zeros([512, 512])}
    _, state = optimizer.update(gradients(0, {"kernel": (512, 512)}), optimizer.init(params), params)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", jax.eval_shape(optimizer.init, params))
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert restored[0].codes.mu["kernel"].dtype == jnp.uint8


# What is refused


@pytest.mark.parametrize("name", ["block_size", "min_size"])
@pytest.mark.parametrize("make", [lambda **kw: quantize_state(optax.adam(0.1), **kw), scale_by_adam8bit])
def test_sizes_below_one_are_refused(make, name):
    with pytest.raises(ValueError, match=f"{name} must be in"):
        make(**{name: 0})


@pytest.mark.parametrize("name", ["b1", "b2"])
def test_decays_outside_their_range_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be in"):
        adam8bit(0.1, **{name: 1.0})
    with pytest.raises(ValueError, match="momentum must be in"):
        momentum8bit(0.1, momentum=-0.1)
