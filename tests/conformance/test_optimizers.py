"""Every name of ``jaxreg.optim`` keeps the optimizer contract.

Names are picked up from ``jaxreg.optim.__all__`` and driven by what their signatures say. A function that returns a
gradient transformation is driven with the arguments of ``REQUIRED``, named states are met in what ``init`` returns, and
any other function states its example arguments in ``HELPERS``. Options that change the shape of the state, or that a
few steps would not reach, are further ``VARIANTS`` of their optimizer.

What takes time is compiling. So all tests that call the bare ``update`` share one compiled function of each subject,
tests of one subject run next to each other, and what says more about optax's wrappers than about a variant is asked of
the default variant alone.
"""

import functools
import inspect
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import TypeCheckError

from jaxreg import optim
from jaxreg.typing import ScalarLike, ScalarOrSchedule


def units_of(params):
    """The units to prune: those of two leaves along their last axis, if the tree has them."""
    found = params if isinstance(params, dict) else {}
    return [
        optim.Group((((name,), -1),), found[name].shape[-1])
        for name in ("matrix", "kernel")
        if hasattr(found.get(name), "shape")
    ]


REQUIRED = {
    "groups": units_of,
    "pruning_steps": 4,
    "sampling_steps": 2,
    "learning_rate": 0.03,
    "inner": optax.adam(0.03),
    "direction": optax.scale_by_adam(),
    "base_width": 4,
}

# Learning rates other than the one at which the others minimise: the walls of Rosenbrock's valley have a curvature of
# 1000, and steps that are proportional to the gradient diverge at more than a few times its inverse.
RATES = {"momentum8bit": 0.002, "sgdp": 0.002}

# What leaves the length of the weights alone, which these losses depend on.
ON_SPHERES = {"perp_grad"}

# What scales the directions of others.
SCALES = {"mu_scale", "scale_by_inverse_row_norm"}

# What is made for long runs, at the scale of a run of some hundred steps.
SHORT_RUN = {"reset_every": 100, "warmup_steps": 10}

VARIANTS = [
    ("scale_by_spam", dict(density=0.5)),
    ("scale_by_spam", dict(reset_every=3, warmup_steps=2, grace_steps=1, threshold=2.0)),
    ("spam", dict(density=0.5, reset_every=3, warmup_steps=2)),
    ("spam", dict(weight_decay=0.1)),
    ("momentum_reset", dict(reset_every=3, warmup_steps=2)),
    ("adamp", dict(weight_decay=0.1, delta=10.0)),
    ("sgdp", dict(weight_decay=0.1, nesterov=True)),
    ("independent_weight_decay", dict(schedule=lambda step: 0.5**step)),
    ("perp_grad", dict(per_leaf=False, rescale=False)),
    ("frugal", dict(projection="svd", density=0.5, update_gap=3)),
    ("frugal", dict(projection="columns", density=0.5, update_gap=3, weight_decay=0.1, reset_statistics=False)),
    ("frugal", dict(projection="randk", density=0.3, update_gap=3)),
    ("gradient_splitting", dict(density=1, update_gap=3)),
    ("hesso", dict(periods=2, start=1, target_sparsity=0.8)),
    ("hesso_cric", dict(max_cycles=1, target_sparsity=0.3)),
    ("allora", dict(norm_axes={"matrix": -1, "kernel": 0}, weight_decay=0.1)),
    ("momentum_reset", dict(reset_every=3, moments=("mu",), restart_counts=True)),
    ("quantize_state", dict(block_size=4, min_size=2)),
    ("quantize_state", dict(inner=optax.scale_by_factored_rms(), min_size=1, code="linear")),
    ("scale_by_adam8bit", dict(block_size=8, min_size=1)),
    ("scale_by_stable_spam", dict(reset_every=3, shared_counter=True)),
    ("stable_spam", dict(reset_every=3, total_steps=20, weight_decay=0.1)),
    ("adam8bit", dict(block_size=3, min_size=1, weight_decay=0.1)),
    ("momentum8bit", dict(min_size=1, nesterov=True)),
]


