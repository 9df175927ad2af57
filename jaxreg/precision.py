"""Where half precision is too little."""

import jax.numpy as jnp

from jaxreg.typing import Array, Float, Shaped, checked


@checked
def at_least_float32(x: Shaped[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Widens integers and half precision to float32; leaves float32 and float64 as they are.

    Losses sum differences of logits and moments accumulate changes of a thousandth: bfloat16, with 8 significant
    bits, loses both.
    """
    return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))
