"""Adam and momentum with state in 8 bits."""

from typing import Any

import jax.numpy as jnp
import optax

from jaxreg.optim.descend import descend
from jaxreg.optim.quantize_state import quantize_state
from jaxreg.typing import ScalarLike, ScalarOrSchedule, checked
from jaxreg.validation import check_range


@checked
def scale_by_adam8bit(
    *,
    b1: ScalarLike = 0.9,
    b2: ScalarLike = 0.999,
    eps: ScalarLike = 1e-8,
    block_size: int = 2048,
    min_size: int = 4096,
    full_precision: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam's direction with moments in 8 bits: :func:`~jaxreg.optim.quantize_state` of :func:`optax.scale_by_adam`.

    .. math::
        m' = \beta_1 m + (1 - \beta_1) g, \quad v' = \beta_2 v + (1 - \beta_2) g^2, \quad
        u = \frac{m' / (1 - \beta_1^n)}{\sqrt{v' / (1 - \beta_2^n)} + \epsilon}

    in 32 bits, where ``m`` and ``v`` are what 8 bits have kept of the last step's moments. So the first step is Adam's.

    With ``optax.inject_hyperparams`` give ``static_args=("block_size", "min_size")``: they decide the state's shape.

    Args:
        b1: ``beta_1`` in [0, 1) (paper: 0.9), decay of the first moment.
        b2: ``beta_2`` in [0, 1) (paper: 0.999 or 0.995), decay of the second moment.
        eps: ``epsilon >= 0`` (paper: 1e-8 to 1e-6).
        block_size: greatest number of entries that share a scale, at least 1 (paper: 2048; the authors' later releases:
            256).
        min_size: smaller arrays keep moments in 32 bits (paper: 4096).
        full_precision: pytree of bools, or a function from parameters to one: whose moments stay in 32 bits, for the
            paper those of embeddings.

    Returns:
        An optax transformation that does not need ``params``.

    Raises:
        ValueError: a hyperparameter is outside its range.

    References:
        Dettmers et al., *8-bit Optimizers via Block-wise Quantization*, ICLR 2022, arXiv 2110.02861.
    """
    check_range("b1", b1, "[0, 1)")
    check_range("b2", b2, "[0, 1)")
    check_range("eps", eps, "[0, inf)")
    return quantize_state(
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        block_size=block_size,
        min_size=min_size,
        full_precision=full_precision,
    )


@checked
def adam8bit(
    learning_rate: ScalarOrSchedule,
    *,
    b1: ScalarLike = 0.9,
    b2: ScalarLike = 0.999,
    eps: ScalarLike = 1e-8,
    block_size: int = 2048,
    min_size: int = 4096,
    full_precision: Any = None,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam with moments in 8 bits: :func:`scale_by_adam8bit`, decoupled weight decay, learning rate.

    >>> import jax, jax.numpy as jnp
    >>> from jaxreg.optim import adam8bit
    >>> optimizer = adam8bit(1e-3, full_precision=lambda params: {"embedding": True, "kernel": False})
    >>> params = {"embedding": jnp.ones([100, 64]), "kernel": jnp.ones([64, 256])}
    >>> moments = optimizer.init(params)[0].codes.mu
    >>> moments["embedding"].dtype, moments["kernel"].dtype
    (dtype('float32'), dtype('uint8'))

    Args:
        learning_rate: ``eta``, a positive number or an optax schedule; what is tuned for 32 bits serves.
        b1: see :func:`scale_by_adam8bit`, as are the arguments up to ``full_precision``.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
        block_size: greatest number of entries that share a scale.
        min_size: smaller arrays keep moments in 32 bits.
        full_precision: whose moments stay in 32 bits.
        weight_decay: ``lambda >= 0``, decoupled as in :func:`optax.adamw`, a number or a schedule.
        mask: pytree of bools, or a function from parameters to one: which leaves decay.

    Returns:
        An optax optimizer.

    Raises:
        ValueError: a hyperparameter is outside its range.

    References:
        Dettmers et al., *8-bit Optimizers via Block-wise Quantization*, ICLR 2022, arXiv 2110.02861.
    """
    return descend(
        scale_by_adam8bit(
            b1=b1, b2=b2, eps=eps, block_size=block_size, min_size=min_size, full_precision=full_precision
        ),
        learning_rate,
        weight_decay=weight_decay,
        mask=mask,
    )


@checked
def momentum8bit(
    learning_rate: ScalarOrSchedule,
    *,
    momentum: ScalarLike = 0.9,
    nesterov: bool = False,
    block_size: int = 2048,
    min_size: int = 4096,
    full_precision: Any = None,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""SGD with momentum in 8 bits: :func:`~jaxreg.optim.quantize_state` of :func:`optax.trace`.

    .. math:: m \leftarrow \mu m + g, \qquad \Delta\theta = -\eta \, (m + \lambda\theta)

    Args:
        learning_rate: ``eta``, a positive number or an optax schedule.
        momentum: ``mu`` in [0, 1) (paper: 0.9).
        nesterov: whether to look one step ahead, as in :func:`optax.sgd`.
        block_size: see :func:`scale_by_adam8bit`, as are the following two.
        min_size: smaller arrays keep their momentum in 32 bits.
        full_precision: whose momentum stays in 32 bits.
        weight_decay: ``lambda >= 0``, decoupled, a number or a schedule.
        mask: pytree of bools, or a function from parameters to one: which leaves decay.

    Returns:
        An optax optimizer.

    Raises:
        ValueError: a hyperparameter is outside its range.

    References:
        Dettmers et al., *8-bit Optimizers via Block-wise Quantization*, ICLR 2022, arXiv 2110.02861.
    """
    check_range("momentum", momentum, "[0, 1)")
    return descend(
        quantize_state(
            optax.trace(decay=momentum, nesterov=nesterov, accumulator_dtype=jnp.float32),
            block_size=block_size,
            min_size=min_size,
            full_precision=full_precision,
        ),
        learning_rate,
        weight_decay=weight_decay,
        mask=mask,
    )