class Helper(NamedTuple):
    arrays: dict  # example arguments, which `jit` and `vmap` get
    refused: dict  # for every argument a shape that does not fit the others, or None where any does
    settings: dict = {}  # arguments that are no arrays and have no default


HELPERS = {
    "saliency": Helper(
        dict(
            params={"w": jnp.array([[1.0, -2.0], [0.5, 0.0]])}, directions={"w": jnp.array([[0.1, 0.3], [2.0, -1.0]])}
        ),
        dict(params=(2,), directions=(2,)),
        dict(groups=[optim.Group(((("w",), 1),), 2)]),
    ),
    "adaptive_grad_norm": Helper(
        dict(
            gradient=jnp.array([3.0, -4.0]),
            state=optim.GradNormState(jnp.array(2.0), jnp.array(5.0)),
            count=jnp.array(7),
        ),
        dict(gradient=None, state=(), count=(2,)),
    ),
    "adaptive_spike_clip": Helper(
        dict(gradient=jnp.array([3.0, -4.0]), state=optim.SpikeClipState(jnp.array(2.0)), count=jnp.array(7)),
        dict(gradient=None, state=(), count=(2,)),
    ),
    "align_to_primary": Helper(
        dict(primary=jnp.array([3.0, -4.0]), auxiliary=jnp.array([-1.0, 2.0])), dict(primary=(3,), auxiliary=(3,))
    ),
    "dequantize_blockwise": Helper(
        dict(
            codes=jnp.array([[0, 1], [2, 1]], jnp.uint8), absmax=jnp.array([2.0, 0.5]), code=jnp.array([-1.0, 0.0, 1.0])
        ),
        dict(codes=(2,), absmax=(), code=()),
    ),
    "galore_projector": Helper(
        dict(gradient=jnp.array([[3.0, 1.0], [0.0, 2.0], [1.0, 0.0]])), dict(gradient=(3,)), dict(rank=1)
    ),
    "multiplicative_noise_gradient": Helper(
        dict(per_example_gradients=jnp.array([[3.0, 1.0], [0.0, 2.0]])),
        dict(per_example_gradients=()),
        dict(key=jax.random.key(0), sigma=0.5),
    ),
    "project_radial": Helper(
        dict(parameter=jnp.eye(3, 2), gradient=jnp.eye(3, 2)[::-1], direction=jnp.ones([3, 2])),
        dict(parameter=(3,), gradient=(2, 2), direction=(3,)),
    ),
    "quantize_blockwise": Helper(
        dict(x=jnp.array([[2.0, -0.4, 1.1]]), code=jnp.array([-1.0, 0.0, 1.0])),
        dict(x=None, code=(2, 2)),
        dict(block_size=2),
    ),
    "spike_clip": Helper(
        dict(gradient=jnp.array([[100.0, -100.0, 70.0]]), second_moment=jnp.array([[1.0, 1.0, 1.0]])),
        dict(gradient=(), second_moment=(3,)),
    ),
    "spike_score": Helper(dict(gradients=jnp.array([[1.0, 2.0], [-3.0, 0.5]])), dict(gradients=())),
    "warmup_after_reset": Helper(dict(steps_since_reset=jnp.array(7)), dict(steps_since_reset=(2,))),
}


def is_transformation(function):
    result = inspect.signature(function, eval_str=True).return_annotation
    return isinstance(result, type) and issubclass(result, optax.GradientTransformation)


# What has a contract of its own, and tests of its own.
COMPRESSION = {"Compressor", "contraction", "rand_k", "stochastic_rounding", "topk"}  # take and return functions
ONLINE_LEARNERS = {"DynamicEnsembleState", "OnlineLearner", "OptimisticMdState", "dynamic_ensemble", "optimistic_md"}
CONSTANTS = {"dynamic_map", "linear_map"}
ARGUMENTS = {"GradNormState", "Group", "SpikeClipState"}  # of functions and of transformations
NAMES = sorted(set(optim.__all__) - COMPRESSION - ONLINE_LEARNERS - CONSTANTS - ARGUMENTS)
STATES = {name: value for name in NAMES if isinstance(value := getattr(optim, name), type)}
FUNCTIONS = {name: getattr(optim, name) for name in NAMES if name not in STATES}
TRANSFORMATIONS = {name: function for name, function in FUNCTIONS.items() if is_transformation(function)}


