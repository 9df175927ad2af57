"""The decoder against a NumPy transcription, and what its options promise."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.harness.llama import (
    PRESETS,
    Llama,
    LlamaConfig,
    Matrix,
    flops_per_token,
    learning_rate_multipliers,
    next_token_loss,
    parameter_count,
)
from experiments.harness.vitals import max_attention_logits
from jaxreg.paths import is_named

SMALL = LlamaConfig(vocab_size=11, context=8, layers=2, width=16, heads=2, hidden=24)
TOKENS = jax.random.randint(jax.random.key(0), [3, 8], 0, 11)


def variant(**changes):
    return dataclasses.replace(SMALL, **changes)


def initial(config, seed=1):
    """Parameters with logits that are far from zero and gains that are not one; NumPy's, for XLA compiles its own."""
    random = np.random.default_rng(seed)

    def draw(path, shape):
        return (is_named(path, ["scale"]) + 0.3 * random.standard_normal(shape.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes(config))


def shapes(config):
    return jax.eval_shape(Llama(config).init, jax.random.key(0), TOKENS)


@functools.cache
def compiled(config):
    return jax.jit(Llama(config).apply)


def outputs(config, params, tokens=TOKENS):
    return compiled(config)(params, tokens)


def unstacked(params):
    """The parameters of an unrolled model, from those of a scanned one."""
    inner = dict(params["params"])
    blocks = inner.pop("blocks")
    layers = jax.tree.leaves(blocks)[0].shape[0]
    return {"params": inner | {f"block_{n}": jax.tree.map(lambda x, n=n: x[n], blocks) for n in range(layers)}}


class Reference:
    """Llama in float64, a sequence at a time."""

    def __init__(self, params, heads):
        self.heads = heads
        self.params = jax.tree.map(lambda x: np.asarray(x, np.float64), params["params"])
        self.largest = []

    def __call__(self, tokens):
        x = self.params["embedding"][tokens]
        for n in range(2):
            block = jax.tree.map(lambda w, n=n: w[n], self.params["blocks"])
            x = x + self.attention(block["attention"], x)
            mlp = block["mlp"]
            h = self.norm(x, mlp["norm"])
            gate = h @ mlp["gate"]["kernel"]
            x = x + (gate / (1 + np.exp(-gate)) * (h @ mlp["up"]["kernel"])) @ mlp["down"]["kernel"]
        return self.norm(x, self.params["norm"]) @ self.params["head"]

    @staticmethod
    def norm(x, gain):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * gain["scale"]

    def attention(self, weights, x):
        h, size = self.norm(x, weights["norm"]), x.shape[-1] // self.heads
        mixed = np.zeros_like(x)
        largest = -np.inf
        for head in range(self.heads):
            part = slice(head * size, (head + 1) * size)
            q, k, v = (h @ weights[name]["kernel"][:, part] for name in ("query", "key", "value"))
            q, k = self.norm(q, weights["query_norm"]), self.norm(k, weights["key_norm"])
            half = size // 2
            phases = np.exp(1j * np.arange(len(x))[:, None] * 10_000.0 ** (-np.arange(half) / half))
            q, k = ((z[:, :half] + 1j * z[:, half:]) * phases for z in (q, k))
            for t in range(len(x)):
                logits = (q[t].conj() * k[: t + 1]).real.sum(-1) / np.sqrt(size)
                weight = np.exp(logits) / np.exp(logits).sum()
                mixed[t, part] = weight @ v[: t + 1]
                largest = max(largest, logits.max())
        self.largest.append(largest)
        return mixed @ weights["out"]["kernel"]


def test_it_is_llama_as_in_numpy_and_sows_its_largest_attention_logits():
    config = variant(qk_norm=True)
    params = initial(config)
    apply = jax.jit(lambda params, tokens: Llama(config).apply(params, tokens, mutable=["vitals"]))
    logits, sown = apply(params, TOKENS)
    references = [Reference(params, heads=2) for _ in TOKENS]
    expected = [reference(np.asarray(tokens)) for reference, tokens in zip(references, TOKENS, strict=True)]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    largest = np.max([reference.largest for reference in references], axis=0)
    np.testing.assert_allclose(max_attention_logits(sown["vitals"]), largest, rtol=1e-4)


def test_a_token_changes_nothing_before_it():
    config = variant(activation_bits=4, weight_bits=4, qk_norm=True)  # quantization must not look ahead either
    params = initial(config)
    logits = outputs(config, params)
    for t in (0, 3, 7):
        changed = outputs(config, params, TOKENS.at[:, t].set((TOKENS[:, t] + 1) % 11))
        np.testing.assert_array_equal(changed[:, :t], logits[:, :t])
        assert (changed[:, t] != logits[:, t]).any(-1).all()


def test_the_scanned_model_is_the_unrolled_one():
    config, params = SMALL, initial(SMALL)
    unrolled = variant(scan=False)
    assert jax.tree.map(jnp.shape, unstacked(params)) == jax.tree.map(jnp.shape, shapes(unrolled))
    logits, sown = Llama(config).apply(params, TOKENS, mutable=["vitals"])
    same, sown_too = Llama(unrolled).apply(unstacked(params), TOKENS, mutable=["vitals"])
    np.testing.assert_allclose(logits, same, rtol=1e-5, atol=1e-5)
    largest = max_attention_logits(sown["vitals"])
    assert largest.shape == (2,)
    np.testing.assert_allclose(largest, max_attention_logits(sown_too["vitals"]), rtol=1e-5)


def test_rematerialization_changes_no_gradient_but_computes_products_again():
    params = initial(SMALL)

    def gradient(**changes):
        apply = Llama(variant(**changes)).apply
        return jax.grad(lambda params: jnp.sin(apply(params, TOKENS)).sum())

    expected, again = (jax.jit(gradient(remat=remat))(params) for remat in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), again, expected)

    def products(**changes):
        return str(jax.make_jaxpr(gradient(**changes))(shapes(variant(**changes)))).count("dot_general")

    assert products(remat=True) > products()
    assert products(remat=True, scan=False) > products(scan=False)


