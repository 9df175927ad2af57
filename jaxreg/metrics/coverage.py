"""What several attempts are worth: pass@N, estimated or exact, and the policy that is best for it."""

import jax.numpy as jnp

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, Int, ScalarLike, checked
from jaxreg.validation import check_range


@checked
def pass_at_n(
    num_samples: int | Int[Array, "*batch"], num_correct: Int[Array, "*batch"], *, n: int
) -> Float[Array, "*batch"]:
    r"""The unbiased estimate of pass@N: the chance that one of N draws is right, from a larger sample.

    .. math:: 1 - \binom{s - c}{N} \Big/ \binom{s}{N}

    >>> import jax.numpy as jnp
    >>> from jaxreg.metrics import pass_at_n
    >>> [round(float(p), 3) for p in pass_at_n(10, jnp.array([0, 1, 9]), n=2)]
    [0.0, 0.2, 1.0]

    Args:
        num_samples: ``s``, answers drawn for each problem.
        num_correct: ``c``, of them right.
        n: ``N >= 1``, draws that the estimate is for.

    Returns:
        The estimate for each problem in [0, 1]; NaN where fewer than ``n`` were drawn.

    Raises:
        ValueError: ``n`` is below 1.

    References:
        Chen et al., *Evaluating Large Language Models Trained on Code*, arXiv 2107.03374.
    """
    check_range("n", n, "[1, inf)")
    samples, correct = (jnp.asarray(count)[..., None] for count in (num_samples, num_correct))
    draws = jnp.arange(n)
    # A product of ratios: the binomials themselves overflow.
    all_wrong = jnp.prod(jnp.maximum(samples - correct - draws, 0) / jnp.maximum(samples - draws, 1), axis=-1)
    return jnp.where(samples[..., 0] >= n, 1.0 - all_wrong, jnp.nan)


@checked
def coverage(probability: Float[Array, "*batch"], *, n: ScalarLike) -> Float[Array, "*batch"]:
    r"""The chance that one of N independent draws is right, where the chance of one is known.

    .. math:: 1 - (1 - p)^N

    Args:
        probability: ``p``, in [0, 1].
        n: ``N >= 1``, draws.

    Returns:
        The chance, exact also where it is tiny.

    Raises:
        ValueError: ``n`` is below 1.

    References:
        Chen et al., *Rethinking Fine-Tuning when Scaling Test-Time Compute: Limiting Confidence Improves Mathematical
        Reasoning*, arXiv 2502.07154.
    """
    check_range("n", n, "[1, inf)")
    return -jnp.expm1(n * jnp.log1p(-at_least_float32(probability)))


@checked
def optimal_coverage_policy(
    probabilities: Float[Array, "*batch classes"], *, n: ScalarLike
) -> Float[Array, "*batch classes"]:
    r"""The distribution to draw answers from, if one of N draws has to be right.

    .. math::
        p_k = \max\Bigl(0,\; 1 - \frac{(|A| - 1)\, q_k^{-1 / (N - 1)}}{\sum_{j \in A} q_j^{-1 / (N - 1)}}\Bigr)

    with ``A`` the answers that get any probability. It maximises the expected coverage
    :math:`\sum_k q_k (1 - (1 - p_k)^N)`. The more draws, the closer to uniform on ``A``: no answer should be trusted
    fully, however likely, unless it is certain.

    >>> import jax.numpy as jnp
    >>> from jaxreg.metrics import optimal_coverage_policy
    >>> [round(float(p), 4) for p in optimal_coverage_policy(jnp.array([0.5, 0.3, 0.2]), n=4)]
    [0.4355, 0.3307, 0.2338]

    Args:
        probabilities: ``q``, that each answer is the right one.
        n: ``N > 1``, draws. With one draw it would be the likeliest answer alone.

    Returns:
        The policy ``p`` of each example, at least float32.

    Raises:
        ValueError: ``n`` is not above 1.

    References:
        Chen et al., arXiv 2502.07154.
    """
    check_range("n", n, "(1, inf)")
    q = at_least_float32(probabilities)
    ratios = jnp.max(q, axis=-1, keepdims=True) / jnp.maximum(q, jnp.finfo(q.dtype).tiny)
    # Relative to the likeliest answer, and bounded: an answer this rare is never drawn anyway.
    weights = jnp.exp(jnp.where(q <= 0, 60.0, jnp.minimum(jnp.log(ratios) / (n - 1), 60.0)))
    ascending = jnp.sort(weights, axis=-1)
    scales = jnp.arange(q.shape[-1]) / jnp.cumsum(ascending, axis=-1)
    # The likeliest k answers are all drawn if the rarest of them still is.
    size = jnp.max(jnp.where(scales * ascending < 1, jnp.arange(1, q.shape[-1] + 1), 1), axis=-1, keepdims=True)
    scale = jnp.take_along_axis(scales, size - 1, axis=-1)
    return jnp.where(q <= 0, 0.0, jnp.maximum(1.0 - scale * weights, 0.0))