class Subject(NamedTuple):
    """One way to call one transformation."""

    name: str
    options: dict

    @property
    def parameters(self):
        return inspect.signature(TRANSFORMATIONS[self.name], eval_str=True).parameters

    @property
    def arguments(self):
        required = [name for name, p in self.parameters.items() if p.default is inspect.Parameter.empty]
        return {name: REQUIRED[name] for name in required} | self.options

    @property
    def traced(self):
        """The hyperparameters that may be arrays."""
        return [n for n, p in self.parameters.items() if p.annotation in (ScalarLike, ScalarOrSchedule)]

    def make(self, **options):
        return TRANSFORMATIONS[self.name](**self.arguments | options)

    def make_descending(self, learning_rate):
        """The optimizer for a short run; a direction gets a learning rate, a scale Adam's direction."""
        rates = {"learning_rate": learning_rate, "inner": optax.adam(learning_rate)}
        rates = {name: value for name, value in rates.items() if name in self.arguments}
        transformation = self.make(**rates, **{n: value for n, value in SHORT_RUN.items() if n in self.parameters})
        if self.name in SCALES:
            transformation = optax.chain(optax.scale_by_adam(), transformation)
        return transformation if rates else optax.chain(transformation, optax.scale_by_learning_rate(learning_rate))

    def __hash__(self):
        return hash(str(self))

    def __str__(self):
        # Without the addresses of functions, which differ between processes.
        shown = {name: "…" if callable(value) or name == "inner" else value for name, value in self.options.items()}
        return f"{self.name}({', '.join(f'{name}={value}' for name, value in shown.items())})"


SUBJECTS = [Subject(name, {}) for name in TRANSFORMATIONS] + [Subject(*variant) for variant in VARIANTS]

DEFAULTS = [subject for subject in SUBJECTS if not subject.options]

# By module, so that pytest sorts tests by subject: what one has compiled is there for the next, in the same worker.
every_subject = pytest.mark.parametrize("subject", SUBJECTS, ids=str, scope="module")
every_default = pytest.mark.parametrize("subject", DEFAULTS, ids=str, scope="module")

STEPS = 5
SHAPES = {"scalar": (), "vector": (8,), "matrix": (8, 4), "cube": (2, 3, 8), "kernel": (2, 2, 4, 8)}


def tree_of(shapes, key, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(key), len(shapes))
    return {name: jax.random.normal(k, shape, dtype) for k, (name, shape) in zip(keys, shapes.items(), strict=True)}


PARAMS = tree_of(SHAPES, 0)
GRADIENTS = [tree_of(SHAPES, 1 + step) for step in range(STEPS)]


class Compiled(NamedTuple):
    """A transformation whose update is compiled once for all who ask."""

    init: Callable
    update: Callable
    traces: list


def compiled(optimizer):
    traces = []

    def update(gradient, state, params, **extra_args):
        traces.append(jax.tree.map(lambda g: (g.shape, g.dtype), gradient))
        return optimizer.update(gradient, state, params, **extra_args)

    return Compiled(optimizer.init, jax.jit(update), traces)


@functools.cache
def bare(subject):
    return compiled(subject.make())


def trajectory(optimizer, params=PARAMS, gradients=GRADIENTS, *, state=None, **extra_args):
    """The updates of every step, and the last state."""
    optimizer = optimizer if isinstance(optimizer, Compiled) else compiled(optimizer)
    state = optimizer.init(params) if state is None else state
    history = []
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params, **extra_args)
        history.append(updates)
    return history, state


@functools.cache
def expected(subject, names=tuple(SHAPES), dtype=jnp.float32):
    """The trajectory of the bare transformation on some of the leaves, which the other ways to run it must match."""
    params, *gradients = ({name: tree[name].astype(dtype) for name in names} for tree in (PARAMS, *GRADIENTS))
    return trajectory(bare(subject), params, gradients)


def restrict(tree, names):
    return {name: tree[name] for name in names}


