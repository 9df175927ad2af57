r"""Editing a model by the difference of others: patch in robustness, extrapolate away from a fine-tuning.

Robust weight signatures: what fine-tuning on corrupted data changed, less what fine-tuning on clean data changes
anyway, is a property of the corruption rather than of the task. It can be added to the shallow layers of another clean
model, weakened, combined with others, stored in a few bits, and taken out again.

Extrapolation: fine-tuning that adds one ability (to follow an image) takes another away (to move). Weights on the far
side of the pretrained ones have more of what was lost. Two models made of sparsified differences then share the steps
of a diffusion sampler, see :func:`jaxreg.diffusion.switch_params`.

Every function goes leaf by leaf. Several models are one stacked tree with a leading axis.
"""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxreg.paths import natural_order, path_name
from jaxreg.precision import at_least_float32, is_floating
from jaxreg.typing import Array, Float, PRNGKeyArray, PyTree, ScalarLike, checked
from jaxreg.validation import check_range, check_same_shapes

Quantization = Literal["linear", "log", "tanh"]


@checked
def robust_signature(robust: PyTree, clean: PyTree, pretrained: PyTree) -> PyTree:
    r"""The robust weight signature of a corruption: its part of fine-tuning that the clean task does not explain.

    .. math::
        R = d_c - \frac{\langle d_c, d_s \rangle}{\langle d_s, d_s \rangle}\, d_s, \qquad
        d_c = \theta_c - \theta_0, \quad d_s = \theta_s - \theta_0

    for each leaf as one vector. Where the clean task changed nothing, :math:`R = d_c`.

    Args:
        robust: ``theta_c``, fine-tuned on corrupted data. For the signatures of several corruptions, stacked:
            ``jax.vmap(robust_signature, (0, None, None))``.
        clean: ``theta_s``, fine-tuned on clean data.
        pretrained: ``theta_0``, from which both started.

    Returns:
        The signature, a tree like ``robust``, floating leaves at least float32. Other leaves are zero.

    Raises:
        ValueError: the models differ in structure or shapes.

    References:
        Cai, Zhang and Wang, *Robust Weight Signatures: Gaining Robustness as Easy as Patching Weights?*, ICML 2023,
        arXiv 2302.12480.
    """
    check_same_shapes("clean", clean, robust)
    check_same_shapes("pretrained", pretrained, robust)

    def signature(corrupted, clean, start):
        if not is_floating(corrupted):
            return jnp.zeros_like(corrupted)
        start = at_least_float32(start)
        d_c, d_s = at_least_float32(corrupted) - start, at_least_float32(clean) - start
        # Only the direction of d_s matters. At unit largest entry its square neither underflows nor vanishes.
        size = jnp.max(jnp.abs(d_s), initial=0.0)
        d_s = d_s / jnp.where(size > 0, size, 1.0)
        square = jnp.sum(jnp.square(d_s))
        return d_c - jnp.sum(d_c * d_s) / jnp.where(square > 0, square, 1.0) * d_s

    return jax.tree.map(signature, robust, clean, pretrained)


@checked
def patch(
    params: PyTree,
    signatures: PyTree,
    *,
    strength: ScalarLike | Float[Array, "corruptions"] = 1.0,
    layers: Any = None,
) -> PyTree:
    r"""Adds robust weight signatures to a model.

    .. math:: \theta \leftarrow \theta + \sum_{c=1}^{C} \frac{w_c}{C} R_c \quad \text{in the chosen leaves}

    The authors' code multiplies by the weight :math:`w_c / C` twice; here it stands once.

    >>> import jax.numpy as jnp
    >>> from jaxreg.weights import patch, unpatch
    >>> params = {"layer_0": {"kernel": jnp.zeros([1, 2])}, "layer_1": {"kernel": jnp.zeros([1, 2])}}
    >>> signatures = {name: {"kernel": jnp.array([[[1.0, 2.0]], [[3.0, 4.0]]])} for name in params}
    >>> layers = {"layer_0": {"kernel": True}, "layer_1": {"kernel": False}}
    >>> patched = patch(params, signatures, layers=layers)
    >>> {name: layer["kernel"].tolist() for name, layer in patched.items()}
    {'layer_0': [[2.0, 3.0]], 'layer_1': [[0.0, 0.0]]}
    >>> unpatch(patched, signatures, layers=layers)["layer_0"]["kernel"].tolist()
    [[0.0, 0.0]]

    Args:
        params: the model, of the architecture of those that the signatures are of; it may be made for other data.
        signatures: ``R``, of ``C`` corruptions, stacked; for a single one a stack of one.
        strength: ``w``, one number for all corruptions or one for each (paper: 1, from 0 to about 2). In a stack of
            several each is weakened to its part.
        layers: tree of bools, one for each leaf of ``params``: which are patched (:func:`shallow_layers`); None for
            all.

    Returns:
        The patched model, in the dtypes of ``params``. Leaves that are not floating stay as they are.

    Raises:
        ValueError: ``signatures`` are no stack of trees with the shapes of ``params``.

    References:
        Cai, Zhang and Wang, *Robust Weight Signatures: Gaining Robustness as Easy as Patching Weights?*, ICML 2023,
        arXiv 2302.12480.
    """
    return _patched(params, signatures, strength, layers, 1.0)


