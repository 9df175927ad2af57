"""Adapt-then-unlearn: a generator forgets a feature that users marked, without its training data.

Someone marks samples of a trained generator that have the feature (negatives) and samples that don't (positives).
Stage 1 adapts a few copies of the generator to the negatives, with EWC to keep all else. Stage 2 trains the original
generator on the positives and pushes its weights away from the copies'::

    step = functools.partial(adapt_then_unlearn_step, generator_fn=..., discriminator_fn=..., ...)
    # Stage 1, for some seeds:
    fisher = fisher_diagonal(log_score, params, latents)
    state, _ = step(state, negatives, key, penalty=lambda p: ewc(p, params, fisher, lam=5e8))
    # Stage 2:
    state, _ = step(state, positives, key, penalty=lambda p: repulsion(p, adapted))

Without either stage's training, ``jaxreg.weights.extrapolate(params, adapted)`` already suppresses the feature, at the
price of quality: this is the direction in the space of weights that the second stage makes use of.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, PRNGKeyArray, PyTree, ScalarLike, checked
from jaxreg.validation import check_range


class GanState(NamedTuple):
    """State of :func:`adapt_then_unlearn_step`.

    Attributes:
        generator: parameters of the generator.
        discriminator: parameters of the discriminator.
        generator_optimizer: state of its optimizer.
        discriminator_optimizer: state of its optimizer.
    """

    generator: PyTree
    discriminator: PyTree
    generator_optimizer: optax.OptState
    discriminator_optimizer: optax.OptState


class GanLosses(NamedTuple):
    """Losses of a step of :func:`adapt_then_unlearn_step`, means over the batch.

    Attributes:
        generator: non-saturating loss, without the penalty.
        discriminator: logistic loss, without R1.
        r1: squared norm of the discriminator's gradient at the samples to be imitated.
        penalty: of the generator's parameters.
    """

    generator: Float[Array, ""]
    discriminator: Float[Array, ""]
    r1: Float[Array, ""]
    penalty: Float[Array, ""]


@checked
def generator_loss(fake_logits: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    r"""Non-saturating generator loss.

    .. math:: -\log \operatorname{sigmoid}(D(G(z)))

    Args:
        fake_logits: the discriminator's output for generated samples.

    Returns:
        The loss of each sample, at least float32.

    References:
        Goodfellow et al., *Generative Adversarial Nets*, NeurIPS 2014, arXiv 1406.2661.
    """
    return jax.nn.softplus(-at_least_float32(fake_logits))


@checked
def discriminator_loss(
    real_logits: Float[Array, "*batch"], fake_logits: Float[Array, "*batch"]
) -> Float[Array, "*batch"]:
    r"""Logistic discriminator loss.

    .. math:: -\log \operatorname{sigmoid}(D(x)) - \log \bigl(1 - \operatorname{sigmoid}(D(G(z)))\bigr)

    Args:
        real_logits: the discriminator's output for samples to be imitated.
        fake_logits: the same for generated ones.

    Returns:
        The loss of each pair, at least float32.

    References:
        Goodfellow et al., *Generative Adversarial Nets*, NeurIPS 2014, arXiv 1406.2661.
    """
    return jax.nn.softplus(-at_least_float32(real_logits)) + jax.nn.softplus(at_least_float32(fake_logits))


@checked
def r1_penalty(
    discriminator_fn: Callable[..., Float[Array, "batch"]], params: PyTree, samples: Float[Array, "batch *shape"]
) -> Float[Array, "batch"]:
    r"""R1: the squared norm of the discriminator's gradient at the samples to be imitated.

    .. math:: \|\nabla_x D(x)\|^2

    Args:
        discriminator_fn: ``(params, samples) -> logits``, of each sample apart from the others.
        params: of the discriminator.
        samples: ``x``.

    Returns:
        The penalty of each sample, at least float32; the loss takes half of it times its weight.

    References:
        Mescheder et al., *Which Training Methods for GANs do actually Converge?*, ICML 2018, arXiv 1801.04406.
    """
    gradients = jax.grad(lambda x: jnp.sum(at_least_float32(discriminator_fn(params, x))))(samples)
    squares = jnp.square(at_least_float32(gradients))
    return jnp.sum(squares, axis=tuple(range(1, squares.ndim)))


@checked
def gan_init(
    generator: PyTree,
    discriminator: PyTree,
    *,
    generator_optimizer: optax.GradientTransformation,
    discriminator_optimizer: optax.GradientTransformation,
) -> GanState:
    """State of :func:`adapt_then_unlearn_step` before the first step.

    Args:
        generator: parameters to start from: for both stages those of the trained generator.
        discriminator: those of the discriminator it was trained with.
        generator_optimizer: optimizer of the former.
        discriminator_optimizer: optimizer of the latter.

    Returns:
        The state.
    """
    optimizers = generator_optimizer.init(generator), discriminator_optimizer.init(discriminator)
    return GanState(generator, discriminator, *optimizers)


@checked
def adapt_then_unlearn_step(
    state: GanState,
    samples: Float[Array, "batch *shape"],
    key: PRNGKeyArray,
    *,
    generator_fn: Callable[..., Float[Array, "batch *shape"]],
    discriminator_fn: Callable[..., Float[Array, "batch"]],
    generator_optimizer: optax.GradientTransformation,
    discriminator_optimizer: optax.GradientTransformation,
    latent_size: int,
    penalty: Callable[..., Float[Array, ""]] | None = None,
    r1: ScalarLike = 10.0,
) -> tuple[GanState, GanLosses]:
    r"""One step of either stage: the discriminator's, then the generator's with its penalty.

    .. math::
        &\min_D \; \overline{-\log \sigma(D(x)) - \log(1 - \sigma(D(G_\theta(z))))}
            + \tfrac{r_1}{2} \overline{\|\nabla D(x)\|^2} \\
        &\min_\theta \; \overline{-\log \sigma(D(G_\theta(z)))} + R(\theta)

    Without a penalty it is an ordinary step of a GAN.

    Args:
        state: from :func:`gan_init`, or the last call.
        samples: ``x``, to be imitated: the trained generator's own samples, marked by users. Stage 1, adaptation, takes
            those with the unwanted feature; stage 2, unlearning, those without.
        key: of the latent vectors, which are normal.
        generator_fn: ``(params, latents [batch, latent_size]) -> samples``.
        discriminator_fn: ``(params, samples) -> logits``.
        generator_optimizer: optimizer of the generator (paper: Adam, learning rate 0.002).
        discriminator_optimizer: optimizer of the discriminator.
        latent_size: at least 1.
        penalty: ``R``, of the generator's parameters. Stage 1: :func:`jaxreg.penalties.ewc` around the trained
            generator's; stage 2: :func:`jaxreg.penalties.repulsion` from the adapted ones'.
        r1: ``r_1 >= 0`` (paper: 10, for images); far less for data whose modes are narrow.

    Returns:
        The new state, and the losses before each update.

    Raises:
        ValueError: ``latent_size`` or ``r1`` is outside its range.

    References:
        Tiwary et al., *Adapt then Unlearn: Exploring Parameter Space Semantics for Unlearning in Generative
        Adversarial Networks*, arXiv 2309.14054.
    """
    check_range("latent_size", latent_size, "[1, inf)")
    check_range("r1", r1, "[0, inf)")
    keys = jax.random.split(key)
    latents = [jax.random.normal(each, [len(samples), latent_size]) for each in keys]

    def of_discriminator(params):
        fake = generator_fn(state.generator, latents[0])
        logistic = discriminator_loss(discriminator_fn(params, samples), discriminator_fn(params, fake)).mean()
        gradient = r1_penalty(discriminator_fn, params, samples).mean()
        return logistic + 0.5 * r1 * gradient, (logistic, gradient)

    gradients, (logistic, r1_value) = jax.grad(of_discriminator, has_aux=True)(state.discriminator)
    updates, d_state = discriminator_optimizer.update(gradients, state.discriminator_optimizer, state.discriminator)
    discriminator = optax.apply_updates(state.discriminator, updates)

    def of_generator(params):
        adversarial = generator_loss(discriminator_fn(discriminator, generator_fn(params, latents[1]))).mean()
        penalized = jnp.zeros([]) if penalty is None else penalty(params)
        return adversarial + penalized, (adversarial, penalized)

    gradients, (adversarial, penalized) = jax.grad(of_generator, has_aux=True)(state.generator)
    updates, g_state = generator_optimizer.update(gradients, state.generator_optimizer, state.generator)
    generator = optax.apply_updates(state.generator, updates)
    return GanState(generator, discriminator, g_state, d_state), GanLosses(adversarial, logistic, r1_value, penalized)