def assert_close(actual, wanted, rtol=2e-5, atol=1e-6):
    assert jax.tree.structure(actual) == jax.tree.structure(wanted)
    jax.tree.map(lambda a, w: np.testing.assert_allclose(np.asarray(a), np.asarray(w), rtol, atol), actual, wanted)


def assert_identical(actual, wanted):
    assert jax.tree.structure(actual) == jax.tree.structure(wanted)
    jax.tree.map(lambda a, w: np.testing.assert_array_equal(np.asarray(a), np.asarray(w)), actual, wanted)
    assert jax.tree.map(jnp.result_type, actual) == jax.tree.map(jnp.result_type, wanted)


def named_states(state):
    """The types of all named tuples within a state."""
    if hasattr(state, "_fields"):
        yield type(state)
    if isinstance(state, tuple | list):
        for part in state:
            yield from named_states(part)


# Which names there are


def test_every_name_is_driven():
    met = {kind for subject in SUBJECTS for kind in named_states(jax.eval_shape(subject.make().init, PARAMS))}
    unmet = {name for name, kind in STATES.items() if kind not in met}
    unknown = FUNCTIONS.keys() - TRANSFORMATIONS.keys() - HELPERS.keys()
    assert not unmet, f"no optimizer's init returns {sorted(unmet)}"
    assert not unknown, f"state example arguments in HELPERS for {sorted(unknown)}"
    assert HELPERS.keys() <= FUNCTIONS.keys()


# How it can be run


@every_subject
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_updates_have_the_shapes_and_dtypes_of_the_parameters(subject, dtype):
    history, state = expected(subject, dtype=dtype)
    for updates in history:
        assert {name: (u.shape, u.dtype) for name, u in updates.items()} == {n: (s, dtype) for n, s in SHAPES.items()}
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves((history, state)))


@every_subject
def test_bfloat16_follows_float32(subject):
    # A direction is a nonlinear function of rounded gradients: most entries agree to the rounding.
    for name in SHAPES:
        ours, wanted = (
            np.array([updates[name] for updates in expected(subject, dtype=dtype)[0]], np.float32)
            for dtype in (jnp.bfloat16, jnp.float32)
        )
        assert np.median(np.abs(ours - wanted)) <= 0.01 * np.max(np.abs(wanted)), name


@every_subject
def test_empty_trees(subject):
    for params in ({}, {"frozen": {}, "also": None, "none": jnp.zeros([0, 3])}):
        history, _ = trajectory(subject.make(), params, [params] * 2)
        assert_identical(history, [params] * 2)


@every_default
def test_numpy_arrays_without_jit_equal_jit(subject):
    optimizer, names = subject.make(), ("scalar", "matrix")
    params, *gradients = (jax.tree.map(np.asarray, restrict(tree, names)) for tree in (PARAMS, *GRADIENTS[:2]))
    state, history = optimizer.init(params), []
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        history.append(updates)
    assert_close(history, expected(subject, names)[0][:2])


@every_default
def test_numpy_arrays_are_accepted_under_jit(subject):
    optimizer = subject.make()
    params, gradient = jax.tree.map(np.asarray, (PARAMS, GRADIENTS[0]))
    updates, _ = jax.jit(lambda: optimizer.update(gradient, optimizer.init(params), params))()
    assert_close(updates, expected(subject)[0][0])


@every_subject
def test_scan_equals_loop(subject):
    optimizer = subject.make()
    stacked = jax.tree.map(lambda *g: jnp.stack(g), *GRADIENTS)

    def body(state, gradient):
        updates, state = optimizer.update(gradient, state, PARAMS)
        return state, updates

    state, history = jax.jit(lambda: jax.lax.scan(body, optimizer.init(PARAMS), stacked))()
    wanted, wanted_state = expected(subject)
    assert_close(history, jax.tree.map(lambda *u: jnp.stack(u), *wanted))
    assert_close(state, wanted_state)


@every_subject
def test_vmap_over_seeds_equals_loop(subject):
    optimizer, seeds = bare(subject), [jax.tree.map(lambda x, f=f: f * x, (PARAMS, GRADIENTS[:3])) for f in (1, -2)]
    params, gradients = jax.tree.map(lambda *x: jnp.stack(x), *seeds)
    state, update = jax.vmap(optimizer.init)(params), jax.jit(jax.vmap(subject.make().update))
    for gradient in gradients:
        updates, state = update(gradient, state, params)
    alone = [trajectory(optimizer, *seed) for seed in seeds]
    together = jax.tree.map(lambda *x: jnp.stack(x), *((history[-1], state) for history, state in alone))
    assert_close((updates, state), together)


