"""What merging and task vectors are tried on."""

import jax.numpy as jnp
import numpy as np


def model(seed, dtype=jnp.float32, batch=()):
    """Parameters of a small network, with a leaf of integers; several of them along leading axes."""
    rng = np.random.default_rng(seed)
    return {
        "dense": {
            "kernel": rng.normal(size=[*batch, 6, 5]).astype(dtype),
            "bias": rng.normal(size=[*batch, 5]).astype(dtype),
        },
        "scale": np.asarray(rng.normal(size=batch), dtype),
        "count": np.full(batch, seed),
    }
