"""Error feedback: descent on compressed gradients that still ends where descent on full ones does.

Every client compresses what it sends. What compression leaves out must not be lost: EF14 adds it to the next gradient;
EF21 instead sends the compressed *change* of the gradient, so that an estimate kept on both sides catches up; EControl
does both and controls how much of the error returns at a time.

Each method is an optax transformation, written for one client, that replaces the client's own gradient by the shared
estimate of the mean gradient. Put any optimizer behind it:

>>> import jax.numpy as jnp, optax
>>> from jaxreg.distributed import econtrol, stacked
>>> from jaxreg.optim import topk
>>> method = econtrol(compressor=topk(1), eta=0.5)
>>> optimizer = optax.chain(stacked(method, clients=2), optax.sgd(0.1))
>>> params = jnp.zeros(3)
>>> updates, state = optimizer.update(jnp.array([[1.0, 2.0, 0.0], [3.0, 0.0, 1.0]]), optimizer.init(params), params)
>>> bool(jnp.allclose(updates, jnp.array([-0.15, -0.1, 0.0])))
True

Three ways to run the same code:

- one device plays all clients: :func:`stacked`, gradients ``[clients, ...]``;
- `pmap` with ``axis_name="clients"``, or any other place that binds the axis: the bare method, gradients ``[...]``;
- `shard_map` over a mesh axis ``"devices"``, with one or more clients on each: ``method`` made with
  ``axis_name=("devices", "clients")`` and :func:`stacked` as above over the clients of a device. In and out specs of
  the state, which :func:`stacked` for all clients starts, are ``ErrorFeedbackState(P(), P(), P("devices"),
  P("devices"))``. The update is the same on all devices, but `shard_map` cannot know that of gathered messages: give
  it ``check_vma=False``, or it also sums the clients' gradients of replicated parameters before anyone compresses them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from jaxreg.distributed import collectives
from jaxreg.optim.compression import Compressor
from jaxreg.precision import widened
from jaxreg.typing import Array, Float, Int, ScalarLike, checked
from jaxreg.validation import check_range


class ErrorFeedbackState(NamedTuple):
    """State of the error feedback methods. Vectors are raveled trees, at least float32; None what a method lacks.

    Attributes:
        count: rounds so far. The same for all clients.
        average: mean of the clients' estimates, as everybody knows it. The same for all clients.
        error: ``e``, what this client has not been able to send yet.
        estimate: ``h``, what the others know of this client's gradient.
    """

    count: Int[Array, ""]
    average: Float[Array, "size"] | None
    error: Float[Array, "*clients size"] | None
    estimate: Float[Array, "*clients size"] | None


_PER_CLIENT = ErrorFeedbackState(count=None, average=None, error=0, estimate=0)


@checked
def econtrol(
    *, compressor: Compressor, eta: ScalarLike, axis_name: collectives.AxisName = "clients", seed: ScalarLike = 0
) -> optax.GradientTransformation:
    r"""EControl: error feedback whose strength is controlled.

    .. math::
        \Delta_i &= C(\eta e_i + g_i - h_i) \\
        e_i &\leftarrow e_i + g_i - h_i - \Delta_i, \qquad h_i \leftarrow h_i + \Delta_i \\
        u &= \tfrac1n \textstyle\sum_i h_i

    with :math:`e_i = h_i = 0` at first. Only :math:`\Delta_i` is sent; the mean of the :math:`h_i` is updated from it.

    Args:
        compressor: ``C``, a contraction such as :func:`~jaxreg.optim.topk`.
        eta: in [0, 1], the strength of the feedback. 0 is EF21. The theory wants it proportional to the contraction
            ``delta``; on quadratics it is stable up to about ``2 * delta``.
        axis_name: the axis of the clients.
        seed: of the compressor's randomness, the same on all clients.

    Returns:
        An optax transformation from a client's gradient ``g_i`` to ``u``, the same on all clients.

    Raises:
        ValueError: ``eta`` is outside [0, 1].

    References:
        Gao et al., *EControl: Fast Distributed Optimization with Compression and Error Control*, ICLR 2024,
        arXiv 2311.05645.
    """
    check_range("eta", eta, "[0, 1]")
    return _method(compressor, axis_name, seed, eta=eta)


@checked
def ef14(
    *, compressor: Compressor, axis_name: collectives.AxisName = "clients", seed: ScalarLike = 0
) -> optax.GradientTransformation:
    r"""EF14, the first error feedback: what was not sent joins the next gradient.

    .. math::
        \Delta_i = C(e_i + g_i), \qquad e_i \leftarrow e_i + g_i - \Delta_i, \qquad
        u = \tfrac1n \textstyle\sum_i \Delta_i

    The error is in units of gradients. Under a learning rate that changes this differs from an error in units of
    updates, which Seide et al. keep.

    Args:
        compressor: ``C``, a contraction.
        axis_name: the axis of the clients.
        seed: of the compressor's randomness, the same on all clients.

    Returns:
        An optax transformation from a client's gradient ``g_i`` to ``u``, the same on all clients.

    References:
        Seide et al., *1-Bit Stochastic Gradient Descent and its Application to Data-Parallel Distributed Training of
        Speech DNNs*, Interspeech 2014.
    """
    return _method(compressor, axis_name, seed, eta=1.0, keep_estimate=False)


@checked
def ef21(
    *, compressor: Compressor, axis_name: collectives.AxisName = "clients", seed: ScalarLike = 0
) -> optax.GradientTransformation:
    r"""EF21: what is sent is the compressed change of the gradient.

    .. math:: h_i \leftarrow h_i + C(g_i - h_i), \qquad u = \tfrac1n \textstyle\sum_i h_i

    Args:
        compressor: ``C``, a contraction.
        axis_name: the axis of the clients.
        seed: of the compressor's randomness, the same on all clients.

    Returns:
        An optax transformation from a client's gradient ``g_i`` to ``u``, the same on all clients.

    References:
        Richtárik et al., *EF21: A New, Simpler, Theoretically Better, and Practically Faster Error Feedback*,
        NeurIPS 2021, arXiv 2106.05203.
    """
    return _method(compressor, axis_name, seed, keep_error=False)


@checked
def ef21_w(
    *,
    compressor: Compressor,
    weights: Float[Array, "clients"],
    axis_name: collectives.AxisName = "clients",
    seed: ScalarLike = 0,
) -> optax.GradientTransformation:
    r"""EF21-W: clients whose gradients change quickly get more weight, on a gradient that is scaled down.

    .. math::
        h_i \leftarrow h_i + C\Bigl(\frac{g_i}{n w_i} - h_i\Bigr), \qquad u = \textstyle\sum_i w_i h_i

    If ``C`` is positively homogeneous, as top-k is, the iterates are those of EF21: then it is the analysis, and with
    it the step size (:func:`ef21_stepsize`), that improves.

    Args:
        compressor: ``C``, a contraction.
        weights: ``w``, positive with sum 1 (paper: :func:`ef21_weights`), the same on all clients.
        axis_name: the axis of the clients.
        seed: of the compressor's randomness, the same on all clients.

    Returns:
        An optax transformation from a client's gradient ``g_i`` to ``u``, the same on all clients.

    Raises:
        ValueError: on ``update``, if there are not as many weights as clients.

    References:
        Richtárik et al., *Error Feedback Reloaded: From Quadratic to Arithmetic Mean of Smoothness Constants*,
        ICLR 2024, arXiv 2402.10774.
    """
    return _method(compressor, axis_name, seed, keep_error=False, weights=weights)


@checked
def ef21_sgd(
    *,
    compressor: Compressor,
    weights: Float[Array, "clients"] | None = None,
    axis_name: collectives.AxisName = "clients",
    seed: ScalarLike = 0,
) -> optax.GradientTransformation:
    r"""EF21-SGD and EF21-W-SGD: EF21 on stochastic gradients.

    The step is that of :func:`ef21` (without weights) or :func:`ef21_w`, with the gradient of a mini-batch in place of
    the client's full gradient; only the step size of the theory differs. As the noise of ``g_i`` does not shrink, nor
    does the distance of ``h_i`` from the gradient: prefer :func:`econtrol` where noise is what limits.

    Args:
        compressor: ``C``, a contraction.
        weights: ``w``, see :func:`ef21_w`; None for equal ones.
        axis_name: the axis of the clients.
        seed: of the compressor's randomness, the same on all clients.

    Returns:
        An optax transformation from a client's stochastic gradient to ``u``, the same on all clients.

    Raises:
        ValueError: on ``update``, if there are not as many weights as clients.

    References:
        Richtárik et al., *Error Feedback Reloaded: From Quadratic to Arithmetic Mean of Smoothness Constants*,
        ICLR 2024, arXiv 2402.10774.
    """
    return _method(compressor, axis_name, seed, keep_error=False, weights=weights)


@checked
def ef21_pp(
    *,
    compressor: Compressor,
    participation: ScalarLike,
    weights: Float[Array, "clients"] | None = None,
    axis_name: collectives.AxisName = "clients",
    seed: ScalarLike = 0,
) -> optax.GradientTransformation:
    r"""EF21-PP and EF21-W-PP: in each round only some clients speak, the others' estimates stay.

    .. math:: h_i \leftarrow h_i + b_i\, C\Bigl(\frac{g_i}{n w_i} - h_i\Bigr), \qquad b_i \sim \text{Bernoulli}(p)

    Who speaks follows from the seed, so that all know it without being told. Collectives have fixed shapes: on devices
    the message of a silent client still travels, and is ignored.

    Args:
        compressor: ``C``, a contraction.
        participation: ``p`` in (0, 1]; 1 is EF21.
        weights: ``w``, see :func:`ef21_w`; None for equal ones.
        axis_name: the axis of the clients.
        seed: of who speaks and of the compressor's randomness, the same on all clients.

    Returns:
        An optax transformation from a client's gradient ``g_i`` to ``u``, the same on all clients.

    Raises:
        ValueError: ``participation`` is outside (0, 1]; on ``update``, if there are not as many weights as clients.

    References:
        Richtárik et al., *Error Feedback Reloaded: From Quadratic to Arithmetic Mean of Smoothness Constants*,
        ICLR 2024, arXiv 2402.10774.
    """
    check_range("participation", participation, "(0, 1]")
    return _method(compressor, axis_name, seed, keep_error=False, weights=weights, participation=participation)


@checked
def stacked(
    method: optax.GradientTransformation, *, clients: int, axis_name: str = "clients"
) -> optax.GradientTransformation:
    """All clients on one device: a method of this module, vmapped.

    Args:
        method: made with this ``axis_name``, or with a tuple that ends in it.
        clients: how many, at least 1.
        axis_name: of the clients.

    Returns:
        An optax transformation from gradients ``[clients, ...]`` to one update ``[...]``. What a client has of its own
        has a leading axis in the state.

    Raises:
        ValueError: ``clients`` is below 1.
    """
    check_range("clients", clients, "[1, inf)")

    def init(params):
        state = method.init(params)
        own = jax.tree.map(lambda x: jnp.broadcast_to(x, (clients, *x.shape)), (state.error, state.estimate))
        return state._replace(error=own[0], estimate=own[1])

    def update(updates, state, params=None):
        del params
        return jax.vmap(
            method.update,
            in_axes=(0, _PER_CLIENT),
            out_axes=(None, _PER_CLIENT),
            axis_size=clients,
            axis_name=axis_name,
        )(updates, state)

    return optax.GradientTransformation(init, update)


def _method(
    compressor, axis_name, seed, *, eta=0.0, keep_error=True, keep_estimate=True, weights=None, participation=None
):
    """All methods: EF14 has no estimate, EF21 no error."""

    def init(params):
        flat = jax.eval_shape(lambda tree: _ravel(tree)[0], params)
        zeros = jnp.zeros(flat.shape, flat.dtype)
        estimate = zeros if keep_estimate else None
        return ErrorFeedbackState(jnp.zeros([], jnp.int32), estimate, zeros if keep_error else None, estimate)

    def update(updates, state, params=None):
        del params
        gradient, unravel = _ravel(updates)
        clients, client = collectives.size(axis_name), collectives.index(axis_name)
        shares = jnp.full([clients], 1 / clients, gradient.dtype)
        if weights is not None:
            if weights.size != clients:
                raise ValueError(f"weights must be as many as clients ({clients}), got {weights.size}")
            shares = jnp.asarray(weights, gradient.dtype)
            gradient = gradient / (clients * shares[client])
        round_key = jax.random.fold_in(jax.random.key(seed), state.count)

        def keys(client):
            return jax.random.split(jax.random.fold_in(round_key, client))

        def restore(client, message):
            """What everybody makes of a client's message."""
            key_message, key_speaks = keys(client)
            delta = compressor.decompress(key_message, message, gradient.size)
            return delta if participation is None else delta * jax.random.bernoulli(key_speaks, participation)

        change = gradient if state.estimate is None else gradient - state.estimate
        wanted = change if state.error is None else change + eta * state.error
        message = compressor.compress(keys(client)[0], wanted)
        delta = restore(client, message)

        def add(total, sent):
            client, message = sent
            return total + shares[client] * restore(client, message), None

        # One message after the other: never all clients' vectors at once, and the same sum on all of them.
        sent = jnp.arange(clients), collectives.gather(message, axis_name)
        mean, _ = jax.lax.scan(add, jnp.zeros_like(gradient), sent)
        average = mean if state.average is None else state.average + mean
        state = ErrorFeedbackState(
            count=optax.safe_increment(state.count),
            average=None if state.average is None else average,
            error=None if state.error is None else state.error + change - delta,
            estimate=None if state.estimate is None else state.estimate + delta,
        )
        return unravel(average), state

    return optax.GradientTransformation(init, update)


def _ravel(tree):
    """The tree as one vector, at least float32, and the way back, to the leaves' own precision."""
    flat, unravel = ravel_pytree(widened(tree))
    return flat, lambda vector: jax.tree.map(lambda x, leaf: x.astype(leaf.dtype), unravel(vector), tree)