@every_subject
def test_a_second_call_does_not_compile_again(subject):
    expected(subject)
    # Whoever else has called it with leaves of these shapes is counted as well.
    assert bare(subject).traces.count({name: (shape, jnp.float32) for name, shape in SHAPES.items()}) == 1


@every_subject
def test_state_starts_from_shapes_alone(subject):
    optimizer = subject.make()
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), PARAMS)
    assert_identical(optimizer.init(shapes), optimizer.init(PARAMS))


@every_subject
def test_the_mode_of_64_bits_leaves_the_dtypes(subject):
    narrow = ("vector", "cube")
    params = {n: jax.ShapeDtypeStruct(s, jnp.bfloat16 if n in narrow else jnp.float32) for n, s in SHAPES.items()}
    wanted = jax.eval_shape(subject.make().init, params)
    with jax.enable_x64(True):
        optimizer = subject.make()
        state = jax.eval_shape(optimizer.init, params)
        updates, state_after = jax.eval_shape(optimizer.update, params, state, params)
    for found in (state, state_after):
        assert jax.tree.map(lambda leaf: leaf.dtype, found) == jax.tree.map(lambda leaf: leaf.dtype, wanted)
    assert jax.tree.map(lambda leaf: leaf.dtype, updates) == jax.tree.map(lambda leaf: leaf.dtype, params)


# For the one with a schedule besides, that is the schedule.
DECAYING = [
    n
    for n, f in TRANSFORMATIONS.items()
    if {"weight_decay", "schedule"} & {*(p := inspect.signature(f).parameters)} == {"weight_decay"}
]


@pytest.mark.parametrize("name", DECAYING)
def test_weight_decay_may_be_a_schedule(name):
    optimizer, names = Subject(name, {}), ("vector", "matrix")
    params, *gradients = (restrict(tree, names) for tree in (PARAMS, *GRADIENTS[:2]))

    @jax.jit
    def constant(weight_decay):
        return trajectory(optimizer.make(weight_decay=weight_decay), params, gradients)[0]

    def decay(step):
        return jnp.array([0.1, 0.5])[step]

    scheduled, _ = trajectory(optimizer.make(weight_decay=decay), params, gradients)
    assert_close(scheduled, [constant(0.1)[0], constant(0.5)[1]])
    without, _ = trajectory(optimizer.make(weight_decay=0.0), params, gradients)
    assert all(bool(jnp.any(s["matrix"] != w["matrix"])) for s, w in zip(scheduled, without, strict=True))


# What it can be combined with


@every_default
def test_chain_passes_everything_on_and_extra_arguments_are_no_error(subject):
    optimizer = optax.chain(optax.identity(), subject.make())
    history, (_, state) = trajectory(optimizer, value=1.0, unheard_of=jnp.ones([]))
    assert_close((history, state), expected(subject))


@every_default
def test_partition_gives_it_its_part_and_leaves_the_others_alone(subject):
    mine = ("scalar", "matrix")
    labels = {name: "mine" if name in mine else "other" for name in SHAPES}
    history, _ = trajectory(optax.partition({"mine": subject.make(), "other": optax.identity()}, labels))
    assert_close([restrict(u, mine) for u in history], expected(subject, mine)[0])
    others = SHAPES.keys() - mine
    assert_identical([restrict(u, others) for u in history], [restrict(g, others) for g in GRADIENTS])


@every_subject
def test_hyperparameters_can_be_injected(subject):
    arguments = {name: p.default for name, p in subject.parameters.items()} | subject.arguments
    static = [name for name in arguments if name not in subject.traced]
    factory = optax.inject_hyperparams(TRANSFORMATIONS[subject.name], static_args=static)
    optimizer = compiled(factory(**subject.arguments))
    history, state = trajectory(optimizer)
    assert_close((history, state.inner_state), expected(subject))
    scalars = [n for n in subject.traced if subject.arguments.get(n, subject.parameters[n].default) is not None]
    assert set(scalars) <= state.hyperparams.keys()
    if "learning_rate" in scalars:
        state.hyperparams["learning_rate"] = jnp.zeros([])
        ((updates, *_), _) = trajectory(optimizer, state=state)
        assert_identical(updates, jax.tree.map(lambda u: 0 * u, updates))