def test_watching_needs_no_parameters_and_costs_nothing_where_nobody_watches():
    assert set(shapes(SMALL)) == {"params"}
    config = variant(scan=False)

    def maxima(mutable):
        program = jax.make_jaxpr(lambda params: Llama(config).apply(params, TOKENS, mutable=mutable))(shapes(config))
        return str(program).count("reduce_max")

    # In every layer one for the softmax, and one more for who watches.
    assert (maxima(False), maxima(["vitals"])) == (2, 4)


def test_a_tied_head_is_the_embedding():
    config = variant(tied=True)
    params = initial(config)
    untied = {"params": params["params"] | {"head": params["params"]["embedding"].T}}
    np.testing.assert_allclose(outputs(config, params), outputs(SMALL, untied), rtol=1e-5, atol=1e-6)
    assert "head" not in params["params"]


def test_embedding_by_product_is_embedding_by_look_up():
    params = initial(SMALL)
    same = outputs(variant(one_hot=False), params)
    np.testing.assert_allclose(outputs(variant(one_hot=True), params), same, rtol=1e-5, atol=1e-6)


def test_normalized_queries_and_keys_bound_the_logits():
    """By Cauchy and Schwarz by the root of the head's size, 8, at unit gain."""

    def largest(config):
        params = jax.tree_util.tree_map_with_path(
            lambda path, p: np.ones_like(p) if is_named(path, ["scale"]) else 10 * p, initial(config)
        )
        return max_attention_logits(Llama(config).apply(params, TOKENS, mutable=["vitals"])[1]["vitals"]).max()

    assert largest(variant(qk_norm=True)) <= np.sqrt(8) * (1 + 1e-5)
    assert largest(SMALL) > 10 * np.sqrt(8)


def test_half_precision_gives_float32_logits_and_gradients_close_to_those_of_float32():
    @functools.partial(jax.jit, static_argnums=1)
    @functools.partial(jax.grad, has_aux=True)
    def gradient_and_logits(params, config):
        logits = Llama(config).apply(params, TOKENS)
        return next_token_loss(logits, TOKENS)[0].mean(), logits

    params = initial(SMALL)
    half, full = (gradient_and_logits(params, config) for config in (variant(dtype="bfloat16"), SMALL))
    assert (half[1] != half[1].astype(jnp.bfloat16)).any()
    for rounded, exact in zip(*map(jax.tree.leaves, (half, full)), strict=True):
        assert rounded.dtype == jnp.float32
        np.testing.assert_allclose(rounded, exact, atol=0.05 * np.abs(exact).max())


