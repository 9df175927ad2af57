"""Task vectors: there and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.weights import add_task_vector, flatten_stack, task_vector
from tests.weights.small_models import model


def test_flatten_stack_round_trip():
    stack = model(3, jnp.bfloat16, batch=(4,))
    rows, unflatten = flatten_stack(stack)
    assert rows.shape == (4, 36)
    assert rows.dtype == jnp.float32
    third = unflatten(rows[2])
    wanted = jax.tree.map(lambda leaf: leaf[2], stack) | {"count": jnp.array(0)}
    jax.tree.map(np.testing.assert_array_equal, third, wanted)
    assert jax.tree.map(jnp.result_type, third) == jax.tree.map(jnp.result_type, wanted)
    with pytest.raises(ValueError, match="at least one leaf of floating type"):
        flatten_stack({"count": jnp.zeros(3, jnp.int32)})


def test_nothing_is_broadcast():
    flat, column = {"w": jnp.ones(3)}, {"w": jnp.ones([3, 1])}
    for call, message in (
        (lambda: task_vector(column, flat), r"^finetuned\['w'\] must have shape \[3, 1\], got \[3\]"),
        (lambda: task_vector(flat, column), r"^finetuned\['w'\] must have shape \[models, 3\], got \[3, 1\]"),
        (lambda: add_task_vector(column, flat), r"^vector\['w'\] must have shape \[3, 1\], got \[3\]"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_task_vectors_add_back_to_the_finetuned_models(dtype):
    pretrained, finetuned = model(0, dtype), model(1, dtype, batch=(3,))
    tau = task_vector(pretrained, finetuned)
    np.testing.assert_array_equal(tau["count"], 0)
    for member in range(3):
        back = add_task_vector(pretrained, jax.tree.map(lambda leaf, at=member: leaf[at], tau))
        wanted = jax.tree.map(lambda leaf, at=member: leaf[at], finetuned) | {"count": pretrained["count"]}
        assert jax.tree.map(jnp.result_type, back) == jax.tree.map(jnp.result_type, pretrained)
        jax.tree.map(
            lambda ours, theirs: np.testing.assert_allclose(
                np.float32(ours), np.float32(theirs), rtol=float(jnp.finfo(dtype).eps), atol=1e-6
            ),
            back,
            wanted,
        )
