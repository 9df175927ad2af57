"""A classifier that is never trained: its class prototypes are the vertices of a regular simplex.

A trained classifier turns its prototypes with every update, and the features follow: those of a new model cannot be
compared with those that an old one has stored. With fixed prototypes, as far apart as can be, the features of a class
have one direction for good (they are stationary). More classes than needed are allocated at the start: new tasks take
the next free vertices. A model can be replaced half-way by a better one that was pretrained with the same classifier;
:func:`jaxreg.losses.hoc_loss` keeps it compatible with the one before.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxreg.typing import Array, Float, checked
from jaxreg.validation import check_range


@checked
def simplex_vertices(d: int) -> Float[Array, "{d}+1 {d}"]:
    r"""The vertices of a regular simplex centred at the origin, at unit distance from it.

    .. math::
        w_i = e_i \text{ for } i \le d, \qquad w_{d+1} = \frac{1 - \sqrt{d + 1}}{d} \sum_i e_i

    minus their mean, normalized. The cosine of any two is :math:`-1/d`, the least that ``d + 1`` vectors can have in
    common.

    >>> simplex_vertices(1).tolist()
    [[1.0], [-1.0]]

    Args:
        d: dimension, at least 1.

    Returns:
        ``d + 1`` unit vectors, float32.

    Raises:
        ValueError: ``d`` is below 1.

    References:
        Biondi et al., *Stationary Representations: Optimally Approximating Compatibility and Implications for
        Improved Model Replacements*, CVPR 2024, arXiv 2405.02581; after Pernici et al., *Regular Polytope Networks*,
        arXiv 2103.15632.
    """
    check_range("d", d, "[1, inf)")
    vertices = np.concatenate([np.eye(d), np.full([1, d], (1 - np.sqrt(d + 1)) / d)])
    vertices -= vertices.mean(axis=0)
    return jnp.asarray(vertices / np.linalg.norm(vertices, axis=1, keepdims=True), jnp.float32)


class FixedSimplexClassifier(nn.Module):
    """Logits against fixed prototypes, the vertices of a simplex: no parameters, no bias.

    The softmax of the loss runs over all classes, those that are still free included.

    Attributes:
        num_classes: ``K``, at least 2 and with room for all classes to come (paper: 1024). Features have ``K - 1``
            entries.
    """

    num_classes: int

    @nn.compact
    def __call__(self, features: Float[Array, "*batch features"]) -> Float[Array, "*batch classes"]:
        """The logits of features of ``num_classes - 1`` entries; ValueError for any other number."""
        check_range("num_classes", self.num_classes, "[2, inf)")
        if features.shape[-1] != self.num_classes - 1:
            raise ValueError(
                f"{self.num_classes} classes need features of {self.num_classes - 1} entries, got {features.shape[-1]}"
            )
        return features @ simplex_vertices(self.num_classes - 1).astype(features.dtype).T