@checked
def unpatch(
    params: PyTree,
    signatures: PyTree,
    *,
    strength: ScalarLike | Float[Array, "corruptions"] = 1.0,
    layers: Any = None,
) -> PyTree:
    r"""Takes out what :func:`patch` with the same arguments has put in, up to rounding.

    .. math:: \theta \leftarrow \theta - \sum_{c=1}^{C} \frac{w_c}{C} R_c \quad \text{in the chosen leaves}

    Args:
        params: the patched model.
        signatures: as they were patched in.
        strength: as it was.
        layers: as they were.

    Returns:
        The model without the patch.

    Raises:
        ValueError: ``signatures`` are no stack of trees with the shapes of ``params``.

    References:
        Cai, Zhang and Wang, *Robust Weight Signatures: Gaining Robustness as Easy as Patching Weights?*, ICML 2023,
        arXiv 2302.12480.
    """
    return _patched(params, signatures, strength, layers, -1.0)


@checked
def shallow_layers(params: PyTree, *, keep: int = 7, order: Sequence[str] | None = None) -> PyTree:
    """Which leaves belong to the first few layers, where signatures go; deeper ones hold the classifier.

    A layer is a node of the tree with a leaf of at least two axes right below it, together with its other leaves (a
    bias). Leaves of other nodes, such as normalizations, are not chosen: see :func:`replace_by_mean`.

    Args:
        params: the model: nested dictionaries.
        keep: number of layers, at least 0 (paper: 7 of VGG-16's 13 convolutions); there may be fewer.
        order: the layers' paths from the input on, such as ``"params/Conv_0"``. By default the paths' natural order,
            in which ``Conv_2`` comes before ``Conv_10``, and ``Conv_0`` before ``Dense_0``.

    Returns:
        A tree of bools like ``params``.

    Raises:
        ValueError: ``keep`` is negative, or ``order`` names what is no layer.

    References:
        Cai, Zhang and Wang, *Robust Weight Signatures: Gaining Robustness as Easy as Patching Weights?*, ICML 2023,
        arXiv 2302.12480.
    """
    check_range("keep", keep, "[0, inf)")

    def owner(path):
        return path_name(path[:-1])

    matrices = {owner(path) for path, leaf in jax.tree_util.tree_leaves_with_path(params) if jnp.ndim(leaf) >= 2}
    found = sorted(matrices, key=natural_order)
    if order is None:
        order = found
    unknown = [name for name in order if name not in found]
    if unknown:
        raise ValueError(f"order must name layers, of which there are {found}, got {unknown}")
    chosen = set(order[:keep])
    return jax.tree.map_with_path(lambda path, leaf: owner(path) in chosen, params)


@checked
def replace_by_mean(params: PyTree, models: PyTree, *, mask: PyTree) -> PyTree:
    r"""Some leaves of a model become the mean of those of others: normalizations, when signatures are patched in.

    .. math:: \theta \leftarrow \tfrac1C \sum_c \theta_c \quad \text{in the chosen leaves}

    Args:
        params: the model.
        models: those fine-tuned on corrupted data, stacked.
        mask: tree of bools, one for each leaf: True for parameters and statistics of normalizations.

    Returns:
        A tree like ``params``.

    Raises:
        ValueError: ``models`` are no stack of trees with the shapes of ``params``.

    References:
        Cai, Zhang and Wang, *Robust Weight Signatures: Gaining Robustness as Easy as Patching Weights?*, ICML 2023,
        arXiv 2302.12480.
    """
    check_same_shapes("models", models, params, leading=["models"])

    def replaced(leaf, stack, chosen):
        if not is_floating(leaf):
            return jnp.asarray(leaf)
        return jnp.where(chosen, jnp.mean(at_least_float32(stack), axis=0), leaf).astype(jnp.result_type(leaf))

    return jax.tree.map(replaced, params, models, mask)