@every_default
def test_multi_steps_takes_a_step_with_the_mean_gradient(subject):
    halves = [jax.tree.map(lambda g, f=f: f * g, gradient) for gradient in GRADIENTS[:2] for f in (0.5, 1.5)]
    optimizer = optax.MultiSteps(subject.make(), every_k_schedule=2).gradient_transformation()
    history, _ = trajectory(optimizer, gradients=halves)
    assert_identical(history[0], jax.tree.map(jnp.zeros_like, history[0]))
    assert_close(history[1::2], expected(subject)[0][:2], rtol=1e-4)


@every_default
def test_apply_if_finite_gets_over_a_nan(subject):
    nan = jax.tree.map(lambda g: jnp.full_like(g, jnp.nan), GRADIENTS[0])
    optimizer = optax.apply_if_finite(subject.make(), max_consecutive_errors=3)
    history, state = trajectory(optimizer, gradients=[*GRADIENTS[:2], nan, *GRADIENTS[2:]])
    assert_identical(history[2], jax.tree.map(jnp.zeros_like, nan))
    assert_close((history[:2] + history[3:], state.inner_state), expected(subject))


@every_subject
def test_a_nan_gradient_is_no_error(subject):
    nan = {**GRADIENTS[0], "matrix": GRADIENTS[0]["matrix"].at[1, 2].set(jnp.nan)}
    history, _ = trajectory(bare(subject), gradients=[nan, GRADIENTS[1]])
    assert jax.tree.map(jnp.shape, history[1]) == SHAPES


@every_subject
def test_map_params_reaches_what_mirrors_the_parameters(subject):
    optimizer = subject.make()
    state = optimizer.init(PARAMS)
    assert_identical(optax.tree.map_params(optimizer, lambda x: x, state), state)
    missed = optax.tree.map_params(optimizer, lambda _: None, state)
    shapes = {leaf.shape for leaf in jax.tree.leaves(missed)}
    assert not shapes & {shape for shape in SHAPES.values() if shape}


@every_subject
def test_a_checkpoint_resumes_bit_for_bit(subject, tmp_path):
    optimizer = bare(subject)
    _, state = trajectory(optimizer, gradients=GRADIENTS[:2])
    with ocp.StandardCheckpointer() as checkpointer:
        # With the parameters, since Orbax does not save a tree without arrays, the state of some transformations.
        checkpointer.save(tmp_path / "training", (PARAMS, state))
        checkpointer.wait_until_finished()
        shapes = jax.eval_shape(lambda: (PARAMS, optimizer.init(PARAMS)))
        _, restored = checkpointer.restore(tmp_path / "training", shapes)
    assert_identical(restored, state)
    history, state = trajectory(optimizer, gradients=GRADIENTS[2:], state=restored)
    assert_identical((history, state), (expected(subject)[0][2:], expected(subject)[1]))


# On eight devices

SPECS = {
    "sharded": {
        "scalar": P(),
        "vector": P("data"),
        "matrix": P("data", "model"),
        "cube": P("model", None, "data"),
        "kernel": P(None, "model", None, ("data",)),
    },
    "replicated": dict.fromkeys(SHAPES, P()),
}


@pytest.mark.parametrize(
    ("subject", "layout", "axis_type"),
    [
        *((subject, "sharded", AxisType.Explicit) for subject in SUBJECTS),
        *((subject, layout, AxisType.Auto) for subject in DEFAULTS for layout in SPECS),
    ],
    ids=str,
)
def test_eight_devices_give_the_numbers_of_one(subject, layout, axis_type):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type, axis_type))
    shardings = {name: NamedSharding(mesh, spec) for name, spec in SPECS[layout].items()}
    params, gradients = jax.device_put(PARAMS, shardings), [jax.device_put(g, shardings) for g in GRADIENTS[:3]]
    with jax.set_mesh(mesh):
        history, state = trajectory(subject.make(), params, gradients)
    assert_close(history, expected(subject)[0][:3])
    for name, sharding in shardings.items():
        for updates in history:
            assert updates[name].sharding.is_equivalent_to(sharding, updates[name].ndim), name
        mirrors = [leaf for leaf in jax.tree.leaves(state) if SHAPES[name] and leaf.shape == SHAPES[name]]
        for leaf in mirrors:
            assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim), name


