import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import models


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
