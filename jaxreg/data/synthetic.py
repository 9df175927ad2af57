"""Exactly defined data: densities on the plane with the ideal denoiser of one of them, and colours that tell a label.

The densities are to try generative models on, the colours to try whether a classifier hangs on spurious features.
"""

import math

import jax
import jax.numpy as jnp

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, Int, PRNGKeyArray, ScalarLike, checked
from jaxreg.validation import check_range


@checked
def gaussian_ring(
    key: PRNGKeyArray, n: int, *, modes: int = 8, radius: ScalarLike = 0.7, std: ScalarLike = 0.05
) -> Float[Array, "n 2"]:
    r"""Points of equally likely Gaussians whose means are evenly spaced on a circle.

    The first mean is at :math:`(r, 0)`. With the defaults each coordinate has a standard deviation of 0.497.

    Args:
        key: source of randomness.
        n: number of points.
        modes: number of Gaussians, at least 1.
        radius: ``r``, of the circle.
        std: >= 0, standard deviation of each Gaussian, in each coordinate.

    Returns:
        The points.

    Raises:
        ValueError: ``modes`` or ``std`` is outside its range.
    """
    check_range("modes", modes, "[1, inf)")
    check_range("std", std, "[0, inf)")
    key_mode, key_noise = jax.random.split(key)
    mode = jax.random.randint(key_mode, [n], 0, modes)
    return ring_means(modes=modes, radius=radius)[mode] + std * jax.random.normal(key_noise, [n, 2])


@checked
def ring_means(*, modes: int = 8, radius: ScalarLike = 0.7) -> Float[Array, "modes 2"]:
    """The means of :func:`gaussian_ring`, counter-clockwise from the first axis.

    Args:
        modes: how many, at least 1.
        radius: of the circle.

    Returns:
        The means.

    Raises:
        ValueError: ``modes`` is below 1.
    """
    check_range("modes", modes, "[1, inf)")
    angles = jnp.arange(modes) * (2 * math.pi / modes)
    return radius * jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1)


@checked
def ring_denoiser(
    x: Float[Array, "*batch 2"],
    sigma: ScalarLike | Float[Array, "*batch"],
    *,
    modes: int = 8,
    radius: ScalarLike = 0.7,
    std: ScalarLike = 0.05,
) -> Float[Array, "*batch 2"]:
    r"""The best estimate of a point of :func:`gaussian_ring` from one that noise was added to.

    .. math::
        \mathbb E[x_0 \mid x = x_0 + \sigma z] = \sum_k w_k \frac{e^2 x + \sigma^2 m_k}{e^2 + \sigma^2},
        \qquad w = \operatorname{softmax}_k \Bigl(-\frac{\|x - m_k\|^2}{2 (e^2 + \sigma^2)}\Bigr)

    The score of the noisy density is :math:`(\mathbb E[x_0 | x] - x) / \sigma^2`.

    Args:
        x: noisy points.
        sigma: standard deviation of the noise, >= 0; one for all or one for each.
        modes: as for :func:`gaussian_ring`.
        radius: as for :func:`gaussian_ring`, the length of the means ``m_k``.
        std: ``e > 0``.

    Returns:
        The estimates.

    Raises:
        ValueError: ``modes`` or ``std`` is outside its range.
    """
    check_range("std", std, "(0, inf)")
    means = ring_means(modes=modes, radius=radius)
    noise = jnp.square(jnp.broadcast_to(at_least_float32(jnp.asarray(sigma)), x.shape[:-1]))[..., None]
    total = jnp.square(std) + noise
    # The square of x is the same for all modes, and would hide their differences far out.
    scores = (x @ means.T - 0.5 * jnp.sum(jnp.square(means), axis=-1)) / total
    centre = jax.nn.softmax(scores, axis=-1) @ means
    return (jnp.square(std) * x + noise * centre) / total


@checked
def two_moons(key: PRNGKeyArray, n: int, *, scale: ScalarLike = 0.7, noise: ScalarLike = 0.05) -> Float[Array, "n 2"]:
    r"""Points of two interleaved half circles, centred.

    .. math:: s\,(\cos a - \tfrac12, \sin a - \tfrac14) \quad\text{or}\quad
        s\,(\tfrac12 - \cos a, \tfrac14 - \sin a), \qquad a \in [0, \pi] \text{ uniform}

    Args:
        key: source of randomness.
        n: number of points.
        scale: ``s``, radius of the half circles.
        noise: >= 0, standard deviation of the normal noise that is added.

    Returns:
        The points.

    Raises:
        ValueError: ``noise`` is negative.
    """
    check_range("noise", noise, "[0, inf)")
    key_side, key_angle, key_noise = jax.random.split(key, 3)
    angle = jax.random.uniform(key_angle, [n], maxval=math.pi)
    moon = jnp.stack([jnp.cos(angle) - 0.5, jnp.sin(angle) - 0.25], axis=-1)
    side = jax.random.rademacher(key_side, [n, 1], moon.dtype)
    return scale * side * moon + noise * jax.random.normal(key_noise, [n, 2])


@checked
def multi_color(
    key: PRNGKeyArray,
    labels: Int[Array, "*batch"],
    *,
    num_patches: int = 32,
    p: ScalarLike = 0.0,
    num_classes: int = 10,
    single: bool = False,
) -> Int[Array, "*batch {num_patches}"]:
    r"""MultiColor: patches whose colours tell the label, each of them unreliable for itself.

    .. math:: c_{ij} = \begin{cases} u_{ij} & \text{with probability } p \\ y_i & \text{otherwise,} \end{cases}
        \qquad u_{ij} \text{ uniform over the } K \text{ colours}

    With :math:`p = 0`, as in training, every patch alone tells the label, which makes the patches spurious features of
    whatever image they are put beside. The chance of a patch to be right is :math:`1 - p + p / K`.

    >>> import jax, jax.numpy as jnp
    >>> from jaxreg.data import multi_color
    >>> multi_color(jax.random.key(0), jnp.array([7, 3]), num_patches=4).tolist()
    [[7, 7, 7, 7], [3, 3, 3, 3]]

    Args:
        key: source of randomness.
        labels: ``y``, in ``[0, num_classes)``.
        num_patches: how many, at least 1 (paper: 32).
        p: in [0, 1] (paper: 0 for training, 0.7 to 0.9 for testing).
        num_classes: ``K >= 1``, as many colours as labels.
        single: whether all patches of an example have the same colour, drawn once: one spurious feature.

    Returns:
        The colours, as numbers below ``num_classes``, which ``jax.nn.one_hot`` makes features of.

    Raises:
        ValueError: a hyperparameter is outside its range.

    References:
        Lin et al., *Spurious Feature Diversification Improves Out-of-distribution Generalization*, ICLR 2024,
        arXiv 2309.17230.
    """
    check_range("num_patches", num_patches, "[1, inf)")
    check_range("p", p, "[0, 1]")
    check_range("num_classes", num_classes, "[1, inf)")
    key_which, key_color = jax.random.split(key)
    labels = jnp.asarray(labels)[..., None]
    shape = *labels.shape[:-1], 1 if single else num_patches
    random = jax.random.randint(key_color, shape, 0, num_classes, labels.dtype)
    colors = jnp.where(jax.random.bernoulli(key_which, p, shape), random, labels)
    return jnp.broadcast_to(colors, (*shape[:-1], num_patches))