def test_four_bit_weights_take_sixteen_values_a_group_and_gradients_pass_through():
    """The product with the identity shows what a matrix is worth."""
    config = variant(weight_bits=4)
    x = jnp.eye(64)
    kernel = np.random.default_rng(0).standard_normal([64, 40]).astype(np.float32)
    params = {"params": {"kernel": kernel}}
    seen = np.asarray(Matrix(config, 40).apply(params, x))
    groups = np.split(seen.T.ravel(), 10)  # of 256, an output's weights beside each other
    assert max(len(np.unique(group)) for group in groups) <= 16
    assert len(np.unique(seen)) > 100
    steps = [np.ptp(group) / 15 for group in np.split(kernel.T.ravel(), 10)]
    assert np.abs(kernel - seen).max() <= max(steps)
    gradient = jax.grad(lambda p: (3 * Matrix(config, 40).apply(p, x)).sum())(params)
    np.testing.assert_array_equal(gradient["params"]["kernel"], np.full([64, 40], 3.0))


def test_four_bit_activations_take_sixteen_values_a_token():
    config = variant(activation_bits=4)
    x = jax.random.normal(jax.random.key(0), [3, 50]) * jnp.array([[1.0], [100.0], [0.01]])
    seen = np.asarray(Matrix(config, 50).apply({"params": {"kernel": jnp.eye(50)}}, x))
    assert [len(np.unique(row)) for row in seen] == [pytest.approx(14, abs=2)] * 3
    assert (np.abs(seen - x).max(1) <= np.ptp(x, axis=1) / 15).all()


def test_next_token_loss_is_surprise_plus_the_squared_normalizer():
    """Logits log(1, 2, 5) + c: Z = 8 exp(c), and the second token has probability 1/4."""
    logits = jnp.log(jnp.array([1.0, 2.0, 5.0])) + jnp.array([[0.0], [1.0]])
    loss, log_z = next_token_loss(logits, jnp.array([1, 1]), z_loss=0.1)
    np.testing.assert_allclose(log_z, np.log(8) + np.array([0, 1]), rtol=1e-6)
    np.testing.assert_allclose(loss, np.log(4) + 0.1 * (np.log(8) + np.array([0, 1])) ** 2, rtol=1e-6)
    np.testing.assert_allclose(next_token_loss(logits, jnp.array([1, 1]))[0], [np.log(4)] * 2, rtol=1e-6)
    with pytest.raises(ValueError, match=r"z_loss must be in \[0, inf\), got -1"):
        next_token_loss(logits, jnp.array([1, 1]), z_loss=-1)


def counted(config):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes(config)))


@pytest.mark.parametrize("changes", [{}, {"tied": True}, {"qk_norm": True, "scan": False}, {"mup_base_width": 8}])
def test_parameter_count_is_what_init_makes(changes):
    assert parameter_count(variant(**changes)) == counted(variant(**changes))


def test_presets_have_the_sizes_they_are_called_by():
    """Written out for GaLore's configurations: 2 V w + L (4 w^2 + 3 w h + 2 w) + w."""
    sizes = {name: counted(config) for name, config in PRESETS.items() if name != "tiny"}
    assert sizes == {"60m": 58_073_600, "130m": 134_105_856, "350m": 367_969_280, "1b": 1_339_082_752}
    assert 500_000 < counted(PRESETS["tiny"]) < 1_500_000


def test_flops_are_six_for_every_weight_and_for_half_of_the_positions():
    """XLA counts a forward pass without attention to speak of, a third of a step; attention is worked by hand."""
    config = variant(context=1, width=64, hidden=256, vocab_size=128, layers=1, scan=False, one_hot=False)
    program = compiled(config).lower(shapes(config), jnp.zeros([64, 1], jnp.int32)).compile()
    assert program.cost_analysis()["flops"] * 3 / 64 == pytest.approx(flops_per_token(config), rel=0.1)
    longer = dataclasses.replace(config, context=101)
    # 100 positions more are 50 more to see, each 64 products for the logit and 64 for the mix, two flops, thrice.
    assert flops_per_token(longer) - flops_per_token(config) == 50 * (64 + 64) * 2 * 3


