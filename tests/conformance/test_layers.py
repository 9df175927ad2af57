"""Every layer of ``jaxreg.layers`` computes in the precision of its inputs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg import layers

X = jax.random.normal(jax.random.key(0), [4, 6, 8])

LAYERS = {
    "ConditionAdapter": (layers.ConditionAdapter(heads=2), X[:, :3]),
    "DualHead": (layers.DualHead(num_classes=3), dict(train=False)),
    "FixedSimplexClassifier": (layers.FixedSimplexClassifier(9),),
    "GhostBatchNorm": (layers.GhostBatchNorm(ghost_size=2, use_running_average=True),),
    "LoRADense": (layers.LoRADense(5, rank=2),),
    "MultiSampleDropout": (layers.MultiSampleDropout(nn.tanh, deterministic=True),),
    "NestedDropout": (layers.NestedDropout(std=3.0, deterministic=True),),
    "NoiseEmbedding": (layers.NoiseEmbedding(),),
    "NonScalingLayerNorm": (layers.NonScalingLayerNorm(),),
    "PowerNorm": (layers.PowerNorm(warmup_steps=2, use_running_average=True),),
    "QKNormAttention": (layers.QKNormAttention(heads=2),),
}
MODULES = {
    n for n in layers.__all__ if isinstance(getattr(layers, n), type) and issubclass(getattr(layers, n), nn.Module)
}


def test_every_layer_is_driven():
    assert MODULES - LAYERS.keys() == {"StableEmbedding"}  # whose inputs are indices


@pytest.mark.parametrize(("layer", "others"), [(layer, others) for layer, *others in LAYERS.values()], ids=LAYERS)
def test_outputs_have_the_dtype_of_the_inputs(layer, others):
    options = others.pop() if others and isinstance(others[-1], dict) else {}
    variables = layer.init(jax.random.key(1), X, *others, **options)
    wanted = layer.apply(variables, X, *others, **options)
    ours = layer.apply(variables, *(x.astype(jnp.bfloat16) for x in (X, *others)), **options)
    for narrow, wide in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
        assert (narrow.dtype, wide.dtype) == (jnp.bfloat16, jnp.float32)
        np.testing.assert_allclose(np.asarray(narrow, np.float32), wide, atol=0.03 * float(jnp.max(jnp.abs(wide))))
