"""LoRA: a frozen dense layer and a trainable product of two thin matrices beside it."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxreg.paths import is_named
from jaxreg.typing import Array, Float, PyTree, ScalarLike, checked
from jaxreg.validation import check_range

TRAINABLE = ("lora_a", "lora_b")


class LoRADense(nn.Module):
    r"""A dense layer whose kernel is frozen and corrected by a matrix of low rank.

    .. math:: y = x W + b + s \, (\operatorname{drop}(x) A) B

    Parameters are named ``kernel`` and ``bias``, as those of :class:`flax.linen.Dense`, from which they can be copied,
    ``lora_a`` (``A``, random) and ``lora_b`` (``B``, zero: at first the layer is the frozen one). No gradient reaches
    ``kernel`` and ``bias``; :func:`lora_mask` keeps weight decay from them too.

    >>> import jax, jax.numpy as jnp
    >>> from jaxreg.layers import LoRADense
    >>> layer = LoRADense(3, rank=2)
    >>> variables = layer.init(jax.random.key(0), jnp.ones([1, 8]))
    >>> {name: leaf.shape for name, leaf in sorted(variables["params"].items())}
    {'bias': (3,), 'kernel': (8, 3), 'lora_a': (8, 2), 'lora_b': (2, 3)}

    Attributes:
        features: number of outputs.
        rank: ``r >= 1`` (LoRA: 4 to 64).
        alpha: None for ``s = 1`` (ALLoRA), else ``s = alpha / r`` (LoRA; often twice the rank).
        dropout: in [0, 1), the chance that an input of ``A`` is dropped (LoRA: 0.05 to 0.1; ALLoRA: 0).
        use_bias: whether there is a bias.
        kernel_init: initializer of the kernel, for those who do not copy one.
        deterministic: whether to evaluate, without dropout; here or when called, as in :class:`flax.linen.Dropout`.

    References:
        Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models*, arXiv 2106.09685;
        Huang and Balestriero, *ALLoRA: Adaptive Learning Rate Mitigates LoRA Fatal Flaws*, arXiv 2410.09692.
    """

    features: int
    rank: int
    alpha: ScalarLike | None = None
    dropout: ScalarLike = 0.0
    use_bias: bool = True
    kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()
    deterministic: bool | None = None

    @nn.compact
    @checked
    def __call__(
        self, x: Float[Array, "*batch inputs"], *, deterministic: bool | None = None
    ) -> Float[Array, "*batch {self.features}"]:
        """The layer's outputs.

        Args:
            x: inputs.
            deterministic: True to evaluate. With dropout it must be given, here or to the module, and False needs the
                ``"dropout"`` random stream.

        Returns:
            The outputs, in the inputs' dtype.

        Raises:
            ValueError: ``rank`` or ``dropout`` is outside its range.
        """
        check_range("rank", self.rank, "[1, inf)")
        check_range("dropout", self.dropout, "[0, 1)")
        inputs = x.shape[-1]
        kernel = self.param("kernel", self.kernel_init, (inputs, self.features))
        # LoRA's Kaiming-uniform start: U(-1, 1) / sqrt(inputs).
        a = self.param("lora_a", nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"), (inputs, self.rank))
        b = self.param("lora_b", nn.initializers.zeros, (self.rank, self.features))
        y = x @ jax.lax.stop_gradient(kernel).astype(x.dtype)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y += jax.lax.stop_gradient(bias).astype(x.dtype)
        never = isinstance(self.dropout, int | float) and self.dropout == 0
        if not never and not nn.merge_param("deterministic", self.deterministic, deterministic):
            keep = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - self.dropout, x.shape)
            x = jnp.where(keep, x / (1.0 - self.dropout), 0).astype(x.dtype)
        scale = 1.0 if self.alpha is None else self.alpha / self.rank
        return (y + scale * ((x @ a.astype(x.dtype)) @ b.astype(x.dtype))).astype(x.dtype)


@checked
def lora_mask(params: PyTree) -> PyTree:
    """Which parameters are LoRA matrices, for ``optax.masked``, ``optax.partition`` and the masks of weight decay.

    Args:
        params: any tree that may hold parameters of :class:`LoRADense`.

    Returns:
        A tree of bools, True for leaves named ``lora_a`` or ``lora_b``.
    """

    def trainable(path, leaf):
        del leaf
        return is_named(path, TRAINABLE)

    return jax.tree.map_with_path(trainable, params)