class TestMuP:
    @staticmethod
    def moved(width, base_width):
        """How far Adam's first step moves the logits, by what it does to each part of the model alone."""
        tokens = jax.random.randint(jax.random.key(9), [4, 17], 0, 32)
        config = LlamaConfig(vocab_size=32, layers=2, width=width, heads=2, hidden=2 * width, mup_base_width=base_width)
        params = jax.device_get(jax.jit(Llama(config).init)(jax.random.key(0), tokens))

        def loss(params):
            logits = Llama(config).apply(params, tokens[:, :-1])
            return next_token_loss(logits, tokens[:, 1:])[0].mean(), logits

        gradient_and_logits = jax.jit(jax.grad(loss, has_aux=True))  # compiled once for both
        gradients, before = jax.device_get(gradient_and_logits(params))
        multipliers = learning_rate_multipliers(config, params)
        stepped = jax.tree.map(lambda p, m, g: p - 1e-3 * m * np.sign(g), params, multipliers, gradients)

        def moved_by(part):
            after = {"params": params["params"] | {part: stepped["params"][part]}}
            return np.std(np.asarray(gradient_and_logits(after)[1]) - before)

        return np.array([moved_by(part) for part in ("embedding", "blocks", "head")])

    def test_what_a_step_does_to_each_part_moves_the_logits_of_every_width_alike(self):
        ratios = self.moved(256, base_width=64) / self.moved(64, base_width=64)
        assert (ratios > 0.5).all()
        assert (ratios < 1.5).all()

    def test_multipliers_by_hand(self):
        config = variant(mup_base_width=4)
        params = shapes(config)
        multipliers = learning_rate_multipliers(config, params)["params"]
        assert (multipliers["embedding"], multipliers["head"], multipliers["norm"]) == (1.0, 1.0, {"scale": 1.0})
        assert multipliers["blocks"]["attention"]["out"] == multipliers["blocks"]["mlp"]["down"] == {"kernel": 0.25}
        assert set(jax.tree.leaves(learning_rate_multipliers(SMALL, params))) == {1.0}

    def test_matrices_begin_with_the_variance_of_their_inputs(self):
        config = variant(mup_base_width=16, width=128, hidden=256, vocab_size=50)
        params = jax.jit(Llama(config).init)(jax.random.key(0), TOKENS)["params"]
        query, down = params["blocks"]["attention"]["query"]["kernel"], params["blocks"]["mlp"]["down"]["kernel"]
        stds = [np.std(leaf) for leaf in (query, down, params["head"], params["embedding"])]
        np.testing.assert_allclose(stds, [128**-0.5, 256**-0.5 / 2, 0.25, 0.25], rtol=0.05)


def test_models_can_be_vmapped_over_parameters():
    each = [initial(SMALL, seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
    together = jax.vmap(compiled(SMALL), in_axes=(0, None))(stacked, TOKENS)
    for ours, params in zip(together, each, strict=True):
        np.testing.assert_allclose(ours, outputs(SMALL, params), rtol=1e-4, atol=1e-4)


def test_a_configuration_survives_json_and_is_hashable():
    config = variant(mup_base_width=8, one_hot=True)
    again = LlamaConfig(**json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config
    assert hash(again) == hash(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "heads must cut the width 16 in parts of even size, got 3"),
        ({"heads": 16}, "heads must cut the width 16 in parts of even size, got 16"),
        ({"layers": 0}, r"layers must be in \[1, inf\), got 0"),
        ({"mup_base_width": 0}, r"mup_base_width must be in \[1, inf\), got 0"),
        ({"weight_bits": 8}, r"weight_bits must be one of \(4, 16\), got 8"),
        ({"dtype": "int8"}, "dtype must be one of .*, got 'int8'"),
        ({"attention": "flash"}, "attention must be one of .*, got 'flash'"),
        ({"attention": "cudnn"}, "attention must be 'xla' where dtype is 'float32', got 'cudnn'"),
    ],
)
def test_what_makes_no_model_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        variant(**changes)
