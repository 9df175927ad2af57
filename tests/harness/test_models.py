from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import models
from jaxreg.layers import GhostBatchNorm


def test_mlp_is_dense_layers_with_activations_between():
    model = models.Mlp((8, 3))
    x = jax.random.normal(jax.random.key(0), [5, 4])
    params = model.init(jax.random.key(1), x)
    first, second = params["params"]["Dense_0"], params["params"]["Dense_1"]
    hidden = np.maximum(np.asarray(x) @ first["kernel"] + first["bias"], 0)
    np.testing.assert_allclose(model.apply(params, x), hidden @ second["kernel"] + second["bias"], rtol=1e-5)
    trunk = models.Mlp((8,), final_activation=True)
    np.testing.assert_allclose(trunk.apply({"params": {"Dense_0": first}}, x), hidden, rtol=1e-6)
    assert set(models.Mlp((8, 3), use_bias=False).init(jax.random.key(1), x)["params"]["Dense_1"]) == {"kernel"}


def test_plain_mlps_are_drawn_like_flax_ones_and_compute_the_same():
    small, large = models.plain_mlps(jax.random.key(0), (4, 8, 3), (200, 100))
    x = jax.random.normal(jax.random.key(1), [5, 4])
    params = {"params": {"Dense_0": small[0], "Dense_1": small[1]}}
    np.testing.assert_allclose(models.plain_mlp(small, x), models.Mlp((8, 3)).apply(params, x), rtol=1e-5, atol=1e-6)
    assert float(models.plain_mlp(small, x, final_activation=True).min()) == 0
    kernel = np.asarray(large[0]["kernel"])
    assert kernel.shape == (200, 100)
    np.testing.assert_allclose(kernel.std(), 200**-0.5, rtol=0.03)
    assert not large[0]["bias"].any()


def test_experts_are_different_mlps_on_one_trunk():
    x = jax.random.normal(jax.random.key(0), [5, 4])
    model = models.Experts(3, trunk=8, hidden=6, experts=2)
    params = model.init(jax.random.key(1), x)
    trunk, experts = params["params"]["Mlp_0"], params["params"]["VmapMlp_0"]
    features = models.Mlp((8,), final_activation=True).apply({"params": trunk}, x)
    outputs = model.apply(params, x)
    for n in range(2):
        own = jax.tree.map(lambda leaf, n=n: leaf[n], experts)
        np.testing.assert_allclose(outputs[n], models.Mlp((6, 3)).apply({"params": own}, features), rtol=1e-5)
    assert np.abs(outputs[0] - outputs[1]).max() > 0.1


def test_cosine_experts_score_angles():
    x = jax.random.normal(jax.random.key(0), [5, 4])
    model = models.Experts(3, trunk=8, hidden=16, experts=2, cosine_scale=30.0)
    params = model.init(jax.random.key(1), x)
    features = models.Mlp((8,), final_activation=True).apply({"params": params["params"]["Mlp_0"]}, x)
    layer = jax.tree.map(lambda leaf: leaf[1], params["params"]["VmapMlp_0"])
    hidden = np.asarray(models.Mlp((16,), final_activation=True).apply({"params": layer}, features))
    vectors = np.asarray(params["params"]["class_vectors"][1])
    cosines = hidden @ vectors / np.linalg.norm(hidden, axis=1)[:, None] / np.linalg.norm(vectors, axis=0)
    np.testing.assert_allclose(model.apply(params, x)[1], 30 * cosines, rtol=1e-4, atol=1e-4)


