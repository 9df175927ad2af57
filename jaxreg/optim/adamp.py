"""Radial projection: momentum that does not blow up weights whose norm has no effect.

A weight followed by a normalization is scale-invariant: only its direction matters, and every gradient is orthogonal to
it, so that each step makes it longer. The longer it is, the less a step turns it. Momentum lengthens it further, since
old gradients are not orthogonal to the present weight. Taking the radial part out of the update undoes just that.
Whether a weight is scale-invariant is read off its gradient. AdamP and SGDP are Adam and SGD with this projection.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxreg.optim.descend import descend
from jaxreg.optim.leaf_sums import leaf_sums
from jaxreg.precision import at_least_float32, widened
from jaxreg.typing import Array, Bool, Float, ScalarLike, ScalarOrSchedule, checked
from jaxreg.validation import check_params, check_range


@checked
def project_radial(
    parameter: Float[Array, "*shape"],
    gradient: Float[Array, "*shape"],
    direction: Float[Array, "*shape"],
    *,
    delta: ScalarLike = 0.1,
    wd_ratio: ScalarLike = 0.1,
    eps: ScalarLike = 1e-8,
    channel_axis: int = -1,
) -> tuple[Float[Array, "*shape"], Float[Array, ""]]:
    r"""Takes the radial part out of a direction, if the gradient says that the weight's norm has no effect.

    The weight is looked at as one vector :math:`w_k` per output channel and then, failing that, as one vector in all.
    With vectors of length :math:`d`, the first of these views in which

    .. math:: \max_k \frac{|\langle g_k, w_k \rangle|}{\|g_k\| \, \|w_k\|} < \frac{\delta}{\sqrt d}

    is projected; if neither passes, and where there are fewer than two axes, nothing happens:

    .. math:: u_k \leftarrow u_k - \hat w_k \langle \hat w_k, u_k \rangle, \qquad \hat w_k = w_k / (\|w_k\| + \epsilon)

    Args:
        parameter: the weight ``w``.
        gradient: ``g``, the raw gradient at ``w``: it decides.
        direction: ``u``, such as Adam's, which is projected.
        delta: ``delta >= 0`` (paper: 0.1); 0 never projects.
        wd_ratio: in [0, 1] (paper: 0.1), factor on the weight decay of projected weights.
        eps: ``epsilon >= 0`` (authors' code: 1e-8).
        channel_axis: axis of the output channels: the last in flax; the authors' PyTorch code has it first.

    Returns:
        The direction, in its own dtype, and the factor on the weight decay: ``wd_ratio`` where projected, else 1.

    Raises:
        ValueError: ``delta``, ``wd_ratio`` or ``eps`` is outside its range.

    References:
        Heo et al., *AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights*, ICLR 2021,
        arXiv 2006.08217.
    """
    check_range("delta", delta, "[0, inf)")
    check_range("wd_ratio", wd_ratio, "[0, 1]")
    check_range("eps", eps, "[0, inf)")
    w, g, u = (at_least_float32(x) for x in (parameter, gradient, direction))
    view = _scale_invariant_view(w, g, delta, channel_axis)
    if view is None:
        return jnp.asarray(direction), jnp.ones([])
    share = _radial_share(w, u, view, eps, channel_axis)
    u, factor = _projected(w, u, view, share, wd_ratio, channel_axis)
    return u.astype(jnp.result_type(direction)), factor


class RadialProjectionState(NamedTuple):
    """State of :func:`radial_projection`.

    Attributes:
        inner_state: state of the wrapped direction, at least float32.
        decay_state: state of the weight decay, which counts steps if it is a schedule.
    """

    inner_state: optax.OptState
    decay_state: optax.OptState


@checked
def radial_projection(
    direction: optax.GradientTransformation,
    *,
    weight_decay: ScalarOrSchedule = 0.0,
    delta: ScalarLike = 0.1,
    wd_ratio: ScalarLike = 0.1,
    eps: ScalarLike = 1e-8,
    channel_axis: int = -1,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Any direction without the part that only lengthens scale-invariant weights, which then also decay less.

    .. math:: u \leftarrow \Pi(u) + \lambda \rho w

    where :math:`\Pi` and :math:`\rho` are :func:`project_radial`'s. The weight decay stands in here because its factor
    depends on the raw gradient: chain nothing but the learning rate behind it. The direction is computed in float32
    for half-precision parameters, and twice on steps on which some weight is projected.

    With ``optax.inject_hyperparams`` give ``static_args=("direction", "channel_axis")``.

    >>> import optax
    >>> from jaxreg.optim import descend, radial_projection
    >>> lionp = descend(radial_projection(optax.scale_by_lion(), weight_decay=0.1), 1e-4)

    Args:
        direction: transformation of gradients into ``u``, such as any ``scale_by_*``.
        weight_decay: ``lambda >= 0``, decoupled, a number or a schedule.
        delta: ``delta >= 0`` (paper: 0.1), see :func:`project_radial`; 0 never projects.
        wd_ratio: in [0, 1] (paper: 0.1), factor on the weight decay of projected weights.
        eps: added to the norms of weights (authors' code: 1e-8).
        channel_axis: axis of the output channels, the last in flax.
        mask: pytree of bools, or a function from parameters to one: which leaves decay. All are projected.

    Returns:
        The transformation; ``update`` needs ``params``. Extra arguments are passed on to ``direction``.

    Raises:
        ValueError: a hyperparameter is outside its range, or ``update`` was not given ``params``.

    References:
        Heo et al., *AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights*, ICLR 2021,
        arXiv 2006.08217.
    """
    check_range("weight_decay", weight_decay, "[0, inf)")
    check_range("delta", delta, "[0, inf)")
    check_range("wd_ratio", wd_ratio, "[0, 1]")
    check_range("eps", eps, "[0, inf)")
    direction = optax.with_extra_args_support(direction)
    decay = optax.add_decayed_weights(weight_decay, mask)

    def init(params):
        wide = widened(params)
        return RadialProjectionState(direction.init(wide), decay.init(wide))

    def update(updates, state, params=None, **extra_args):
        check_params(params)
        params, gradients = widened((params, updates))
        weights, structure = jax.tree.flatten(params)
        views = [
            _scale_invariant_view(w, g, delta, channel_axis)
            for w, g in zip(weights, structure.flatten_up_to(gradients), strict=True)
        ]

        def shares():
            directions, _ = direction.update(gradients, state.inner_state, params, **extra_args)
            directions = structure.flatten_up_to(directions)
            return True, [
                None if view is None else _radial_share(w, u, view, eps, channel_axis)
                for w, u, view in zip(weights, directions, views, strict=True)
            ]

        def no_shares():
            return True, [None if view is None else jnp.zeros_like(view.square) for view in views]

        # A direction that is needed in two places XLA would store, whether it is projected or not: so it is computed
        # twice, the first time only where something is projected. The second waits for a flag, which is always set, so
        # that the new state can be written over the old one, which the first has read.
        some = functools.reduce(jnp.logical_or, [view.invariant for view in views if view is not None], False)
        done, found = jax.lax.cond(some, shares, no_shares)
        gradients = jax.tree.map(lambda g: jnp.where(done, g, 0.0), gradients)
        directions, inner_state = direction.update(gradients, state.inner_state, params, **extra_args)
        pairs = structure.unflatten(
            (u, 1.0) if view is None else _projected(w, u, view, share, wd_ratio, channel_axis)
            for w, u, view, share in zip(weights, structure.flatten_up_to(directions), views, found, strict=True)
        )
        projected = jax.tree.map(lambda _, pair: pair[0], updates, pairs)
        # The factor goes to the parameters that decay, which leaves mask and schedule to optax.
        decaying = jax.tree.map(lambda p, pair: pair[1] * p, params, pairs)
        descent, decay_state = decay.update(projected, state.decay_state, decaying)
        descent = optax.tree.cast_like(descent, updates)
        return descent, RadialProjectionState(inner_state, decay_state)

    return optax.GradientTransformationExtraArgs(init, update)


@checked
def adamp(
    learning_rate: ScalarOrSchedule,
    *,
    b1: ScalarLike = 0.9,
    b2: ScalarLike = 0.999,
    eps: ScalarLike = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    delta: ScalarLike = 0.1,
    wd_ratio: ScalarLike = 0.1,
    nesterov: bool = False,
    channel_axis: int = -1,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""AdamP: AdamW with :func:`radial_projection`.

    .. math:: \Delta w = -\eta \, \bigl(\Pi(\hat m / (\sqrt{\hat v} + \epsilon)) + \lambda \rho w\bigr)

    >>> import jax, jax.numpy as jnp, optax
    >>> from jaxreg.optim import adamp
    >>> optimizer = adamp(0.1, weight_decay=1e-3)
    >>> params = {"kernel": jnp.eye(3), "bias": jnp.ones(3)}
    >>> state = optimizer.init(params)
    >>> step = jax.jit(lambda params, state: optimizer.update(params, state, params))
    >>> for _ in range(100):
    ...     updates, state = step(params, state)
    ...     params = optax.apply_updates(params, updates)
    >>> bool(jnp.all(jnp.abs(params["bias"]) < 0.1))
    True

    Args:
        learning_rate: ``eta``, a positive number or an optax schedule (paper: 1e-3).
        b1: ``beta_1`` in [0, 1) (paper: 0.9).
        b2: ``beta_2`` in [0, 1) (paper: 0.999).
        eps: ``epsilon >= 0`` (authors' code: 1e-8), of Adam and of the projection.
        weight_decay: ``lambda >= 0``, decoupled as in :func:`optax.adamw`, a number or a schedule (paper: 1e-4 to 1e-2
            on images).
        delta: ``delta >= 0`` (paper: 0.1), see :func:`project_radial`; at 0 it is :func:`optax.adamw`.
        wd_ratio: in [0, 1] (paper: 0.1), ``rho`` where projected, factor on the weight decay.
        nesterov: Nesterov momentum, corrected for its bias as in :func:`optax.adamw`; the authors' code divides the
            momentum's share by the present step's correction instead of the next one's.
        channel_axis: axis of the output channels, the last in flax; static under ``optax.inject_hyperparams``.
        mask: pytree of bools, or a function from parameters to one: which leaves decay.

    Returns:
        An optax optimizer; ``update`` needs ``params``.

    Raises:
        ValueError: a hyperparameter is outside its range, or ``update`` was not given ``params``.

    References:
        Heo et al., *AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights*, ICLR 2021,
        arXiv 2006.08217.
    """
    check_range("b1", b1, "[0, 1)")
    check_range("b2", b2, "[0, 1)")
    return descend(
        radial_projection(
            optax.scale_by_adam(b1=b1, b2=b2, eps=eps, nesterov=nesterov),
            weight_decay=weight_decay,
            delta=delta,
            wd_ratio=wd_ratio,
            eps=eps,
            channel_axis=channel_axis,
            mask=mask,
        ),
        learning_rate,
    )


@checked
def sgdp(
    learning_rate: ScalarOrSchedule,
    *,
    momentum: ScalarLike = 0.9,
    dampening: ScalarLike = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    delta: ScalarLike = 0.1,
    wd_ratio: ScalarLike = 0.1,
    nesterov: bool = False,
    eps: ScalarLike = 1e-8,
    channel_axis: int = -1,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""SGDP: SGD with momentum and :func:`radial_projection`.

    .. math::
        m \leftarrow \mu m + (1 - \tau) g, \qquad
        \Delta w = -\eta \, \Bigl(\Pi(m) + \frac{\lambda}{1 - \mu} \rho w\Bigr)

    The weight decay is decoupled; divided by :math:`1 - \mu` it is as strong as one that goes through the momentum.

    Args:
        learning_rate: ``eta``, a positive number or an optax schedule (paper: 0.1).
        momentum: ``mu`` in [0, 1) (paper: 0.9).
        dampening: ``tau`` in [0, 1] (paper: 0).
        weight_decay: ``lambda >= 0``, a number or a schedule (paper: 1e-4 on ImageNet).
        delta: ``delta >= 0`` (paper: 0.1), see :func:`project_radial`; at 0 it is SGD.
        wd_ratio: in [0, 1] (paper: 0.1), ``rho`` where projected, factor on the weight decay.
        nesterov: project ``g + mu m`` instead of ``m``.
        eps: ``epsilon >= 0`` (authors' code: 1e-8), added to the norms of weights.
        channel_axis: axis of the output channels, the last in flax; static under ``optax.inject_hyperparams``.
        mask: pytree of bools, or a function from parameters to one: which leaves decay.

    Returns:
        An optax optimizer; ``update`` needs ``params``.

    Raises:
        ValueError: a hyperparameter is outside its range, or ``update`` was not given ``params``.

    References:
        Heo et al., *AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights*, ICLR 2021,
        arXiv 2006.08217.
    """
    check_range("momentum", momentum, "[0, 1)")
    check_range("dampening", dampening, "[0, 1]")
    check_range("weight_decay", weight_decay, "[0, inf)")

    def scheduled(step):
        return weight_decay(step) / (1 - momentum)

    return descend(
        radial_projection(
            _momentum(momentum, dampening, nesterov),
            weight_decay=scheduled if callable(weight_decay) else weight_decay / (1 - momentum),
            delta=delta,
            wd_ratio=wd_ratio,
            eps=eps,
            channel_axis=channel_axis,
            mask=mask,
        ),
        learning_rate,
    )


def _momentum(decay, dampening, nesterov):
    """As ``optax.trace``, which knows no dampening."""

    def update(updates, state, params=None):
        del params
        trace = jax.tree.map(lambda g, m: decay * m + (1 - dampening) * g, updates, state.trace)
        directions = jax.tree.map(lambda g, m: g + decay * m, updates, trace) if nesterov else trace
        return directions, optax.TraceState(trace)

    return optax.GradientTransformation(lambda params: optax.TraceState(optax.tree.zeros_like(params)), update)


class _View(NamedTuple):
    """What a gradient says of a weight.

    Attributes:
        invariant: whether some view passes.
        channelwise: whether it is the one vector per channel.
        square: the squared length of each channel's vector, or of the one vector for every channel.
    """

    invariant: Bool[Array, ""]
    channelwise: Bool[Array, ""]
    square: Float[Array, "channels"]


@functools.partial(jax.jit, static_argnums=3)
def _scale_invariant_view(w, g, delta, channel_axis):
    """The view to project; None where there are fewer than two axes."""
    if w.ndim < 2 or w.size == 0:
        return None
    channels = w.shape[channel_axis]
    # A sum over all is the sum of the channels': one pass serves both views.
    sums = jnp.stack(leaf_sums(lambda g, w: (g * w, g * g, w * w), g, w, keep_axis=channel_axis))
    total = jnp.sum(sums, axis=1, keepdims=True)

    def passes(view, width):
        gw, gg, ww = view
        # Not the root of the product, which would underflow. A vector that is zero is orthogonal to all.
        norms = jnp.sqrt(gg) * jnp.sqrt(ww)
        cosine = jnp.abs(gw) / jnp.where(norms > 0, norms, 1.0)
        return jnp.max(cosine) < delta / math.sqrt(width)

    channelwise = passes(sums, w.size // channels)
    return _View(channelwise | passes(total, w.size), channelwise, jnp.where(channelwise, sums[2], total[2]))


@functools.partial(jax.jit, static_argnums=4)
def _radial_share(w, u, view, eps, channel_axis):
    """The multiple of each channel's weight that its direction contains; zero where nothing is projected."""
    (wu,) = leaf_sums(lambda w, u: (w * u,), w, u, keep_axis=channel_axis)
    wu = jnp.where(view.channelwise, wu, jnp.sum(wu))
    length = jnp.sqrt(view.square) + eps
    share = jnp.where(view.square > 0, wu / jnp.where(view.square > 0, jnp.square(length), 1.0), 0.0)
    return jnp.where(view.invariant, share, 0.0).astype(view.square.dtype)


@functools.partial(jax.jit, static_argnums=5)
def _projected(w, u, view, share, wd_ratio, channel_axis):
    """The direction without its share of the weight, and the factor on the weight decay."""
    share = jnp.expand_dims(share, [axis for axis in range(w.ndim) if axis != channel_axis % w.ndim])
    return u - share * w, jnp.where(view.invariant, wd_ratio, 1.0)