@checked
def quantize_signature(signature: PyTree, *, levels: ScalarLike = 16, method: Quantization = "linear") -> PyTree:
    r"""Rounds a signature to what a few bits a parameter can hold.

    With :math:`Q(v) = l + \tfrac{h - l}{n - 1} \operatorname{round}\bigl((n - 1) \tfrac{v - l}{h - l}\bigr)` for the
    least and the greatest entry :math:`l, h` of a leaf and :math:`n` levels:

    .. math::
        \text{linear: } Q(v), \qquad \text{log: } \operatorname{sign}(v)\, 2^{Q(\log_2 |v|)}, \qquad
        \text{tanh: } \operatorname{artanh} Q(\tanh v)

    Args:
        signature: from :func:`robust_signature`. Of a stack quantize each, ``jax.vmap(quantize_signature)``: they
            have scales of their own.
        levels: ``n >= 2``, of which ``log`` gives half to each sign, 2 at least (paper: down to 16). A traced number
            has to be whole.
        method: of the three. For ``log`` zeros stay zero and have no part in the least entry.

    Returns:
        A tree like ``signature``; for storage, its leaves have at most ``levels`` different entries (``log``: and
        zero).

    Raises:
        ValueError: ``levels`` is less than 2.

    References:
        Cai, Zhang and Wang, *Robust Weight Signatures: Gaining Robustness as Easy as Patching Weights?*, ICML 2023,
        arXiv 2302.12480.
    """
    check_range("levels", levels, "[2, inf)")

    def quantize(leaf):
        if not is_floating(leaf) or not leaf.size:
            return leaf
        v = at_least_float32(leaf)
        if method == "linear":
            rounded = _round_between(v, levels)
        elif method == "tanh":
            # Rounding may take the ends of the range to 1, where artanh is infinite.
            rounded = jnp.arctanh(jnp.clip(_round_between(jnp.tanh(v), levels), -1 + 1e-7, 1 - 1e-7))
        else:
            exponent = jnp.log2(jnp.where(v == 0, 1.0, jnp.abs(v)))
            of_each_sign = jnp.maximum(jnp.floor(levels / 2), 2)
            rounded = jnp.sign(v) * jnp.exp2(_round_between(exponent, of_each_sign, where=v != 0))
        return rounded.astype(leaf.dtype)

    return jax.tree.map(quantize, signature)


@checked
def extrapolate(pretrained: PyTree, finetuned: PyTree, *, alpha: ScalarLike = 0.25) -> PyTree:
    r"""Steps from the pretrained weights away from the fine-tuned ones.

    .. math:: \theta = \theta_\text{pre} + \alpha (\theta_\text{pre} - \theta_\text{ft})

    Args:
        pretrained: ``theta_pre``: nested dictionaries.
        finetuned: ``theta_ft``; it may have leaves that ``pretrained`` lacks, such as those of a new adapter.
        alpha: how far (paper: 0.25); 0 is the pretrained model, -1 the fine-tuned one.

    Returns:
        A tree like ``finetuned``. Leaves that ``pretrained`` lacks, or that are not floating, are those of
        ``finetuned``.

    Raises:
        ValueError: no floating leaf is in both trees, or one has another shape.

    References:
        Tian et al., *Extrapolating and Decoupling Image-to-Video Generation Models: Motion Modeling is Easier Than
        You Think*, CVPR 2025, arXiv 2503.00948.
    """
    return _with_pretrained(lambda start, end: start + alpha * (start - end), pretrained, finetuned)


@checked
def dare(key: PRNGKeyArray, delta: PyTree, *, drop: ScalarLike = 0.7, rescale: bool = True) -> PyTree:
    r"""Drops random entries of a difference of weights and rescales the others: the mean stays what it was.

    .. math:: \delta \leftarrow \frac{m \odot \delta}{1 - p}, \qquad m \sim \text{Bernoulli}(1 - p)

    Args:
        key: decides which entries.
        delta: ``delta``, a difference of weights.
        drop: ``p`` in [0, 1) (paper: 0.7).
        rescale: whether to divide by ``1 - p``.

    Returns:
        A tree like ``delta``. Leaves with fewer than two axes (biases, normalizations) are as they were.

    Raises:
        ValueError: ``drop`` is outside [0, 1).

    References:
        Yu et al., *Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch*,
        ICML 2024, arXiv 2311.03099; as used by Tian et al., arXiv 2503.00948.
    """
    check_range("drop", drop, "[0, 1)")
    leaves, structure = jax.tree.flatten(delta)

    def sparse(number, leaf):
        if jnp.ndim(leaf) < 2 or not is_floating(leaf):
            return leaf
        kept = jax.random.bernoulli(jax.random.fold_in(key, number), 1.0 - drop, leaf.shape)
        scaled = at_least_float32(leaf) / (1.0 - drop if rescale else 1.0)
        return jnp.where(kept, scaled, 0.0).astype(leaf.dtype)

    return jax.tree.unflatten(structure, [sparse(number, leaf) for number, leaf in enumerate(leaves)])


