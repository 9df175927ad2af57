"""What every loss must bear, whatever its paper: one battery for all of ``jaxreg.losses``.

A new loss is driven from its signature. If that is not enough, state its example arguments in ``loss_examples.py``.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg import losses
from tests.conformance.loss_examples import (
    BATCH,
    CASES,
    FUNCTIONS,
    INITS,
    LOSSES,
    SIZES,
    STATES,
    TESTED_ELSEWHERE,
    axes,
    extreme_logits,
    hyperparameters,
    refused,
    signature,
    takes_any_batch,
)

HYPERPARAMETERS = [(case, p) for case in CASES for p in hyperparameters(case.name)]
ANY_BATCH = [case for case in CASES if takes_any_batch(case.name)]
EXTREME = extreme_logits()


def assert_trees_close(actual, expected, **tolerance):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, **tolerance), actual, expected)


def value_and_gradient(case, **arguments):
    """The losses of a batch, the gradient of their sum with respect to the logits, and the new state."""

    def total(logits):
        value, state = case(**{**arguments, "logits": logits})
        return jnp.sum(value), (value, state)

    gradient, (value, state) = jax.grad(total, has_aux=True)(arguments["logits"])
    return value, gradient, state


def test_every_public_name_is_covered():
    assert set(losses.__all__) == {*STATES, *INITS, *FUNCTIONS, *TESTED_ELSEWHERE}
    assert {case.name for case in CASES} == set(FUNCTIONS)
    for case in CASES:
        case.arguments()  # raises for a function that neither its signature nor the table can drive
    # A state is covered by the functions that take it, an init by the state that it returns.
    taken = {p.annotation for name in FUNCTIONS for p in signature(name).parameters.values()}
    returned = [signature(name).return_annotation for name in INITS]
    for name in STATES:
        assert getattr(losses, name) in taken
        assert returned.count(getattr(losses, name)) == 1
    assert len(returned) == len(STATES)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_shape_and_jit(case):
    arguments = case.arguments()
    eager = case(**arguments)
    assert eager[0].shape == tuple(SIZES[axis.removeprefix("*")] for axis in axes(case.result_annotation))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(eager))
    assert_trees_close(jax.jit(case.__call__)(**arguments), eager, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("case", [case for case in CASES if "labels" in case.parameters], ids=str)
def test_labels_may_be_unsigned(case):
    arguments = case.arguments()
    names = [name for name in ("labels", "partner_labels") if name in arguments]
    unsigned = arguments | {name: jnp.asarray(arguments[name], jnp.uint8) for name in names}
    run = jax.jit(case.__call__)
    jax.tree.map(np.testing.assert_array_equal, run(**unsigned), run(**arguments))


@pytest.mark.parametrize("case", [case for case in CASES if case.per_example], ids=str)
def test_examples_do_not_mix(case):
    """vmap over examples, each a batch of its own, equals the batch; and the state changes in the rows of the batch."""
    arguments = case.arguments()
    mapped = {name: arguments.pop(name) for name in case.per_example}
    any_batch = takes_any_batch(case.name)

    def one(example):
        if any_batch:
            return case(**arguments, **example)
        value, state = case(**arguments, **{name: x[None] for name, x in example.items()})
        return value[0], state

    values, states = jax.jit(jax.vmap(one))(mapped)
    batch_values, batch_state = jax.jit(case.__call__)(**arguments, **mapped)
    np.testing.assert_allclose(values, batch_values, rtol=2e-6, atol=1e-6)
    if "index" in mapped:
        index = mapped["index"]
        others = np.setdiff1d(np.arange(SIZES["examples"]), index)
        for each, batch, before in zip(states, batch_state, arguments["state"], strict=True):
            np.testing.assert_allclose(each[np.arange(BATCH), index], batch[index], rtol=2e-6)
            np.testing.assert_array_equal(batch[others], before[others])


@pytest.mark.parametrize("case", ANY_BATCH, ids=str)
def test_any_leading_dimensions(case):
    run = jax.jit(case.__call__)
    arguments = case.arguments((6,))
    deep = {n: x.reshape(2, 3, *x.shape[1:]) if n in case.per_example else x for n, x in arguments.items()}
    flat_values, _ = run(**arguments)
    deep_values, _ = run(**deep)
    np.testing.assert_allclose(deep_values.reshape(flat_values.shape), flat_values, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", LOSSES, ids=str)
def test_finite_with_finite_gradients_at_extreme_logits(case, dtype):
    """States are fed back, so that they saturate as well."""
    arguments = case.arguments()

    def finite(logits):
        def step(state, _):
            given = {**arguments, "logits": logits} | ({"state": state} if case.returns_state else {})
            value, gradient, state = value_and_gradient(case, **given)
            return state, jnp.stack([jnp.isfinite(value).all(), jnp.isfinite(gradient).all()])

        state, finite = jax.lax.scan(step, arguments.get("state"), length=100 if case.returns_state else 1)
        return finite.all(0), jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state)]).all()

    logits = jnp.stack(list(EXTREME.values())).astype(dtype)
    (value_and_gradient_finite, state_finite) = jax.jit(jax.vmap(finite))(logits)
    bad = {
        name: (value, gradient, state)
        for name, (value, gradient), state in zip(EXTREME, value_and_gradient_finite, state_finite, strict=True)
        if not (value and gradient and state)
    }
    assert not bad, f"not finite (value, gradient, state): {bad}"


@pytest.mark.parametrize("case", LOSSES, ids=str)
def test_half_precision_logits_lose_nothing_but_their_own_rounding(case):
    arguments = case.arguments()
    half = {**arguments, "logits": arguments["logits"].astype(jnp.bfloat16)}
    wide = {**arguments, "logits": half["logits"].astype(jnp.float32)}
    run = jax.jit(lambda given: value_and_gradient(case, **given))
    (value, gradient, state), (wide_value, wide_gradient, wide_state) = run(half), run(wide)
    assert value.dtype == jnp.float32
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(value, wide_value, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(gradient.astype(jnp.float32), wide_gradient, rtol=2**-7, atol=1e-6)
    assert_trees_close(state, wide_state, rtol=2e-6)
    assert jax.tree.map(jnp.result_type, state) == jax.tree.map(jnp.result_type, arguments.get("state"))


class TestBadInputsAreNamed:
    def refused_argument(self, case, **wrong):
        with pytest.raises(TypeError) as error:
            case(**{**case.arguments(), **wrong})
        return re.search(r"parameter '(\w+)'", str(error.value)).group(1)

    @pytest.mark.parametrize("case", [case for case in LOSSES if "labels" in case.parameters], ids=str)
    def test_labels(self, case):
        labels = case.arguments()["labels"]
        assert self.refused_argument(case, labels=labels[:-1]) == "labels"
        assert self.refused_argument(case, labels=labels[:, None]) == "labels"
        assert self.refused_argument(case, labels=labels.astype(jnp.float32)) == "labels"

    @pytest.mark.parametrize("case", LOSSES, ids=str)
    def test_logits(self, case):
        logits = case.arguments()["logits"]
        assert self.refused_argument(case, logits=jnp.zeros([])) == "logits"
        assert self.refused_argument(case, logits=logits.astype(jnp.int32)) == "logits"
        if case.per_example == ["logits"] and takes_any_batch(case.name):
            return
        # Where any number of batch dimensions will do, it is the others that no longer fit.
        named = self.refused_argument(case, logits=logits[:, 0])
        assert named in case.per_example if takes_any_batch(case.name) else named == "logits"

    @pytest.mark.parametrize(
        ("name", "hyperparameter", "value"),
        [(name, p, value) for name in FUNCTIONS for p in hyperparameters(name) for value in refused(p)],
    )
    def test_hyperparameters(self, name, hyperparameter, value):
        case = next(case for case in CASES if case.name == name)
        with pytest.raises(ValueError, match=rf"^{hyperparameter} must be in .*, got {value}$"):
            case(**{**case.arguments(), hyperparameter: value})


@pytest.mark.parametrize(("case", "hyperparameter"), HYPERPARAMETERS, ids=str)
def test_traced_hyperparameters(case, hyperparameter):
    arguments, value = case.arguments(), hyperparameters(case.name)[hyperparameter]
    traced = jax.jit(lambda h: case(**{**arguments, hyperparameter: h}))(jnp.asarray(value))
    assert_trees_close(traced, case(**{**arguments, hyperparameter: value}), rtol=2e-6, atol=1e-6)
