r"""PowerNorm: normalization by a running quadratic mean.

The statistics of text vary so much from batch to batch that batch normalization trains poorly on it. PowerNorm (1)
does not center and divides by the root of the quadratic mean, which varies less than the variance, (2) divides by its
running mean, in training as in evaluation, and (3) replaces what a batch's own statistic would contribute to the
gradient by a running mean, too.

The third is an average over backward passes, and a backward pass cannot write state. So the running mean ``nu`` is an
argument of :func:`power_norm` whose *cotangent is the new running mean*. In :class:`PowerNorm` it is the collection
``backward_stats``: differentiate the loss with respect to it as well, and let :func:`keep_backward_stats` put the
"gradient" in its place.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Bool, Float, ScalarLike, checked
from jaxreg.validation import check_range


@checked
def power_norm(
    x: Float[Array, "*batch channels"],
    gamma: Float[Array, "channels"],
    beta: Float[Array, "channels"],
    psi2: Float[Array, "channels"],
    nu: Float[Array, "channels"],
    *,
    use_running: bool | Bool[Array, ""],
    alpha_bwd: ScalarLike = 0.9,
    epsilon: ScalarLike = 1e-5,
    mask: Bool[Array, "*batch"] | None = None,
) -> tuple[Float[Array, "*batch channels"], Float[Array, "channels"]]:
    r"""PowerNorm in training, with its own backward pass.

    Forward, with :math:`\psi_B^2` the mean of :math:`x^2` over the valid tokens:

    .. math::
        z = x / \sqrt{s + \epsilon}, \qquad y = \gamma z + \beta, \qquad
        s = \psi^2 \text{ if running, else } \psi_B^2

    Backward, for the cotangent :math:`\dot y`, means again over the valid tokens and no gradient through :math:`s`:

    .. math::
        g = \gamma \dot y, \qquad \dot x = (g - \nu z) / \sqrt{s + \epsilon}, \qquad
        \nu \leftarrow \nu + (1 - \alpha)\, \overline{(g - \nu z) z}

    The last line is what ``jax.grad`` returns as the gradient with respect to ``nu``: the new ``nu``, not a direction.
    So use each ``nu`` once, and keep it away from optimizers and gradient clipping. With :math:`s = \psi_B^2` and
    :math:`\nu = \overline{g z}` the gradient is exactly that of :func:`power_norm_v`.

    Args:
        x: tokens, after :func:`group_scaling` (paper).
        gamma: learnt scale.
        beta: learnt shift.
        psi2: running quadratic mean ``psi^2``, see :func:`update_psi2`.
        nu: running mean of the backward pass, at first zero. It scales with the loss.
        use_running: whether to divide by the running mean or, early in training, by the batch's.
        alpha_bwd: ``alpha`` in [0, 1), memory of ``nu`` (paper: 0.9).
        epsilon: > 0 (authors' code: 1e-5).
        mask: which tokens are valid; all by default. Others are normalized too, but add to no mean, and where their
            cotangent is zero they get no gradient.

    Returns:
        ``y`` in the dtype of ``x``, and the batch's quadratic mean ``psi_B^2``, at least float32 and without gradient;
        zero if no token is valid.

    Raises:
        ValueError: ``alpha_bwd`` or ``epsilon`` is outside its range.

    References:
        Shen et al., *PowerNorm: Rethinking Batch Normalization in Transformers*, ICML 2020, arXiv 2003.07845. The
        authors' code divides by the batch's quadratic mean in the backward pass, and averages over padding there; we
        divide by what the forward pass divided by, and average over valid tokens.
    """
    check_range("alpha_bwd", alpha_bwd, "[0, 1)")
    check_range("epsilon", epsilon, "(0, inf)")
    valid = jnp.ones(x.shape[:-1], bool) if mask is None else jnp.asarray(mask)
    batch_psi2 = jax.lax.stop_gradient(_mean(jnp.square(at_least_float32(x)), valid))
    s = jax.lax.stop_gradient(jnp.where(use_running, psi2, batch_psi2))
    inverse_root = jax.lax.rsqrt(s + epsilon)
    z = _normalize(at_least_float32(x), inverse_root, at_least_float32(nu), 1 - jnp.asarray(alpha_bwd), valid)
    return (gamma * z + beta).astype(x.dtype), batch_psi2


@jax.custom_vjp
def _normalize(x, inverse_root, nu, rate, valid):
    """``z``. The gain is applied outside: what its backward pass hands in is ``g``."""
    return x * inverse_root


def _normalize_forward(x, inverse_root, nu, rate, valid):
    z = x * inverse_root
    return z, (z, inverse_root, nu, rate, valid)


def _normalize_backward(residuals, g):
    z, inverse_root, nu, rate, valid = residuals
    # Padding does not take part, or its content would reach the gradients of the layers below.
    corrected = jnp.where(valid[..., None], g - nu * z, g)
    new_nu = nu + rate * _mean(corrected * z, valid)
    return corrected * inverse_root, None, new_nu, None, None


_normalize.defvjp(_normalize_forward, _normalize_backward)


@checked
def update_psi2(
    psi2: Float[Array, "channels"],
    batch_psi2: Float[Array, "channels"],
    count: ScalarLike,
    *,
    warmup_steps: ScalarLike,
    alpha_fwd: ScalarLike = 0.9,
) -> Float[Array, "channels"]:
    r"""The running quadratic mean after a batch: at first the mean of all batches, then an exponential one.

    .. math::
        \psi^2 &\leftarrow \tfrac{k-1}{k} \psi^2 + \tfrac1k \psi_B^2 \quad\text{if } k < W \\
        \psi^2 &\leftarrow \alpha \psi^2 + (1 - \alpha) \psi_B^2 \quad\text{always}

    Args:
        psi2: ``psi^2`` so far, at first one.
        batch_psi2: ``psi_B^2`` from :func:`power_norm`.
        count: ``k``, which batch this is, from 1.
        warmup_steps: ``W >= 0`` (authors' code: 10,000).
        alpha_fwd: ``alpha`` in [0, 1), memory of the running mean (paper: 0.9).

    Returns:
        The new running quadratic mean.

    Raises:
        ValueError: ``warmup_steps`` or ``alpha_fwd`` is outside its range.

    References:
        Shen et al., *PowerNorm: Rethinking Batch Normalization in Transformers*, ICML 2020, arXiv 2003.07845.
    """
    check_range("warmup_steps", warmup_steps, "[0, inf)")
    check_range("alpha_fwd", alpha_fwd, "[0, 1)")
    k = jnp.asarray(count)
    mean = psi2 + (batch_psi2 - psi2) / jnp.maximum(k, 1)
    psi2 = jnp.where(k < warmup_steps, mean, psi2)
    return alpha_fwd * psi2 + (1 - alpha_fwd) * batch_psi2


@checked
def group_scaling(
    x: Float[Array, "*batch channels"], groups: int = 1, *, epsilon: ScalarLike = 1e-5
) -> Float[Array, "*batch channels"]:
    r"""Divides every token by the root of its quadratic mean over channels, group by group: RMSNorm without a gain.

    .. math:: x / \sqrt{\overline{x^2} + \epsilon}

    Args:
        x: tokens.
        groups: into how many groups of neighbours the channels are split.
        epsilon: > 0 (authors' code: 1e-5).

    Returns:
        The scaled tokens, in the dtype of ``x``.

    Raises:
        ValueError: ``groups`` does not divide the number of channels, or ``epsilon`` is not positive.

    References:
        Shen et al., *PowerNorm: Rethinking Batch Normalization in Transformers*, ICML 2020, arXiv 2003.07845.
    """
    check_range("epsilon", epsilon, "(0, inf)")
    if groups < 1 or x.shape[-1] % groups:
        raise ValueError(f"groups must divide the {x.shape[-1]} channels, got {groups}")
    grouped = at_least_float32(x).reshape(*x.shape[:-1], groups, -1)
    scaled = grouped * jax.lax.rsqrt(jnp.mean(jnp.square(grouped), axis=-1, keepdims=True) + epsilon)
    return scaled.reshape(x.shape).astype(x.dtype)


@checked
def power_norm_v(
    x: Float[Array, "*batch channels"],
    gamma: Float[Array, "channels"],
    beta: Float[Array, "channels"],
    *,
    epsilon: ScalarLike = 1e-5,
    mask: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch channels"]:
    r"""PN-V: division by the batch's own quadratic mean, through which the gradient flows as usual.

    .. math:: y = \gamma\, x / \sqrt{\psi_B^2 + \epsilon} + \beta

    Args:
        x: tokens.
        gamma: learnt scale.
        beta: learnt shift.
        epsilon: > 0.
        mask: which tokens are valid; all by default.

    Returns:
        ``y`` in the dtype of ``x``.

    Raises:
        ValueError: ``epsilon`` is not positive.

    References:
        Shen et al., *PowerNorm: Rethinking Batch Normalization in Transformers*, ICML 2020, arXiv 2003.07845.
    """
    check_range("epsilon", epsilon, "(0, inf)")
    valid = jnp.ones(x.shape[:-1], bool) if mask is None else jnp.asarray(mask)
    wide = at_least_float32(x)
    return (gamma * wide * jax.lax.rsqrt(_mean(jnp.square(wide), valid) + epsilon) + beta).astype(x.dtype)


class PowerNorm(nn.Module):
    """PowerNorm with its group scaling, running means, scale and shift.

    The collection ``batch_stats`` holds ``psi2`` and ``count``, which a training step returns as for batch
    normalization; the collection ``backward_stats`` holds ``nu``, which comes back as a gradient:

    >>> import jax, jax.numpy as jnp, optax
    >>> from jaxreg.layers import PowerNorm, keep_backward_stats
    >>> layer, x = PowerNorm(warmup_steps=1000), jax.random.normal(jax.random.key(0), [32, 4])
    >>> variables = layer.init(jax.random.key(0), x, use_running_average=False)
    >>> stats, trained = variables.pop("batch_stats"), variables  # params and backward_stats
    >>> optimizer = keep_backward_stats(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)))
    >>> state = optimizer.init(trained)
    >>> def loss(trained, stats):
    ...     y, new = layer.apply({**trained, "batch_stats": stats}, x, use_running_average=False, mutable="batch_stats")
    ...     return jnp.mean((y - 1) ** 2), new["batch_stats"]
    >>> gradients, stats = jax.grad(loss, has_aux=True)(trained, stats)
    >>> updates, state = optimizer.update(gradients, state, trained)
    >>> trained = optax.apply_updates(trained, updates)

    Call each instance once in a training step: with two, the gradient with respect to ``nu`` would be the sum of two
    new ``nu``.

    Attributes:
        warmup_steps: training steps that divide by the batch's quadratic mean (authors' code: 10,000 of some hundred
            thousand; a tenth of the steps is reasonable).
        groups: of the group scaling (authors' code: 1); 0 for no scaling.
        alpha_fwd: see :func:`update_psi2`.
        alpha_bwd: see :func:`power_norm`.
        epsilon: see :func:`power_norm`.
        use_running_average: whether to evaluate; either here or when called, as in :class:`flax.linen.BatchNorm`.

    References:
        Shen et al., *PowerNorm: Rethinking Batch Normalization in Transformers*, ICML 2020, arXiv 2003.07845.
    """

    warmup_steps: ScalarLike
    groups: int = 1
    alpha_fwd: ScalarLike = 0.9
    alpha_bwd: ScalarLike = 0.9
    epsilon: ScalarLike = 1e-5
    use_running_average: bool | None = None

    @nn.compact
    @checked
    def __call__(
        self,
        x: Float[Array, "*batch channels"],
        *,
        mask: Bool[Array, "*batch"] | None = None,
        use_running_average: bool | None = None,
    ) -> Float[Array, "*batch channels"]:
        """Normalizes, and in training updates ``batch_stats``, unless no token is valid.

        Args:
            x: tokens.
            mask: which tokens are valid in training; all by default.
            use_running_average: True to evaluate, False to train.

        Returns:
            The normalized tokens, in the dtype of ``x``.
        """
        evaluate = nn.merge_param("use_running_average", self.use_running_average, use_running_average)
        channels = x.shape[-1]
        gamma = self.param("scale", nn.initializers.ones, (channels,))
        beta = self.param("bias", nn.initializers.zeros, (channels,))
        psi2 = self.variable("batch_stats", "psi2", jnp.ones, (channels,))
        count = self.variable("batch_stats", "count", jnp.zeros, (), jnp.int32)
        nu = self.variable("backward_stats", "nu", jnp.zeros, (channels,))
        if self.groups:
            x = group_scaling(x, self.groups, epsilon=self.epsilon)
        if evaluate:
            z = at_least_float32(x) * jax.lax.rsqrt(psi2.value + self.epsilon)
            return (gamma * z + beta).astype(x.dtype)
        k = count.value + 1
        y, batch_psi2 = power_norm(
            x,
            gamma,
            beta,
            psi2.value,
            nu.value,
            use_running=k > self.warmup_steps,
            alpha_bwd=self.alpha_bwd,
            epsilon=self.epsilon,
            mask=mask,
        )
        if not self.is_initializing():
            any_valid = True if mask is None else jnp.any(jnp.asarray(mask))
            new_psi2 = update_psi2(psi2.value, batch_psi2, k, warmup_steps=self.warmup_steps, alpha_fwd=self.alpha_fwd)
            psi2.value = jnp.where(any_valid, new_psi2, psi2.value)
            count.value = jnp.where(any_valid, k, count.value)
        return y


@checked
def keep_backward_stats(
    optimizer: optax.GradientTransformation, collection: str = "backward_stats"
) -> optax.GradientTransformationExtraArgs:
    """An optimizer for the parameters, and for the statistics of :class:`PowerNorm` that come back as gradients.

    It takes a dictionary of collections, as flax's ``init`` returns it. What is in ``collection`` is replaced by its
    gradient; all other collections are left to ``optimizer``, which does not see it.

    Args:
        optimizer: for the other collections, gradient clipping included.
        collection: the name of the collection.

    Returns:
        An optimizer of both; ``update`` needs ``params``.
    """

    def labels(variables: Any):
        return {
            name: jax.tree.map(lambda _, kept=name == collection: "kept" if kept else "optimized", tree)
            for name, tree in variables.items()
        }

    replace = optax.stateless(lambda new, old: jax.tree.map(jnp.subtract, new, old))
    return optax.partition({"kept": replace, "optimized": optimizer}, labels)


def _mean(values, valid):
    """Of each channel over the valid tokens; zero if there are none."""
    weights = valid.astype(values.dtype)
    axes = tuple(range(valid.ndim))
    return jnp.sum(values * weights[..., None], axis=axes) / jnp.maximum(jnp.sum(weights), 1)
