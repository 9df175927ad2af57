"""Generative data augmentation: training on a small set and on what a generator fitted to it makes up.

A generator learns the classes from the training set and draws as many labelled examples as wanted; the model is trained
on both, every example counting alike. The theory says that this cannot improve the rate at which the generalization
gap shrinks unless the generator converges faster than the model, but that it can halve the gap, which matters where the
set is small and overfitted. Any conditional generator can be used; Gaussians are here, the case in which all of this
can be computed (:func:`jaxreg.metrics.expected_gaussian_gap`).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, Int, PRNGKeyArray, checked
from jaxreg.validation import check_range


class GaussianGenerator(NamedTuple):
    """A Gaussian for each class, with independent coordinates, from :func:`fit_class_gaussian`.

    Attributes:
        mean: of each class.
        variance: of each coordinate in each class.
        share: probability of each class when sampling.
    """

    mean: Float[Array, "classes features"]
    variance: Float[Array, "classes features"]
    share: Float[Array, "classes"]


@checked
def fit_class_gaussian(
    inputs: Float[Array, "examples features"],
    labels: Int[Array, "examples"],
    *,
    num_classes: int = 2,
    tied: bool = True,
    symmetric: bool = False,
) -> GaussianGenerator:
    r"""Fits a Gaussian with independent coordinates to each class.

    .. math::
        \hat\mu_k = \frac{1}{m_k} \sum_{y_i = k} x_i, \qquad
        \hat\sigma^2_j = \frac{1}{m - K} \sum_i (x_{ij} - \hat\mu_{y_i j})^2

    Variances are unbiased: dividing by ``m`` would make generated data narrower than real data, and take the gain away.

    >>> import jax.numpy as jnp
    >>> from jaxreg.data import fit_class_gaussian
    >>> x, y = jnp.array([[1.0], [3.0], [-4.0], [-6.0]]), jnp.array([1, 1, 0, 0])
    >>> generator = fit_class_gaussian(x, y)
    >>> generator.mean.ravel().tolist(), generator.variance.ravel().tolist()
    ([-5.0, 2.0], [2.0, 2.0])

    Args:
        inputs: ``x``.
        labels: ``y``, in ``[0, num_classes)``.
        num_classes: ``K``.
        tied: one variance for all classes, as in the paper. Otherwise each class has its own, divided by ``m_k - 1``; a
            class with a single example has the tied one.
        symmetric: the paper's model of two classes, with means ``mu`` for class 1 and ``-mu`` for class 0, estimated
            together; the variance is then divided by ``m - 1``.

    Returns:
        The generator, at least float32. Classes are as frequent as in the training set; ``_replace(share=...)`` changes
        that.

    Raises:
        ValueError: ``num_classes`` is below 1, or not 2 for symmetric classes.

    References:
        Zheng et al., *Toward Understanding Generative Data Augmentation*, NeurIPS 2023, arXiv 2305.17476.
    """
    check_range("num_classes", num_classes, "[1, inf)")
    if symmetric:
        check_range("num_classes", num_classes, "[2, 2]")
    x, member = at_least_float32(inputs), jax.nn.one_hot(labels, num_classes)
    count = jnp.sum(member, axis=0)
    if symmetric:
        sign = jnp.array([-1.0, 1.0])
        mean, fitted = sign[:, None] * jnp.mean(sign[labels][:, None] * x, axis=0), 1
    else:
        mean, fitted = member.T @ x / jnp.maximum(count, 1)[:, None], jnp.sum(count > 0)
    squares = member.T @ jnp.square(x - mean[labels])
    variance = jnp.sum(squares, axis=0) / jnp.maximum(len(x) - fitted, 1)
    variance = jnp.broadcast_to(variance, mean.shape)
    if not tied:
        own = squares / jnp.maximum(count - 1, 1)[:, None]
        variance = jnp.where(count[:, None] > 1, own, variance)
    return GaussianGenerator(mean, variance, count / len(x))


@checked
def sample_generator(
    key: PRNGKeyArray, generator: GaussianGenerator, num_samples: int
) -> tuple[Float[Array, "samples features"], Int[Array, "samples"]]:
    """Draws labelled examples: a class by its share, and a point of its Gaussian.

    Args:
        key: of the classes and the points; not one that the data were drawn with.
        generator: from :func:`fit_class_gaussian`.
        num_samples: at least 0.

    Returns:
        Inputs and labels.

    Raises:
        ValueError: ``num_samples`` is negative.

    References:
        Zheng et al., *Toward Understanding Generative Data Augmentation*, NeurIPS 2023, arXiv 2305.17476.
    """
    check_range("num_samples", num_samples, "[0, inf)")
    key_class, key_point = jax.random.split(key)
    labels = jax.random.categorical(key_class, jnp.log(generator.share), shape=[num_samples])
    noise = jax.random.normal(key_point, [num_samples, generator.mean.shape[1]], generator.mean.dtype)
    return generator.mean[labels] + jnp.sqrt(generator.variance)[labels] * noise, labels


@checked
def augment(
    key: PRNGKeyArray,
    inputs: Float[Array, "examples *shape"],
    labels: Int[Array, "examples"],
    generator: GaussianGenerator | Callable[..., tuple[Array, Array]],
    *,
    ratio: float | int,
) -> tuple[Float[Array, "union *shape"], Int[Array, "union"]]:
    """The training set followed by generated examples, all to be weighted alike.

    Args:
        key: of the generated examples.
        inputs: the ``m`` real ones.
        labels: their classes.
        generator: from :func:`fit_class_gaussian`, or any function of a key and a number to as many inputs and labels,
            such as a GAN or a diffusion model trained on the same set.
        ratio: generated examples for each real one, at least 0, a Python number because it decides shapes (paper: up to
            100 for Gaussians, 1 to 20 for images); their number is rounded. At 0 the set is returned as it is.

    Returns:
        Inputs and labels of the union, in the dtypes of the real ones.

    Raises:
        ValueError: ``ratio`` is negative or infinite.

    References:
        Zheng et al., *Toward Understanding Generative Data Augmentation*, NeurIPS 2023, arXiv 2305.17476.
    """
    check_range("ratio", ratio, "[0, inf)")
    inputs, labels = jnp.asarray(inputs), jnp.asarray(labels)
    number = round(ratio * len(inputs))
    if number == 0:
        return inputs, labels
    if isinstance(generator, GaussianGenerator):
        new_inputs, new_labels = sample_generator(key, generator, number)
    else:
        new_inputs, new_labels = generator(key, number)
    return (
        jnp.concatenate([inputs, new_inputs.astype(inputs.dtype)]),
        jnp.concatenate([labels, new_labels.astype(labels.dtype)]),
    )
