"""Optimizers and schedules by name, against those made by hand."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.harness.optimizers import make_optimizer, make_shape, optimizer_names, parse_options
from jaxreg.optim import QuantizedState, spam

PARAMS = {"w": jnp.linspace(-1.0, 1.0, 12).reshape(4, 3), "b": jnp.array([0.5, -2.0])}
GRADIENTS = [jax.tree.map(lambda p, n=n: jnp.cos((n + 1) * p), PARAMS) for n in range(4)]


def trained(optimizer):
    @jax.jit
    def step(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params, value=jnp.float32(1.0))
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, optimizer.init(PARAMS)
    for gradients in GRADIENTS:
        params, state = step(params, state, gradients)
    return params


def assert_same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), a, b)


def cosine(step):
    """Warmup for one step of four, then to a tenth."""
    factor = jnp.where(step < 1, 1.0, 0.1 + 0.9 * 0.5 * (1 + jnp.cos(jnp.pi * (step - 1) / 3)))
    return 0.2 * factor


class TestMakeOptimizer:
    def test_it_is_what_is_made_by_hand(self):
        settings = dict(steps=4, warmup=1, schedule="cosine")
        ours = make_optimizer("adamw", 0.2, options={"b2": 0.9, "weight_decay": 0.1}, **settings)
        assert_same(trained(ours), trained(optax.adamw(cosine, b2=0.9, weight_decay=0.1)))
        ours = make_optimizer("spam", 0.2, options={"reset_every": 2}, **settings)
        assert_same(trained(ours), trained(spam(cosine, reset_every=2)))

    def test_gradients_are_clipped_before_and_updates_scaled_at_last(self):
        multipliers = {"w": 0.25, "b": 1.0}
        ours = make_optimizer("sgd", 0.1, steps=4, warmup=0, schedule="constant", clip_norm=0.5,
                              multipliers=multipliers)  # fmt: skip
        expected = {name: np.asarray(p, np.float64) for name, p in PARAMS.items()}
        for gradients in GRADIENTS:
            norm = np.sqrt(sum((np.asarray(g, np.float64) ** 2).sum() for g in gradients.values()))
            for name, g in gradients.items():
                expected[name] = expected[name] - 0.1 * multipliers[name] * min(1, 0.5 / norm) * np.asarray(g)
        assert_same(trained(ours), expected)

    def test_weight_decay_is_multiplied_like_a_learning_rate(self):
        ours = make_optimizer("adamw", 0.2, steps=4, warmup=0, schedule="constant", options={"weight_decay": 0.5},
                              multipliers={"w": 0.25, "b": 1.0})  # fmt: skip
        rates = {"w": 0.05, "b": 0.2}
        by_hand = optax.partition(
            {n: optax.adamw(r, weight_decay=0.5) for n, r in rates.items()}, {n: n for n in rates}
        )
        assert_same(trained(ours), trained(by_hand))

    def test_state_can_be_kept_in_8_bits(self):
        def states(bits):
            state = make_optimizer("adamw", 0.1, steps=4, state_bits=bits).init({"w": jnp.zeros([64, 64])})
            quantized = [leaf for leaf in jax.tree.leaves(state, is_leaf=lambda s: isinstance(s, QuantizedState))
                         if isinstance(leaf, QuantizedState)]  # fmt: skip
            return len(quantized), sum(leaf.nbytes for leaf in jax.tree.leaves(state))

        (ours, small), (none, large) = states(8), states(32)
        assert (ours, none) == (1, 0)
        assert small < 0.27 * large

    def test_learning_rates_can_be_traced(self):
        def end(rate):
            return trained(make_optimizer("adamw", rate, steps=4, warmup=1))

        rates = jnp.array([0.1, 0.2])
        together = jax.vmap(end)(rates)
        assert_same(jax.tree.map(lambda x: x[1], together), end(0.2))

    def test_names_say_whose(self):
        assert_same(trained(make_optimizer("optax.sgd", 0.1, steps=4)), trained(make_optimizer("sgd", 0.1, steps=4)))
        for name in ("optax.contrib.muon", "contrib.muon", "muon", "jaxreg.spam"):
            make_optimizer(name, 0.1, steps=4).init(PARAMS)
        with pytest.raises(ValueError, match=r"no optimizer is called 'optax\.spam'"):
            make_optimizer("optax.spam", 0.1, steps=4)

    @pytest.mark.parametrize("name", optimizer_names())
    def test_every_name_makes_an_optimizer_that_moves_parameters_of_any_shape(self, name):
        optimizer = make_optimizer(name, 0.1, steps=4, options={"key": 0} if name == "noisy_sgd" else None)

        def step(params):
            return optimizer.update(params, optimizer.init(params), params, value=jnp.float32(1.0))[0]

        shapes = jax.eval_shape(step, PARAMS)
        assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, PARAMS)

    def test_jaxreg_comes_first_and_everyone_is_there(self):
        names = optimizer_names()
        assert {"spam", "stable_spam", "adam8bit", "frugal", "adamw", "lion", "adafactor", "muon", "prodigy"} <= set(
            names
        )
        assert not {"scale_by_learning_rate", "lbfgs", "descend", "chain"} & set(names)

    @pytest.mark.parametrize(
        ("name", "arguments", "message"),
        [
            ("adamv", {}, r"no optimizer is called 'adamv'; did you mean .*adamw"),
            ("lbfgs", {}, "optimizer lbfgs cannot be used here: it searches along a line"),
            ("scale_by_adam", {}, "no optimizer is called 'scale_by_adam'"),
            ("spam", {"options": {"treshold": 1.0}}, "spam has no option 'treshold'; did you mean threshold.*takes b1"),
            ("adamw", {"options": {"learning_rate": 1.0}}, "adamw has no option 'learning_rate'"),
            ("spam", {"options": {"b1": "high"}}, "spam cannot take b1='high'"),
            ("spam", {"options": {"b1": 2}}, r"b1 must be in \[0, 1\), got 2"),
            ("adamw", {"schedule": "exponential_decay"}, "no schedule is called 'exponential_decay'"),
            ("adamw", {"schedule": "warmup_exponential_decay"}, "warmup_exponential_decay needs the option decay_rate"),
            ("adamw", {"learning_rate": -1.0}, r"learning_rate must be in \[0, inf\), got -1"),
            ("adamw", {"clip_norm": 0.0}, r"clip_norm must be in \(0, inf\], got 0"),
            ("adamw", {"state_bits": 16}, "state_bits must be 8 or 32, got 16"),
            ("adamw", {"steps": 0}, r"steps must be in \[1, inf\), got 0"),
            ("adamw", {"warmup": 4}, r"warmup must be in \[0, 4\), got 4"),
            ("adamw", {"schedule": "cosinus"}, "no schedule is called 'cosinus'; did you mean cosine"),
            ("adamw", {"schedule_options": {"floor": 0}}, "cosine has no option 'floor'.*min_ratio"),
        ],
    )  # fmt: skip
    def test_what_does_not_exist_is_named_with_what_does(self, name, arguments, message):
        with pytest.raises(ValueError, match=message):
            make_optimizer(name, **{"learning_rate": 0.1, "steps": 4} | arguments)


class TestMakeShape:
    @pytest.mark.parametrize(
        ("schedule", "options", "expected"),
        [
            ("constant", {}, [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
            ("linear", {}, [0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
            ("wsd", {"decay_fraction": 0.2, "decay": "linear"}, [0.5, 1, 1, 1, 1, 1, 1, 1, 0.55, 0.1]),
            ("wsd_s", {"checkpoints": (5, 10), "decay_fraction": 0.2}, [0.5, 1, 1, 1, 0.1, 1, 1, 1, 1, 0.1]),
            ("polynomial", {"power": 2}, [0.5, 1, *((1 - n / 8) ** 2 for n in range(8))]),
            ("linear_schedule", {"end_value": 0.5}, [0.5, 1, *(1 - n / 16 for n in range(8))]),
            ("warmup_constant", {}, [0, 0.5, 1, 1, 1, 1, 1, 1, 1, 1]),
        ],
    )  # fmt: skip
    def test_shapes_by_hand(self, schedule, options, expected):
        shape = make_shape(schedule, steps=10, warmup=0.2, options=options)
        np.testing.assert_allclose([shape(step) for step in range(10)], expected, atol=1e-6)

    def test_warmup_is_a_share_or_a_number_of_steps(self):
        steps = jnp.arange(20)
        share, number = (jax.vmap(make_shape("wsd", steps=20, warmup=warmup))(steps) for warmup in (0.25, 5))
        np.testing.assert_array_equal(share, number)
        assert (number[4], number[3]) == (1.0, 0.8)
        assert make_shape("cosine", steps=20, warmup=0)(0) == 1.0

    def test_a_refined_schedule_is_read(self, tmp_path):
        path = tmp_path / "refined.json"
        path.write_text(json.dumps({"rates": [0.25, 1.0, 0.5]}))
        shape = make_shape(f"refined:{path}", steps=3)
        np.testing.assert_allclose([shape(step) for step in range(3)], [0.25, 1.0, 0.5])
        with pytest.raises(ValueError, match=r"is for a run of 3 steps, got steps=4"):
            make_shape(f"refined:{path}", steps=4)
        with pytest.raises(ValueError, match=r"absent\.json is no schedule"):
            make_shape(f"refined:{tmp_path}/absent.json", steps=3)


class TestParseOptions:
    def test_values_have_the_types_they_look_like(self):
        words = ["a=1", "b=-2.5e-3", "c=true", "d=False", "e=None", "f=inf", "g=text", "h=1,2.5,none", "i=1,", "j=a=b"]
        parsed = parse_options(words)
        assert parsed == {"a": 1, "b": -0.0025, "c": True, "d": False, "e": None, "f": float("inf"), "g": "text",
                          "h": (1, 2.5, None), "i": (1,), "j": "a=b"}  # fmt: skip
        assert [type(parsed[name]) for name in "abcd"] == [int, float, bool, bool]
        assert parse_options(()) == {}

    @pytest.mark.parametrize("word", ["b2", "=1", "b2=", "b 2=1", "2b=1"])
    def test_what_is_no_option_is_shown(self, word):
        with pytest.raises(ValueError, match=f"options must look like name=value, got '{word}'"):
            parse_options([word])

    def test_a_name_comes_once(self):
        with pytest.raises(ValueError, match=r"option b2 is given twice: 0\.9 and 0\.95"):
            parse_options(["b2=0.9", "b2=0.95"])
