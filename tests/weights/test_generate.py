"""The tokenizer and the prior of network parameters: what depends on what, and sampling from priors made by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.weights import (
    ChunkScale,
    WeightTransformer,
    WeightVQVAE,
    sample_params,
    sample_tokens,
    tokenize_params,
    vqvae_loss,
)

RNG = np.random.default_rng(0)
CHUNKS = RNG.normal(size=(5, 6)).astype(np.float32)
MASK = np.arange(6) < np.array([6, 6, 3, 1, 6])[:, None]
VQVAE = WeightVQVAE(chunk=6, latent=3, codes=8, tokens_per_chunk=2, hidden=(7,))


@pytest.fixture(scope="module")
def variables():
    return jax.jit(VQVAE.init)(jax.random.key(0), CHUNKS, MASK)


@pytest.fixture(scope="module")
def output(variables):
    return jax.jit(VQVAE.apply)(variables, CHUNKS, MASK)


class TestTokenizer:
    def test_tokens_are_the_nearest_codes_and_decode_to_the_reconstruction(self, variables, output):
        codebook = np.asarray(variables["params"]["codebook"])
        distance = np.square(np.asarray(output.latents)[..., None, :] - codebook).sum(-1)
        np.testing.assert_array_equal(output.codes, distance.argmin(-1))
        np.testing.assert_allclose(output.codebook_loss, distance.min(-1).sum(-1), rtol=1e-4)
        decoded = VQVAE.apply(variables, output.codes, method="decode")
        np.testing.assert_allclose(decoded, output.reconstruction, rtol=1e-4, atol=1e-5)

    def test_the_loss_is_the_masked_mean_square_and_the_distances_to_the_codes(self, output):
        errors = np.square(np.asarray(output.reconstruction) - CHUNKS)
        expected = [errors[row, :end].mean() for row, end in enumerate(MASK.sum(1))]
        expected += (1 + 0.5) * np.asarray(output.codebook_loss)
        np.testing.assert_allclose(vqvae_loss(output, CHUNKS, MASK, beta=0.5), expected, rtol=1e-5)

    def test_padding_has_no_part_in_anything(self, variables):
        @jax.jit
        def total(chunks):
            return jnp.sum(vqvae_loss(VQVAE.apply(variables, chunks, MASK), chunks, MASK))

        value, gradient = jax.value_and_grad(total)(CHUNKS)
        np.testing.assert_array_equal(np.asarray(gradient)[~MASK], 0.0)
        assert (np.asarray(gradient)[MASK] != 0).any()
        np.testing.assert_allclose(total(np.where(MASK, CHUNKS, 50.0)), value, rtol=1e-6)

    def test_a_negative_weight_is_refused(self, output):
        with pytest.raises(ValueError, match=r"beta must be in \[0, inf\), got -1.0"):
            vqvae_loss(output, CHUNKS, MASK, beta=-1.0)


PRIOR = WeightTransformer(codes=8, context=9, width=8, heads=2, layers=1)
CONDITION = RNG.normal(size=(3, 4)).astype(np.float32)
TOKENS = np.array([3, 1, 4, 1, 5, 2, 6])


@pytest.fixture(scope="module")
def logits():
    params = jax.jit(PRIOR.init)(jax.random.key(0), CONDITION, TOKENS)
    return jax.jit(lambda condition, tokens: PRIOR.apply(params, condition, tokens))


class TestPrior:
    def test_a_token_changes_only_what_comes_after_it(self, logits):
        before = logits(CONDITION, TOKENS)
        assert before.shape == (7, 8)
        for position in (0, 3, 6):
            changed = np.where(np.arange(7) == position, 7, TOKENS)
            after = logits(CONDITION, changed)
            np.testing.assert_array_equal(after[: position + 1], before[: position + 1])
            assert (np.abs(after - before)[position + 1 :].max(1, initial=0) > 1e-6).all()

    def test_every_part_of_the_condition_changes_all_tokens(self, logits):
        before = logits(CONDITION, TOKENS)
        for part in range(3):
            changed = CONDITION + (np.arange(3) == part)[:, None]
            assert (np.abs(logits(changed, TOKENS) - before).max(1) > 1e-6).all()

    def test_more_tokens_than_the_context_are_refused(self):
        with pytest.raises(ValueError, match=r"the number of tokens must be in \[1, 9\], got 10"):
            PRIOR.init(jax.random.key(0), CONDITION, np.zeros(10, int))


def count_up(condition, tokens):
    """Sure of the number after the one before, and of the condition at the start."""
    following = jnp.concatenate([condition[None], tokens[:-1] + 1]) % 5
    return 100.0 * jax.nn.one_hot(following, 5)


class TestSampling:
    def test_every_token_follows_those_before(self):
        tokens = sample_tokens(jax.random.key(0), count_up, jnp.array(3), 12)
        np.testing.assert_array_equal(tokens, (3 + np.arange(12)) % 5)

    def test_a_window_slides_over_long_networks(self):
        tokens = sample_tokens(jax.random.key(0), count_up, jnp.array(3), 12, context=4)
        np.testing.assert_array_equal(tokens, (3 + np.arange(12)) % 5)

    @pytest.mark.parametrize(("temperature", "top_k"), [(0.5, None), (2.0, 2)])
    def test_frequencies_are_those_of_the_softmax(self, temperature, top_k):
        logits = np.log([0.1, 0.4, 0.05, 0.25, 0.2])
        draw = jax.jit(
            lambda key: sample_tokens(
                key, lambda _, tokens: jnp.tile(logits, [200, 1]), (), 200, temperature=temperature, top_k=top_k
            )
        )
        counts = np.bincount(np.concatenate([draw(jax.random.key(seed)) for seed in range(10)]), minlength=5)
        expected = np.exp(logits / temperature) * np.isin(np.arange(5), np.argsort(logits)[-(top_k or 5) :])
        expected /= expected.sum()
        np.testing.assert_allclose(counts / 2000, expected, atol=4.5 * np.sqrt(0.25 / 2000))
        assert (counts[expected == 0] == 0).all()

    def test_networks_are_decoded_from_their_tokens(self):
        """Tokens count up; a row's two tokens a, b stand for the row of 10 a + b."""
        template = {
            f"Dense_{n}": {"kernel": jnp.zeros(shape), "bias": jnp.zeros(shape[1])}
            for n, shape in enumerate(itertools.pairwise((3, 4, 2)))
        }

        def decode(tokens):
            return jnp.repeat((10.0 * tokens[:, 0] + tokens[:, 1])[:, None], 8, axis=1)

        options = dict(chunk=8, tokens_per_chunk=2)
        params = sample_params(jax.random.key(0), count_up, decode, jnp.array(0), template, **options)
        rows, mask = tokenize_params(params, chunk=8)
        numbers = np.arange(2 * len(rows)).reshape(-1, 2) % 5
        expected = np.where(mask, (10 * numbers[:, :1] + numbers[:, 1:]), 0)
        np.testing.assert_array_equal(rows, expected)
        scale = ChunkScale(jnp.full([len(rows), 1], 3.0), jnp.full([len(rows), 1], 2.0))
        scaled = sample_params(jax.random.key(0), count_up, decode, jnp.array(0), template, scale=scale, **options)
        np.testing.assert_array_equal(tokenize_params(scaled, chunk=8)[0], np.where(mask, 2 * expected + 3, 0))

    @pytest.mark.parametrize(("name", "value"), [("temperature", 0.0), ("top_k", 6), ("context", 0)])
    def test_bad_options_are_named(self, name, value):
        with pytest.raises(ValueError, match=rf"^{name} must be in .*, got {value}"):
            sample_tokens(jax.random.key(0), count_up, jnp.array(0), 3, **{name: value})