# Whether it optimizes


def parabola(x):
    return jnp.sum(jnp.array([1.0, 4.0]) * jnp.square(x - jnp.array([0.7, -0.4])))


def rosenbrock(x):
    return jnp.square(1 - x[0]) + 100 * jnp.square(x[1] - jnp.square(x[0]))


@pytest.mark.parametrize("subject", [s for s in SUBJECTS if s.name not in ON_SPHERES], ids=str, scope="module")
def test_it_minimises(subject):
    losses, steps = {"parabola": parabola, "rosenbrock": rosenbrock}, 4000
    optimizer = subject.make_descending(optax.cosine_decay_schedule(RATES.get(subject.name, 0.05), steps))

    def body(carry, _):
        params, state = carry
        gradients = {name: jax.grad(loss)(params[name]) for name, loss in losses.items()}
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), None

    def run(start):
        return jax.lax.scan(body, (start, optimizer.init(start)), length=steps)[0][0]

    start = {name: jnp.zeros(2) for name in losses}
    end = jax.jit(run)(start)
    # Moving one coordinate of two at a time, nobody follows a curved valley quickly.
    goals = {"parabola": 0.05, "rosenbrock": 0.5 if "density" in subject.options else 0.05}
    for name, loss in losses.items():
        assert loss(end[name]) < goals[name] * loss(start[name]), name


@every_subject
def test_zero_gradients_move_nothing(subject):
    at_rest = {"weight_decay": 0.0, "target_sparsity": 0.0}  # what moves parameters without a gradient
    given = {name: subject.options.get(name, p.default) for name, p in subject.parameters.items()}
    at_rest = {name: value for name, value in at_rest.items() if name in given and given[name] != value}
    optimizer = compiled(subject.make(**at_rest)) if at_rest else bare(subject)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    history, state = trajectory(optimizer, gradients=[zeros] * 4)
    assert_close(history, [zeros] * 4, atol=0)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(state))


# What it refuses


@pytest.mark.parametrize(
    ("subject", "hyperparameter"),
    [(subject, name) for subject in SUBJECTS if subject.options == {} for name in subject.traced],
    ids=str,
)
def test_a_hyperparameter_of_the_wrong_shape_is_named(subject, hyperparameter):
    with pytest.raises(TypeCheckError, match=rf"parameter:? '?{hyperparameter}"):
        subject.make(**{hyperparameter: jnp.ones(2)})


# The functions that optimizers are made of

every_helper = pytest.mark.parametrize(("name", "helper"), HELPERS.items(), ids=HELPERS)


@every_helper
def test_helper_under_jit_and_vmap(name, helper):
    function = functools.partial(FUNCTIONS[name], **helper.settings)
    wanted = function(**helper.arrays)
    assert_close(jax.jit(lambda a: function(**a))(helper.arrays), wanted)
    stacked = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), helper.arrays)
    together = jax.vmap(lambda a: function(**a))(stacked)
    alone = [function(**jax.tree.map(lambda x, i=i: x[i], stacked)) for i in range(2)]
    assert_close(together, jax.tree.map(lambda *x: jnp.stack(x), *alone))


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        (name, argument)
        for name, helper in HELPERS.items()
        for argument, shape in helper.refused.items()
        if shape is not None
    ],
)
def test_helper_names_the_argument_of_the_wrong_shape(name, argument):
    helper = HELPERS[name]
    assert helper.refused.keys() == helper.arrays.keys()
    with pytest.raises(TypeCheckError, match=argument):
        FUNCTIONS[name](**helper.settings, **helper.arrays | {argument: jnp.ones(helper.refused[argument])})
