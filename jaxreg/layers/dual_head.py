"""Two classifiers on one feature.

A loss on logits and cross-entropy pull a single classifier in opposite directions. With a head for each, the feature
below still learns from both; afterwards only the main head is used.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from jaxreg.typing import Array, Float, ScalarLike, checked
from jaxreg.validation import check_range


class DualLogits(NamedTuple):
    """Result of :class:`DualHead`.

    Attributes:
        main: logits to classify with, trained with labels.
        auxiliary: logits for the other loss, of no use after training: if they are not used they are not computed.
    """

    main: Float[Array, "*batch classes"]
    auxiliary: Float[Array, "*batch classes"]


class DualHead(nn.Module):
    r"""A linear classifier and an auxiliary one, linear or with one hidden layer.

    .. math::
        \text{main} = W h + b, \qquad
        \text{auxiliary} = W_2 \operatorname{ReLU}(\operatorname{BN}(\operatorname{dropout}(W_1 h + b_1))) + b_2

    Its parameters are ``main``, ``auxiliary`` and, for a hidden layer, ``auxiliary_hidden`` and ``auxiliary_norm``.

    >>> import jax, jax.numpy as jnp
    >>> from jaxreg.layers import DualHead
    >>> head, features = DualHead(num_classes=10, aux_hidden=None), jnp.ones([4, 16])
    >>> params = head.init(jax.random.key(0), features, train=False)
    >>> head.apply(params, features, train=True).auxiliary.shape
    (4, 10)

    Attributes:
        num_classes: ``K >= 1``, outputs of both heads.
        aux_hidden: width of the auxiliary head's hidden layer (authors' code: 200 for CIFAR-100); None for a linear
            head (authors' code: for ImageNet).
        aux_dropout: in [0, 1), rate of dropout before its normalization (authors' code: 0.1).

    References:
        Yang et al., *Dual-Head Knowledge Distillation: Enhancing Logits Utilization with an Auxiliary Head*,
        arXiv 2411.08937.
    """

    num_classes: int
    aux_hidden: int | None = 200
    aux_dropout: ScalarLike = 0.1

    @nn.compact
    @checked
    def __call__(self, features: Float[Array, "*batch features"], *, train: bool) -> DualLogits:
        """The logits of both heads.

        Args:
            features: ``h``, of the backbone.
            train: whether the hidden layer drops out, with the ``"dropout"`` random stream, and normalizes by the
                batch, with the collection ``"batch_stats"``.

        Returns:
            The logits of both heads, in the dtype of ``features``; statistics of the batch are at least float32.

        Raises:
            ValueError: an attribute is outside its range.
        """
        check_range("num_classes", self.num_classes, "[1, inf)")
        check_range("aux_dropout", self.aux_dropout, "[0, 1)")
        dtype = jnp.result_type(features)
        hidden = features
        if self.aux_hidden is not None:
            check_range("aux_hidden", self.aux_hidden, "[1, inf)")
            hidden = nn.Dense(self.aux_hidden, dtype=dtype, name="auxiliary_hidden")(features)
            hidden = nn.Dropout(self.aux_dropout, deterministic=not train)(hidden)
            norm = nn.BatchNorm(
                use_running_average=not train, momentum=0.9, use_fast_variance=False, dtype=dtype, name="auxiliary_norm"
            )
            hidden = nn.relu(norm(hidden))
        return DualLogits(
            main=nn.Dense(self.num_classes, dtype=dtype, name="main")(features),
            auxiliary=nn.Dense(self.num_classes, dtype=dtype, name="auxiliary")(hidden),
        )
