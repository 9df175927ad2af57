"""Training over the slowest of networks: a byte for each gradient.

Machines that agree on a seed can draw the same random direction without talking. Each measures how much its loss
changes along directions of its own, and tells the others that number, in one byte. All draw all directions again and
take the same step, so that their parameters never differ by a bit.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.distributed import collectives
from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Bool, Float, Int, PRNGKeyArray, PyTree, ScalarLike, Shaped, checked
from jaxreg.validation import check_range

_LARGEST, _ABSENT = 127, -128


class SharedSeedState(NamedTuple):
    """State of :func:`shared_seed_round`, the same on all machines. A machine that joins needs a copy of it.

    Attributes:
        params: the parameters.
        round: rounds so far, ``r``.
        scale: what a byte counts in.
    """

    params: PyTree
    round: Int[Array, ""]
    scale: Float[Array, ""]


@checked
def perturbation(key: PRNGKeyArray, params: PyTree) -> PyTree:
    r"""A random direction, ``z ~ N(0, I)``.

    Args:
        key: of the direction; the same key is the same direction on every machine.
        params: a tree of arrays, of which only the shapes and dtypes matter.

    Returns:
        A tree of these shapes, at least float32.

    References:
        Zelikman et al., *Just One Byte (per gradient): A Note on Low-Bandwidth Decentralized Language Model Finetuning
        Using Shared Randomness*, arXiv 2306.10015.
    """
    leaves, structure = jax.tree.flatten(params)
    dtypes = [jnp.promote_types(leaf.dtype, jnp.float32) for leaf in leaves]
    drawn = [
        jax.random.normal(jax.random.fold_in(key, place), leaf.shape, dtype)
        for place, (leaf, dtype) in enumerate(zip(leaves, dtypes, strict=True))
    ]
    return structure.unflatten(drawn)


@checked
def machine_key(base: PRNGKeyArray, round: ScalarLike, machine: ScalarLike, sample: ScalarLike) -> PRNGKeyArray:
    """The key of one direction, which every machine can compute.

    Args:
        base: the key that all machines share.
        round: ``r``.
        machine: ``i``.
        sample: ``j``, which of the machine's directions in this round.

    Returns:
        The key.

    References:
        Zelikman et al., *Just One Byte (per gradient)*, arXiv 2306.10015.
    """
    return jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(base, round), machine), sample)


@checked
def projected_gradient(
    loss_fn: Callable, params: PyTree, key: PRNGKeyArray, batch: PyTree, *, eps: ScalarLike = 1e-3
) -> Float[Array, ""]:
    r"""The gradient along a random direction, from two evaluations of the loss.

    .. math:: \hat g = \frac{L(x + \epsilon z) - L(x - \epsilon z)}{2 \epsilon}

    Exact for a quadratic loss. :math:`\mathbb E[\hat g z]` tends to the gradient as ``eps`` tends to 0. Nothing is
    added to ``x`` and subtracted again: it would not come back the same.

    Args:
        loss_fn: ``(params, batch) -> scalar``.
        params: ``x``.
        key: of ``z``, see :func:`machine_key`.
        batch: what the loss is evaluated on, the same on both sides.
        eps: ``epsilon > 0`` (authors' script: 1e-3). A smaller one is lost to rounding, sooner in half precision.

    Returns:
        The projected gradient, at least float32.

    Raises:
        ValueError: ``eps`` is not positive.

    References:
        Zelikman et al., *Just One Byte (per gradient)*, arXiv 2306.10015; after Spall, *Multivariate Stochastic
        Approximation Using a Simultaneous Perturbation Gradient Approximation*, IEEE TAC 1992.
    """
    check_range("eps", eps, "(0, inf)")
    direction = perturbation(key, params)

    def loss_at(distance):
        moved = jax.tree.map(lambda x, z: (x + distance * z).astype(x.dtype), params, direction)
        return at_least_float32(loss_fn(moved, batch))

    return (loss_at(eps) - loss_at(-eps)) / (2 * eps)


@checked
def encode_byte(projected: Float[Array, "*shape"], *, scale: ScalarLike) -> Int[Array, "*shape"]:
    r"""A number as a byte, ``q = clip(round(g / scale), -127, 127)``.

    Args:
        projected: projected gradients ``g``.
        scale: what a byte counts in, positive and the same on all machines.

    Returns:
        ``q``, int8; -128 is left for those who have nothing to say.

    Raises:
        ValueError: ``scale`` is not positive.

    References:
        Zelikman et al., *Just One Byte (per gradient)*, arXiv 2306.10015; the coding is ours, the authors' script
        sends floats.
    """
    check_range("scale", scale, "(0, inf)")
    return jnp.clip(jnp.round(projected / scale), -_LARGEST, _LARGEST).astype(jnp.int8)


@checked
def decode_byte(levels: Int[Array, "*shape"], *, scale: ScalarLike) -> Float[Array, "*shape"]:
    """What :func:`encode_byte` meant, up to half of ``scale`` unless it was clipped.

    Args:
        levels: ``q``.
        scale: see :func:`encode_byte`.

    Returns:
        ``q * scale``, at least float32.

    Raises:
        ValueError: ``scale`` is not positive.

    References:
        Zelikman et al., *Just One Byte (per gradient)*, arXiv 2306.10015.
    """
    check_range("scale", scale, "(0, inf)")
    return at_least_float32(levels) * scale


@checked
def adapt_scale(levels: Int[Array, "*shape"], *, scale: ScalarLike, memory: ScalarLike = 0.99) -> Float[Array, ""]:
    r"""The scale of the next round, from the bytes that all have seen.

    The largest byte of the round tells how large projected gradients are, unless it was clipped: then the scale
    doubles. Otherwise it shrinks slowly, as long as the largest byte would still have fit:

    .. math:: s \leftarrow \max(\mu s,\; s \max_k |q_k| / 127)

    Args:
        levels: all bytes of the round; those of absent machines are ignored.
        scale: ``s`` of the round.
        memory: ``mu`` in (0, 1]; with 1 the scale only grows, a running maximum.

    Returns:
        The scale of the next round.

    Raises:
        ValueError: ``memory`` is outside (0, 1].

    References:
        Zelikman et al., *Just One Byte (per gradient)*, arXiv 2306.10015; the scale is ours, the authors' script sends
        floats.
    """
    check_range("memory", memory, "(0, 1]")
    levels = at_least_float32(levels)
    largest = jnp.max(jnp.where(levels == _ABSENT, 0, jnp.abs(levels)), initial=0)
    return scale * jnp.where(largest == _LARGEST, 2.0, jnp.maximum(memory, largest / _LARGEST))


@checked
def apply_projected(
    params: PyTree, keys: Shaped[Array, "directions *key"], projected: Float[Array, "directions"], *, lr: ScalarLike
) -> PyTree:
    r"""The step along all directions of a round, each drawn again from its key.

    .. math:: x \leftarrow x - \frac\eta K \textstyle\sum_k g_k z_k

    One direction after the other: none is kept, and the sum is the same on all machines.

    Args:
        params: ``x``.
        keys: of the ``K`` directions, an array of random keys.
        projected: ``g``, the projected gradients, as the machines received them (one's own included).
        lr: ``eta > 0``. The authors' script has 1e-4 for ``eta * eps`` at 30 directions a round.

    Returns:
        The new parameters.

    Raises:
        ValueError: ``lr`` is not positive.

    References:
        Zelikman et al., *Just One Byte (per gradient)*, arXiv 2306.10015.
    """
    check_range("lr", lr, "(0, inf)")

    def add(total, direction):
        key, g = direction
        return jax.tree.map(lambda t, z: t + g.astype(z.dtype) * z, total, perturbation(key, params)), None

    zeros = jax.tree.map(lambda x: jnp.zeros_like(at_least_float32(x)), params)
    total, _ = jax.lax.scan(add, zeros, (keys, projected))
    return jax.tree.map(lambda x, t: (x - lr / projected.size * t).astype(x.dtype), params, total)


@checked
def shared_seed_init(params: PyTree, *, scale: ScalarLike = 1e-3) -> SharedSeedState:
    """State of :func:`shared_seed_round` before the first round.

    Args:
        params: the parameters, the same on all machines.
        scale: the first scale, positive. If it is too small, it doubles every round until bytes are no longer clipped.

    Returns:
        The state.

    Raises:
        ValueError: ``scale`` is not positive.
    """
    check_range("scale", scale, "(0, inf)")
    return SharedSeedState(params, jnp.zeros([], jnp.int32), jnp.asarray(scale, jnp.float32))


@checked
def shared_seed_round(
    loss_fn: Callable,
    state: SharedSeedState,
    batches: PyTree,
    *,
    base: PRNGKeyArray,
    lr: ScalarLike,
    eps: ScalarLike = 1e-3,
    memory: ScalarLike = 0.99,
    present: bool | Bool[Array, ""] = True,
    axis_name: collectives.AxisName = "machines",
) -> SharedSeedState:
    """A round, from one machine's point of view: measure, exchange bytes, step.

    Run it wherever ``axis_name`` is bound: under `pmap`, `shard_map` (with ``check_vma=False``: it cannot know that all
    devices compute the same state), or, for all machines on one device::

        jax.vmap(one_machine, in_axes=(None, 0), out_axes=None, axis_name="machines")(state, batches)

    Args:
        loss_fn: ``(params, batch) -> scalar``.
        state: from :func:`shared_seed_init`, or the last call.
        batches: this machine's, with a leading axis: one for each of its directions.
        base: the key that all machines share.
        lr: see :func:`apply_projected`.
        eps: see :func:`projected_gradient`.
        memory: see :func:`adapt_scale`.
        present: whether this machine takes part. The byte of an absent one says so, and counts for nothing.
        axis_name: the axis of the machines; None for one on its own.

    Returns:
        The new state, the same on all machines to the bit.

    Raises:
        ValueError: a hyperparameter is outside its range.

    References:
        Zelikman et al., *Just One Byte (per gradient): A Note on Low-Bandwidth Decentralized Language Model Finetuning
        Using Shared Randomness*, arXiv 2306.10015.
    """
    samples = jax.tree.leaves(batches)[0].shape[0]
    machines, machine = collectives.size(axis_name), collectives.index(axis_name)

    def measure(sample, batch):
        key = machine_key(base, state.round, machine, sample)
        return projected_gradient(loss_fn, state.params, key, batch, eps=eps)

    # One direction at a time, as they are applied: a second copy of the parameters is all there is room for.
    measured = jax.lax.map(lambda sample: measure(*sample), (jnp.arange(samples), batches))
    mine = jnp.where(present, encode_byte(measured, scale=state.scale), _ABSENT).astype(jnp.int8)
    levels = collectives.gather(mine, axis_name).ravel()

    heard = levels != _ABSENT
    directions = jnp.arange(machines * samples)
    keys = jax.vmap(lambda k: machine_key(base, state.round, k // samples, k % samples))(directions)
    projected = jnp.where(heard, decode_byte(levels, scale=state.scale), 0)
    share = directions.size / jnp.maximum(jnp.sum(heard), 1)
    return SharedSeedState(
        params=apply_projected(state.params, keys, projected, lr=lr * share),
        round=state.round + 1,
        scale=adapt_scale(levels, scale=state.scale, memory=memory),
    )
