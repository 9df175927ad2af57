"""Vector quantization against NumPy's nearest neighbours and the rules of its gradients."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg.layers import restart_dead_codes, vector_quantize

RNG = np.random.default_rng(0)
VECTORS, CODEBOOK = RNG.normal(size=(3, 7, 5)).astype(np.float32), RNG.normal(size=(11, 5)).astype(np.float32)
NEAREST = np.square(VECTORS[..., None, :] - CODEBOOK).sum(-1).argmin(-1)


def test_codes_are_those_of_least_distance():
    quantized = vector_quantize(VECTORS, CODEBOOK)
    np.testing.assert_array_equal(quantized.codes, NEAREST)
    np.testing.assert_allclose(quantized.values, CODEBOOK[NEAREST], rtol=1e-5, atol=1e-6)
    distance = np.square(VECTORS - CODEBOOK[NEAREST]).sum(-1)
    np.testing.assert_allclose(quantized.codebook_loss, distance, rtol=1e-5)
    np.testing.assert_allclose(quantized.commitment_loss, distance, rtol=1e-5)


def test_the_gradient_of_what_follows_goes_straight_to_the_vectors():
    def decoder(values):
        return jnp.sum(jnp.sin(values) * jnp.arange(5))

    through = jax.jit(jax.grad(lambda z, e: decoder(vector_quantize(z, e).values), (0, 1)))
    ours, of_codebook = through(VECTORS, CODEBOOK)
    np.testing.assert_allclose(ours, np.cos(CODEBOOK[NEAREST]) * np.arange(5), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(of_codebook, 0.0)


def test_each_loss_moves_its_own_side():
    def losses(z, e):
        quantized = vector_quantize(z, e)
        return jnp.stack([quantized.codebook_loss.sum(), quantized.commitment_loss.sum()])

    of_vectors, of_codebook = jax.jit(jax.jacrev(losses, (0, 1)))(VECTORS, CODEBOOK)
    gaps = 2 * (VECTORS - CODEBOOK[NEAREST])
    expected = np.zeros_like(CODEBOOK)
    np.add.at(expected, NEAREST.ravel(), -gaps.reshape(-1, 5))
    np.testing.assert_allclose(of_codebook[0], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(of_vectors[1], gaps, rtol=1e-4, atol=1e-5)
    assert not np.any(of_vectors[0])
    assert not np.any(of_codebook[1])


def test_dead_codes_restart_at_vectors_and_others_stay():
    counts = np.arange(11)
    vectors = VECTORS.reshape(-1, 5)
    restarted = np.asarray(restart_dead_codes(jax.random.key(0), CODEBOOK, counts, vectors, threshold=4.0))
    np.testing.assert_array_equal(restarted[4:], CODEBOOK[4:])
    assert all((row == vectors).all(1).any() for row in restarted[:4])
    assert len(np.unique(restarted[:4], axis=0)) > 1