def test_batch_norm_mlp_normalizes_what_goes_into_its_activations():
    model = models.BatchNormMlp((8, 3))
    x = jax.random.normal(jax.random.key(0), [50, 4])
    variables = model.init(jax.random.key(1), x, train=True)
    first, last = variables["params"]["Dense_0"], variables["params"]["Dense_1"]
    assert set(first) == {"kernel"}
    z = np.asarray(x) @ first["kernel"]
    hidden = np.maximum((z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5), 0)
    logits, new = model.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(logits, hidden @ last["kernel"] + last["bias"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(new["batch_stats"]["BatchNorm_0"]["mean"], 0.1 * z.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        model.apply(variables, x, train=False),
        np.maximum(z / np.sqrt(1 + 1e-5), 0) @ last["kernel"] + last["bias"],
        rtol=1e-4,
        atol=1e-5,
    )


def test_batch_norm_mlp_takes_other_batch_norms():
    """Two parts of the batch, each normalized by itself, are two batches."""
    x = jax.random.normal(jax.random.key(0), [10, 4])
    plain, ghost = (models.BatchNormMlp((8, 3), norm=norm) for norm in (nn.BatchNorm, partial(GhostBatchNorm, 5)))
    params = plain.init(jax.random.key(1), x, train=True)["params"]
    renamed = {name.replace("Batch", "GhostBatch"): tree for name, tree in params.items()}
    together, _ = ghost.apply({"params": renamed}, x, train=True, mutable=["batch_stats"])
    apart = [plain.apply({"params": params}, half, train=True, mutable=["batch_stats"])[0] for half in (x[:5], x[5:])]
    np.testing.assert_allclose(together, jnp.concatenate(apart), rtol=1e-4, atol=1e-5)


def test_noise_mlp_sees_points_and_embedded_noise():
    model = models.NoiseMlp(hidden=(5,), norm=partial(nn.LayerNorm, use_bias=False, use_scale=False))
    x, first, second = jax.random.normal(jax.random.key(0), [7, 4]), jnp.linspace(-1, 1, 7), jnp.linspace(0, 3, 7)
    variables = model.init(jax.random.key(1), x[:, :2], first, second)
    assert set(variables) == {"params", "buffers"}
    np.testing.assert_array_equal(model.apply(variables, x[:, :2], first, second), np.zeros([7, 2]))
    weights = variables["params"]
    weights["Dense_1"]["kernel"] = jnp.ones([5, 2])
    inputs = [x[:, :2]]
    for name, noise in (("NoiseEmbedding_0", first), ("NoiseEmbedding_1", second)):
        angles = 0.04 * np.pi * np.outer(noise, variables["buffers"][name]["frequencies"])
        inputs += [np.cos(angles), np.sin(angles)]
    h = np.concatenate(inputs, axis=1) @ weights["Dense_0"]["kernel"] + weights["Dense_0"]["bias"]
    h = (h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + 1e-6)
    expected = (h / (1 + np.exp(-h))).sum(1, keepdims=True) * np.ones([1, 2])
    np.testing.assert_allclose(model.apply(variables, x[:, :2], first, second), expected, rtol=1e-4, atol=1e-5)


def test_char_mlp_looks_up_the_embeddings_of_its_context():
    model = models.CharMlp(classes=7, embed=3, hidden=(5,))
    context = jnp.array([[0, 6, 2], [1, 1, 4]])
    params = model.init(jax.random.key(0), context)
    weights = jax.tree.map(np.asarray, params["params"])
    x = weights["embedding"][np.asarray(context)].reshape(2, 9)
    first, second = weights["Mlp_0"]["Dense_0"], weights["Mlp_0"]["Dense_1"]
    expected = np.tanh(x @ first["kernel"] + first["bias"]) @ second["kernel"] + second["bias"]
    np.testing.assert_allclose(model.apply(params, context), expected, rtol=1e-5, atol=1e-6)


def test_initial_weights_have_variance_one_over_fan_in():
    params = models.CharMlp().init(jax.random.key(0), jnp.zeros([1, 8], jnp.int32))["params"]
    np.testing.assert_allclose(params["embedding"].std(), 1.0, rtol=0.1)
    np.testing.assert_allclose(params["Mlp_0"]["Dense_0"]["kernel"].std(), 128**-0.5, rtol=0.05)


class TestCharTransformer:
    model = models.CharTransformer(classes=7, context=6, layers=2, width=8, heads=2, hidden=5)
    symbols = jax.random.randint(jax.random.key(0), [2, 6], 0, 7)

    def test_it_is_a_pre_norm_transformer(self):
        """The forward pass in NumPy, weights enlarged so that attention and gates matter."""
        params = self.model.init(jax.random.key(1), self.symbols)
        params = jax.tree.map(lambda p: 20 * p if p.ndim == 2 else p, params)
        weights = jax.tree.map(lambda p: np.asarray(p, np.float64), params["params"])
        assert set(weights) == {"embedding", "positions", "block_0", "block_1", "RMSNorm_0", "head"}

        def norm(x):
            return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)

        def silu(x):
            return x / (1 + np.exp(-x))

        for symbols, ours in zip(self.symbols, self.model.apply(params, self.symbols), strict=True):
            x = weights["embedding"][np.asarray(symbols)] + weights["positions"]
            for name in ("block_0", "block_1"):
                w = jax.tree.map(lambda p: p, weights[name])
                a = {part: kernel["kernel"] for part, kernel in w["attention"].items()}
                h = norm(x)
                mixed = np.zeros((6, 8))
                for head in (slice(0, 4), slice(4, 8)):
                    q, k, v = h @ a["query"][:, head], h @ a["key"][:, head], h @ a["value"][:, head]
                    for i in range(6):
                        p = np.exp(k[: i + 1] @ q[i] / 2)
                        mixed[i, head] = p @ v[: i + 1] / p.sum()
                x = x + mixed @ a["out"]
                h = norm(x)
                x = x + (silu(h @ w["gate"]["kernel"]) * (h @ w["up"]["kernel"])) @ w["down"]["kernel"]
            np.testing.assert_allclose(ours, norm(x) @ weights["head"]["kernel"], rtol=1e-4, atol=1e-4)

    def test_weights_are_drawn_with_the_given_deviation(self):
        params = models.CharTransformer().init(jax.random.key(0), jnp.zeros([1, 32], jnp.int32))["params"]
        for leaf in jax.tree.leaves(params):
            if leaf.ndim == 2:
                np.testing.assert_allclose(leaf.std(), 0.02, rtol=0.1)

    def test_norms_are_exchangeable_and_know_whether_they_train(self):
        def norm(train):
            return nn.BatchNorm(use_running_average=not train, momentum=0.0)

        model = self.model.clone(norm=norm, gated=False, use_bias=True)
        variables = model.init(jax.random.key(0), self.symbols)
        assert set(variables) == {"params", "batch_stats"}
        assert set(variables["params"]["block_0"]) == {"attention", "up", "down", "BatchNorm_0", "BatchNorm_1"}
        assert set(variables["params"]["block_0"]["up"]) == {"kernel", "bias"}
        trained, new = model.apply(variables, self.symbols, train=True, mutable=["batch_stats"])
        # Without momentum the running statistics are those of the batch, but for their averages over one batch only.
        np.testing.assert_allclose(
            model.apply({**variables, **new}, self.symbols, train=False), trained, rtol=1e-3, atol=1e-5
        )