@checked
def decouple_inject(
    key: PRNGKeyArray,
    pretrained: PyTree,
    finetuned: PyTree,
    *,
    alpha: ScalarLike = 0.25,
    drop: ScalarLike = 0.7,
    dyn_beta: ScalarLike = 0.75,
    con_alpha: ScalarLike = 1.0,
    con_beta: ScalarLike = 0.25,
) -> tuple[PyTree, PyTree]:
    r"""Takes a fine-tuned video model apart into one that moves and one that obeys.

    With :math:`D` of :func:`dare` and the extrapolated weights :math:`\theta_\text{deg}` of :func:`extrapolate`:

    .. math::
        \theta_\text{dyn} &= \theta_\text{pre} + \beta_d\, D(\theta_\text{deg} - \theta_\text{pre}) \\
        \theta_\text{con} &= \alpha_c \theta_\text{ft} + \beta_c\, D(\theta_\text{ft} - \theta_\text{pre})

    The first one is for the early, noisy steps of sampling, in which layout and motion are decided, the second one for
    the late steps: :func:`jaxreg.diffusion.switch_params`.

    Args:
        key: decides which entries are dropped.
        pretrained: ``theta_pre``: nested dictionaries.
        finetuned: ``theta_ft``; it may have leaves that ``pretrained`` lacks.
        alpha: of the extrapolation (paper: 0.25).
        drop: share of dropped entries, in [0, 1) (paper: 0.7).
        dyn_beta: ``beta_d`` (paper: 0.75).
        con_alpha: ``alpha_c`` (paper: 1).
        con_beta: ``beta_c`` (paper: 0.25).

    Returns:
        ``theta_dyn`` and ``theta_con``, trees like ``finetuned``. Leaves that ``pretrained`` lacks, or that are not
        floating, are those of ``finetuned`` in both.

    Raises:
        ValueError: ``drop`` is outside [0, 1), no floating leaf is in both trees, or one has another shape.

    References:
        Tian et al., *Extrapolating and Decoupling Image-to-Video Generation Models: Motion Modeling is Easier Than
        You Think*, CVPR 2025, arXiv 2503.00948.
    """
    key_degree, key_adapter = jax.random.split(key)
    # theta_deg - theta_pre is -alpha times the change, here without rounding theta_deg.
    change = _with_pretrained(lambda start, end: end - start, pretrained, finetuned, widen=True)
    degree = dare(key_degree, jax.tree.map(lambda d: -alpha * d, change), drop=drop)
    adapter = dare(key_adapter, change, drop=drop)
    dyn = _with_pretrained(lambda start, end, by: start + dyn_beta * by, pretrained, finetuned, degree)
    con = _with_pretrained(lambda start, end, by: con_alpha * end + con_beta * by, pretrained, finetuned, adapter)
    return dyn, con


def _patched(params, signatures, strength, layers, sign):
    check_same_shapes("signatures", signatures, params, leading=["corruptions"])

    def patched(leaf, stack, chosen):
        if not is_floating(leaf):
            return jnp.asarray(leaf)
        weights = jnp.broadcast_to(jnp.asarray(strength, jnp.float32), len(stack)) / len(stack)
        total = jnp.tensordot(weights, at_least_float32(stack), axes=1, precision="highest")
        return jnp.where(chosen, at_least_float32(leaf) + sign * total, leaf).astype(jnp.result_type(leaf))

    layers = jax.tree.map(lambda leaf: True, params) if layers is None else layers
    return jax.tree.map(patched, params, signatures, layers)


def _with_pretrained(combine, pretrained, finetuned, *others, widen=False):
    """``combine(start, end, *others)`` in every floating leaf that both trees have."""
    starts = dict(jax.tree_util.tree_leaves_with_path(pretrained))
    ends = {path: leaf for path, leaf in jax.tree_util.tree_leaves_with_path(finetuned) if is_floating(leaf)}
    shared = starts.keys() & ends.keys()
    if not shared:
        names = " and ".join(path_name(next(iter(paths), ())) for paths in (starts, ends))
        raise ValueError(f"pretrained and finetuned must share floating leaves, got paths such as {names}")
    shared_starts, shared_ends = ({path_name(path): tree[path] for path in shared} for tree in (starts, ends))
    check_same_shapes("finetuned", shared_ends, shared_starts)

    def combined(path, end, *rest):
        if path not in shared:
            return jnp.asarray(end)
        value = combine(at_least_float32(starts[path]), at_least_float32(end), *rest)
        return value if widen else value.astype(jnp.result_type(end))

    return jax.tree.map_with_path(combined, finetuned, *others)


def _round_between(v, levels, where=True):
    low, high = jnp.min(v, where=where, initial=jnp.inf), jnp.max(v, where=where, initial=-jnp.inf)
    step = (high - low) / (levels - 1)
    return jnp.where(step > 0, low + step * jnp.round((v - low) / jnp.where(step > 0, step, 1.0)), v)
