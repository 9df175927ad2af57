"""Networks generated from a description: small classifiers of digits, for eight ways to part the digits in two.

A zoo has 24 networks for each way and each of two architectures, all fine-tuned from one initialization an
architecture, on random halves of the training data. A tokenizer and a transformer learn the zoo. The description of a
network are two vectors: which digits belong to the second class, and the architecture. The first is zero in a tenth of
the training sequences, and when sampling without a description. Scores are test accuracies, of five samples for each
way and architecture. Networks are also trained for ten steps from a sample, and from what one starts with otherwise.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from experiments.harness import data, models
from experiments.harness.claim import Claim, Comparison, Criterion
from experiments.harness.training import train
from jaxreg.layers import restart_dead_codes
from jaxreg.weights import (
    WeightTransformer,
    WeightVQVAE,
    chunk_layers,
    chunk_scale,
    detokenize,
    sample_params,
    tokenize_params,
    vqvae_loss,
)

WAYS = jnp.array(
    [
        [0, 1, 0, 1, 0, 1, 0, 1, 0, 1],  # odd
        [0, 0, 0, 0, 0, 1, 1, 1, 1, 1],  # more than four
        [1, 0, 0, 0, 0, 0, 1, 0, 1, 1],  # with a loop
        [0, 0, 1, 1, 0, 1, 0, 1, 0, 0],  # prime
        [0, 1, 0, 0, 1, 0, 0, 1, 0, 0],  # one more than a multiple of three
        [1, 1, 0, 0, 1, 1, 0, 0, 1, 1],  # in pairs
        [0, 0, 0, 1, 1, 1, 1, 0, 0, 0],  # in the middle
        [1, 1, 1, 0, 0, 0, 0, 1, 0, 1],
    ]
)
ARCHITECTURES = (8, 2), (8, 8, 2)
MEMBERS, SAMPLES, UNDESCRIBED = 24, 5, 0.1
TRAIN, BATCH, RATE, FEW_STEPS = 1200, 64, 1e-2, 10
CHUNK, TOKENS, CODES = 128, 2, 256
RESTARTS = 8  # of the tokenizer's codes

CLAIM = Claim(
    slug="igpg",
    paper="Instruction-Guided Autoregressive Neural Network Parameter Generation",
    arxiv="2504.02012",
    says="Networks generated for a described task reach at least 90% of the accuracy of trained ones, 15 points more "
    "than networks generated without the description; trained for ten steps they are 5 points ahead of a random start.",
    metric="test accuracy, mean over tasks and architectures",
    better="higher",
    worst=0.0,
    min_effect=0.15,
    relative=False,
    method="described",
    baselines=("undescribed",),
    same_runs=True,
    also=(
        Criterion(
            metric="test accuracy as a share of that of trained networks",
            better="higher",
            worst=0.0,
            margin=0.1,
            baselines=("trained",),
        ),
        Criterion(
            metric="test accuracy after ten steps of training",
            better="higher",
            worst=0.0,
            min_effect=0.05,
            relative=False,
            score="after_ten_steps",
            baselines=("random_start",),
        ),
    ),
    beside=(
        Comparison("what the tokenizer makes of trained networks", baselines=("reconstructed",)),
        Comparison("the initialization that the zoo starts from", baselines=("common_start",)),
    ),
    steps=800,
    smoke_sizes={"zoo_steps": 2, "tokenizer_steps": RESTARTS},
    seeds=32,
    finding="The description decides what is generated, and as a start it is worth far more than ten steps. As it "
    "comes, a generated network is at 88% of a trained one: most of what is missing the tokenizer has lost already, "
    "the rest is lost in sampling. Shorter rows with more tokens, 4 for 64 parameters, were worse in a trial (68%): "
    "the transformer has more to learn in the same time. Eight seeds left open whether it is 90%; 32 do not.",
)


def described(way, depth):
    """The vectors that a network is generated from."""
    return jnp.stack([2.0 * way - 1.0, jnp.where(jnp.arange(10) == depth, 1.0, 0.0)])


def run(key, *, steps, zoo_steps=150, tokenizer_steps=800):
    """Trains a zoo, a tokenizer and a prior for ``steps``, and generates; the scores are test accuracies."""
    key_data, key_zoo, key_tokenizer, key_prior, key_sample, key_few = jax.random.split(key, 6)
    split = data.digits(key_data, train=TRAIN)
    nets = [models.Mlp(widths) for widths in ARCHITECTURES]

    def accuracy(net, params, way):
        return jnp.mean(net.apply(params, split.test_x).argmax(-1) == way[split.test_y])

    def fit(net, params, way, key, *, steps):
        key_half, key_steps = jax.random.split(key)
        half = jax.random.permutation(key_half, TRAIN)[: TRAIN // 2]

        def loss(params, state, key):
            chosen = half[jax.random.randint(key, [BATCH], 0, TRAIN // 2)]
            logits = net.apply(params, split.train_x[chosen])
            return optax.softmax_cross_entropy_with_integer_labels(logits, way[split.train_y[chosen]]).mean(), state

        return train(key_steps, params, optax.adam(RATE), loss, steps=steps, points=1)[0]

    def over_members(of):
        """``of(params, way, key)`` for every way (first axis) and member."""
        return jax.vmap(jax.vmap(of, (0, None, 0)), (0, 0, 0))

    def repeated(params, count):
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(WAYS), count, *leaf.shape)), params)

    starts, zoo = [], []
    for number, net in enumerate(nets):
        key_init, key_fit = jax.random.split(jax.random.fold_in(key_zoo, number))
        start = net.init(key_init, split.train_x[:1])
        keys = jax.random.split(key_fit, [len(WAYS), MEMBERS])
        starts.append(start)
        zoo.append(over_members(functools.partial(fit, net, steps=zoo_steps))(repeated(start, MEMBERS), WAYS, keys))

    rows, masks, scales = [], [], []
    for start, members in zip(starts, zoo, strict=True):
        chunks, mask = jax.vmap(functools.partial(tokenize_params, chunk=CHUNK))(
            jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), members)
        )
        scales.append(chunk_scale(chunks, mask[0], chunk_layers(start, chunk=CHUNK)))
        rows.append(scales[-1].standardize(chunks))
        masks.append(mask)
    all_rows, all_masks = (jnp.concatenate([part.reshape(-1, CHUNK) for part in parts]) for parts in (rows, masks))

    vqvae = WeightVQVAE(chunk=CHUNK, tokens_per_chunk=TOKENS, codes=CODES)

    def tokenizer_loss(params, state, key):
        chosen = jax.random.randint(key, [BATCH], 0, len(all_rows))
        x, mask = all_rows[chosen], all_masks[chosen]
        output = vqvae.apply(params, x, mask)
        counts = state + jnp.zeros([CODES]).at[output.codes.ravel()].add(1.0)
        return vqvae_loss(output, x, mask).mean(), counts

    def stretch(params, key):
        """Some steps, and new codes for those that were not used."""
        key_steps, key_batch, key_restart = jax.random.split(key, 3)
        params, counts, _ = train(
            key_steps,
            params,
            optax.adam(3e-3),
            tokenizer_loss,
            steps=tokenizer_steps // RESTARTS,
            state=jnp.zeros([CODES]),
        )
        chosen = jax.random.randint(key_batch, [CODES], 0, len(all_rows))
        latents = vqvae.apply(params, all_rows[chosen], all_masks[chosen], method="encode")
        codebook = restart_dead_codes(
            key_restart, params["params"]["codebook"], counts, latents.reshape(-1, vqvae.latent)
        )
        restarted = {"params": {**params["params"], "codebook": codebook}}
        return restarted, (params, counts)

    tokenizer = vqvae.init(key_tokenizer, all_rows[:1], all_masks[:1])
    _, (history, counts) = jax.lax.scan(stretch, tokenizer, jax.random.split(key_tokenizer, RESTARTS))
    tokenizer = jax.tree.map(lambda leaf: leaf[-1], history)  # before the last restart: those codes were not trained
    outputs = [vqvae.apply(tokenizer, x, mask) for x, mask in zip(rows, masks, strict=True)]
    tokens = [output.codes.reshape(len(WAYS), MEMBERS, -1) for output in outputs]

    prior = WeightTransformer(codes=CODES, context=max(t.shape[-1] for t in tokens), width=32)

    def prior_loss(params, state, key):
        losses = []
        for depth, sequences in enumerate(tokens):
            keys = jax.random.split(jax.random.fold_in(key, depth), 3)
            way = jax.random.randint(keys[0], [BATCH // 4], 0, len(WAYS))
            member = jax.random.randint(keys[1], [BATCH // 4], 0, MEMBERS)
            condition = jax.vmap(described, (0, None))(WAYS[way], depth)
            hidden = jax.random.bernoulli(keys[2], UNDESCRIBED, [BATCH // 4])
            condition = condition.at[:, 0].multiply(~hidden[:, None])
            chosen = sequences[way, member]
            logits = prior.apply(params, condition, chosen)
            losses.append(optax.softmax_cross_entropy_with_integer_labels(logits, chosen).mean())
        return sum(losses) / len(losses), state

    key_init, key_steps = jax.random.split(key_prior)
    prior_params = prior.init(key_init, described(WAYS[0], 0), tokens[0][0, 0])
    prior_params, _, _ = train(key_steps, prior_params, optax.adam(3e-3), prior_loss, steps=steps)

    def generate(start, scale, condition, key):
        prior_fn = functools.partial(prior.apply, prior_params)
        decode_fn = functools.partial(vqvae.apply, tokenizer, method="decode")
        options = {"chunk": CHUNK, "tokens_per_chunk": TOKENS, "scale": scale}
        return sample_params(key, prior_fn, decode_fn, condition, start, **options)

    scores, after_ten_steps = [], []
    for depth, (net, start, members, scale, output) in enumerate(zip(nets, starts, zoo, scales, outputs, strict=True)):
        keys = jax.random.split(jax.random.fold_in(key_sample, depth), [len(WAYS), 2 * SAMPLES])
        conditions = jax.vmap(described, (0, None))(WAYS, depth)[:, None].repeat(2 * SAMPLES, axis=1)
        conditions = conditions.at[:, SAMPLES:, 0].set(0.0)
        sampled = jax.vmap(jax.vmap(functools.partial(generate, start, scale)))(conditions, keys)
        rebuilt = jax.vmap(functools.partial(detokenize, template=start))(scale.restore(output.reconstruction))
        random = jax.vmap(jax.vmap(functools.partial(net.init, x=split.train_x[:1])))(keys[:, :SAMPLES])
        candidates = {
            "described": jax.tree.map(lambda leaf: leaf[:, :SAMPLES], sampled),
            "undescribed": jax.tree.map(lambda leaf: leaf[:, SAMPLES:], sampled),
            "trained": members,
            "reconstructed": jax.tree.map(lambda leaf: leaf.reshape(len(WAYS), MEMBERS, *leaf.shape[1:]), rebuilt),
            "random_start": random,
            "common_start": repeated(start, SAMPLES),
        }
        judge = jax.vmap(jax.vmap(functools.partial(accuracy, net), (0, None)))
        scores.append({name: judge(params, WAYS).mean() for name, params in candidates.items()})

        beginners = ("described", "random_start", "common_start")
        together = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *(candidates[n] for n in beginners))
        same_batches = jnp.tile(jax.random.split(jax.random.fold_in(key_few, depth), [len(WAYS), SAMPLES]), [1, 3])
        later = over_members(functools.partial(fit, net, steps=FEW_STEPS))(together, WAYS, same_batches)
        by_start = judge(later, WAYS).reshape(len(WAYS), len(beginners), SAMPLES).mean((0, 2))
        after_ten_steps.append(dict(zip(beginners, by_start, strict=True)))

    def mean(of_architectures):
        return jax.tree.map(lambda *values: sum(values) / len(values), *of_architectures)

    return {
        "score": mean(scores),
        "after_ten_steps": mean(after_ten_steps),
        "codes_in_use": jnp.mean(counts[-1] >= 1),
    }
