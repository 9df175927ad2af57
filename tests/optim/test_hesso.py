"""HESSO against a NumPy transcription of saliencies and schedule, counts of zero units, and the inner optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxreg.optim import Group, hesso, hesso_cric, saliency

WIDTHS = (3, 5, 4, 2)


def network(seed=0):
    keys = jax.random.split(jax.random.key(seed), 6)
    return {
        f"layer{i}": {
            "kernel": jax.random.normal(keys[2 * i], (WIDTHS[i], WIDTHS[i + 1])),
            "bias": jax.random.normal(keys[2 * i + 1], (WIDTHS[i + 1],)),
        }
        for i in range(3)
    }


GROUPS = [
    Group((((f"layer{i}", "kernel"), -1), ((f"layer{i}", "bias"), 0), ((f"layer{i + 1}", "kernel"), 0)), WIDTHS[i + 1])
    for i in range(2)
]
UNITS = sum(group.size for group in GROUPS)


def units_of(params):
    """The parameters of every unit as one vector, in NumPy."""
    for i in range(2):
        here, after = params[f"layer{i}"], params[f"layer{i + 1}"]
        for unit in range(WIDTHS[i + 1]):
            yield np.concatenate([here["kernel"][:, unit], here["bias"][unit : unit + 1], after["kernel"][unit]])


def reference_saliency(params, directions, weights=(0.2,) * 5):
    measures = np.zeros([5, UNITS])
    for unit, (x, d) in enumerate(zip(units_of(params), units_of(directions), strict=True)):
        x, d = x.astype(np.float64), d.astype(np.float64)
        product = x @ d
        cosine = product / max(np.linalg.norm(x) * np.linalg.norm(d), 1e-300)  # 0 for a unit that is zero
        measures[:, unit] = [np.linalg.norm(x), np.linalg.norm(x) / x.size, cosine + 1, abs(product), product**2 / 2]
    return np.asarray(weights) @ (measures / np.linalg.norm(measures, axis=1, keepdims=True))


def sizes(params):
    return np.array([np.abs(x).max() for x in units_of(params)])


def train(optimizer, params, steps, gradient=lambda params: jax.tree.map(jnp.sin, params)):
    """The parameters after every step."""
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(gradient(params), state, params)
        return optax.apply_updates(params, updates), state

    history = [params]
    for _ in range(steps):
        params, state = step(params, state)
        history.append(params)
    return history, state


def close(a, b, **tolerances):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerances), a, b)


def test_saliency_follows_the_paper():
    params, directions = network(0), network(1)
    np.testing.assert_allclose(saliency(params, directions, GROUPS), reference_saliency(params, directions), rtol=1e-5)
    weights = (0.5, 0.1, 0.2, 0.0, 0.2)
    np.testing.assert_allclose(
        saliency(params, directions, GROUPS, weights=weights),
        reference_saliency(params, directions, weights),
        rtol=1e-5,
    )


@pytest.mark.parametrize("length", [9.0, 1e15, 1e-10, 1e-15])
def test_the_length_of_the_direction_has_no_effect_and_its_sign_has(length):
    params, directions = network(0), network(1)
    scores, longer = saliency(params, directions, GROUPS), jax.tree.map(lambda d: length * d, directions)
    np.testing.assert_allclose(saliency(params, longer, GROUPS), scores, rtol=1e-5)
    assert not np.allclose(saliency(params, jax.tree.map(lambda d: -d, directions), GROUPS), scores)


@pytest.mark.parametrize(("rho", "pruned"), [(0.0, 0), (0.5, 4), (0.7, 6), (1.0, 7)])
def test_exactly_the_target_is_zero_and_stays_zero(rho, pruned):
    """K = int(rho 9), but one unit of each of the two layers always stays."""
    optimizer = hesso(optax.adam(0.1), GROUPS, target_sparsity=rho, start=2, pruning_steps=5)
    history, _ = train(optimizer, network(), 12)
    zeros = [set(np.flatnonzero(sizes(params) == 0)) for params in history]
    assert {len(z) for z in zeros[: 2 + 4]} == {0}
    assert {len(z) for z in zeros[2 + 4 :]} == {pruned}
    assert len(set(map(frozenset, zeros[2 + 4 :]))) == 1
    for first, last in ((0, 5), (5, 9)):
        assert any(unit not in zeros[-1] for unit in range(first, last))


def test_the_lowest_saliencies_are_pruned():
    params = network()
    gradient = jax.tree.map(jnp.cos, params)
    history, _ = train(
        hesso(optax.sgd(0.01), GROUPS, pruning_steps=3, target_sparsity=0.4), params, 4, lambda p: gradient
    )
    scores = reference_saliency(params, gradient)
    protected = {int(np.argmax(scores[:5])), 5 + int(np.argmax(scores[5:]))}
    lowest = [unit for unit in np.argsort(scores) if unit not in protected][:3]
    assert set(np.flatnonzero(sizes(history[-1]) == 0)) == set(lowest)


def test_without_sparsity_it_is_the_inner_optimizer():
    inner = optax.adamw(0.1, weight_decay=0.1)
    ours, _ = train(hesso(inner, GROUPS, target_sparsity=0.0, pruning_steps=3), network(), 6)
    cric, _ = train(hesso_cric(inner, GROUPS, target_sparsity=0, sampling_steps=2, pruning_steps=2), network(), 6)
    alone, _ = train(inner, network(), 6)
    close(ours[-1], alone[-1], rtol=1e-5, atol=1e-7)
    close(cric[-1], alone[-1], rtol=1e-5, atol=1e-7)


def test_before_the_start_it_is_the_inner_optimizer():
    ours, _ = train(hesso(optax.adam(0.1), GROUPS, start=5, pruning_steps=4), network(), 5)
    alone, _ = train(optax.adam(0.1), network(), 5)
    close(ours[-1], alone[-1], rtol=1e-5, atol=1e-7)


def test_redundant_units_shrink_linearly_to_zero():
    """With zero gradients, after s steps (D - 1 - s) / (D - 1) is left; where two units meet, the product."""
    params, length = network(), 8
    optimizer = hesso(optax.sgd(0.1), GROUPS, pruning_steps=length)
    history, state = train(optimizer, params, 10, lambda p: jax.tree.map(jnp.zeros_like, p))
    redundant = np.asarray(state.redundant)
    assert redundant.sum() == 4
    for s, now in enumerate(history):
        left = max(length - 1 - s, 0) / (length - 1)
        factors = np.where(redundant, left, 1.0)
        np.testing.assert_allclose(now["layer0"]["bias"], params["layer0"]["bias"] * factors[:5], rtol=1e-5, atol=1e-7)
        both = params["layer1"]["kernel"] * factors[:5, None] * factors[None, 5:]
        np.testing.assert_allclose(now["layer1"]["kernel"], both, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(now["layer2"]["bias"], params["layer2"]["bias"])


def test_units_are_shrunk_after_the_inner_step():
    params = network()
    gradient = jax.tree.map(jnp.ones_like, params)
    history, state = train(hesso(optax.sgd(0.5), GROUPS, pruning_steps=4), params, 1, lambda p: gradient)
    factors = np.where(np.asarray(state.redundant), 2 / 3, 1.0)[:5]
    np.testing.assert_allclose(history[1]["layer0"]["bias"], (params["layer0"]["bias"] - 0.5) * factors, rtol=1e-5)


def test_periods_prune_an_equal_part_each_and_the_last_one_the_rest():
    optimizer = hesso(optax.sgd(0.01), GROUPS, target_sparsity=0.8, pruning_steps=9, periods=3)
    history, _ = train(optimizer, network(), 12)
    zeros = [int((sizes(params) == 0).sum()) for params in history]
    assert zeros == [0, 0, 2, 2, 2, 4, 4, 4, 7, 7, 7, 7, 7]


def test_a_single_step_prunes_at_once():
    history, _ = train(hesso(optax.sgd(0.01), GROUPS, pruning_steps=1), network(), 2)
    assert [(sizes(params) == 0).sum() for params in history] == [0, 4, 4]


def test_weight_decay_and_momentum_do_not_revive_zeros():
    inner = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9))
    history, _ = train(hesso(inner, GROUPS, pruning_steps=2), network(), 6)
    assert [(sizes(params) == 0).sum() for params in history[1:]] == [4] * 6


def test_groups_may_be_a_function_of_the_parameters():
    settings = dict(pruning_steps=3)
    ours, _ = train(hesso(optax.sgd(0.1), lambda params: GROUPS, **settings), network(), 4)
    wanted, _ = train(hesso(optax.sgd(0.1), GROUPS, **settings), network(), 4)
    close(ours[-1], wanted[-1], rtol=0)


class TestCric:
    settings = dict(sampling_steps=3, pruning_steps=4, start=2, target_sparsity=0.4)

    def test_cycles_follow_the_paper(self):
        """A transcription in NumPy, on gradients that do not depend on the parameters."""
        params, steps = network(), 26
        gradients = [network(seed) for seed in range(10, 10 + steps)]
        optimizer = hesso_cric(optax.sgd(0.3), GROUPS, max_cycles=4, **self.settings)
        state = optimizer.init(params)
        update = jax.jit(optimizer.update)
        x = params
        number, start, length = 3, 2, 3
        total, samples, cycle, ended = np.zeros(UNITS), 0, 0, None
        trial, historical, violating, redundant = set(), set(), set(), set()

        def lowest(scores):
            protected = {int(np.argmax(scores[:5])), 5 + int(np.argmax(scores[5:]))}
            return set([int(unit) for unit in np.argsort(scores) if unit not in protected][:number])

        for n in range(1, steps + 1):
            updates, state = update(gradients[n - 1], state, x)
            if n == start + 1:
                restored = x
            moved = jax.tree.map(lambda p, g: p - 0.3 * g, x, gradients[n - 1])
            factors = np.ones(UNITS)
            back = False
            if n > start and ended is None:
                j = (n - start - 1) % length + 1
                scores = reference_saliency(x, gradients[n - 1])
                total, samples = total + scores, samples + 1
                if j == 1:
                    cycle += 1
                    violating = lowest(scores) if cycle == 1 else trial - historical
                    if not violating or cycle > 4:
                        ended, redundant = n, lowest(total / samples)
                    historical = historical | violating
                trial = (trial | lowest(scores)) - historical
                factors[list(violating)] = max(length - j - 1, 0) / max(length - j, 1)
                back = j == length
            if ended is not None:
                t = n - ended + 1
                back, factors = False, np.ones(UNITS)
                factors[list(redundant)] = max(4 - t - 1, 0) / max(4 - t, 1)
            x = optax.apply_updates(x, updates)
            wanted = restored if back else self.shrunk(moved, factors)
            close(x, wanted, rtol=1e-4, atol=1e-5)
        assert ended is not None
        assert int((sizes(x) == 0).sum()) == number

    @staticmethod
    def shrunk(params, factors):
        first, second = factors[:5], factors[5:]
        one, two, three = (params[f"layer{i}"] for i in range(3))
        return {
            "layer0": {"kernel": one["kernel"] * first, "bias": one["bias"] * first},
            "layer1": {"kernel": two["kernel"] * first[:, None] * second, "bias": two["bias"] * second},
            "layer2": {"kernel": three["kernel"] * second[:, None], "bias": three["bias"]},
        }

    def test_it_ends_with_the_target_pruned(self):
        optimizer = hesso_cric(optax.adam(0.05), GROUPS, max_cycles=3, **self.settings)
        history, state = train(optimizer, network(), 2 + 3 * 3 + 4 + 3)
        assert [(sizes(params) == 0).sum() for params in history[-3:]] == [3, 3, 3]
        assert 1 < state.cycle <= 4

    def test_a_large_tolerance_ends_after_one_cycle(self):
        optimizer = hesso_cric(optax.adam(0.05), GROUPS, tolerance=100, **self.settings)
        history, state = train(optimizer, network(), 2 + 4)
        assert (state.cycle, state.samples) == (1, 1)
        assert (sizes(history[-1]) == 0).sum() == 3


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (Group(((("layer9", "kernel"), 0),), 3), r"groups: there is no leaf \('layer9', 'kernel'\)"),
        (Group(((("layer0", "kernel"), 0),), 5), r"'kernel'\) of shape \(3, 5\) has no 5 units along axis 0"),
        (Group(((("layer0", "bias"), 1),), 5), r"has no 5 units along axis 1"),
    ],
)
def test_groups_that_do_not_fit_are_named(group, message):
    with pytest.raises(ValueError, match=message):
        hesso(optax.sgd(0.1), [group], pruning_steps=2).init(network())


@pytest.mark.parametrize(
    ("name", "value", "interval"),
    [
        ("target_sparsity", 1.5, "[0, 1]"),
        ("start", -1, "[0, inf)"),
        ("pruning_steps", 0, "[1, inf)"),
        ("periods", 0, "[1, inf)"),
    ],
)
def test_bad_hyperparameters_are_named(name, value, interval):
    with pytest.raises(ValueError, match="must be in") as error:
        hesso(optax.sgd(0.1), GROUPS, **{"pruning_steps": 3, name: value})
    assert str(error.value) == f"{name} must be in {interval}, got {value}"


@pytest.mark.parametrize(("name", "value"), [("sampling_steps", 0), ("max_cycles", 0), ("tolerance", -1)])
def test_bad_hyperparameters_of_cric_are_named(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be in .*, got {value}$"):
        hesso_cric(optax.sgd(0.1), GROUPS, **{"pruning_steps": 3, "sampling_steps": 2, name: value})
