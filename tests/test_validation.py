import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.validation import check_ascending, check_range, check_same_shapes


@pytest.mark.parametrize(
    ("value", "interval"),
    [(0, "[0, 1)"), (0.999, "[0, 1)"), (1, "(0, 1]"), (1e-300, "(0, inf)"), (float("inf"), "(0, inf]"), (3, "[3, 3]")],
)
def test_values_inside_pass(value, interval):
    check_range("x", value, interval)


@pytest.mark.parametrize(
    ("value", "interval"),
    [
        (1, "[0, 1)"),
        (0, "(0, 1]"),
        (float("inf"), "(0, inf)"),
        (float("nan"), "(-inf, inf)"),
        (np.float32(-1), "[0, inf)"),
        (np.int64(0), "[1, inf)"),
    ],
)
def test_values_outside_are_refused_by_name(value, interval):
    with pytest.raises(ValueError, match="must be in") as error:
        check_range("rate", value, interval)
    assert str(error.value) == f"rate must be in {interval}, got {value}"


def test_arrays_are_left_alone_for_they_may_be_traced():
    check_range("x", jnp.array(5.0), "[0, 1]")
    assert jax.jit(lambda x: (check_range("x", x, "[0, 1]"), x)[1])(5.0) == 5.0
    check_range("x", None, "[0, 1]")


def test_ends_are_in_order():
    check_ascending("bounds", (0, 1.5))
    check_ascending("bounds", (jnp.ones([]), 0.0))
    for ends in ((1.0, 1.0), (np.float32(2.0), 1), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match=r"^bounds must be in ascending order, got "):
            check_ascending("bounds", ends)


def test_trees_of_other_structures_or_shapes_are_refused():
    params = {"kernel": jnp.zeros([2, 3]), "bias": np.zeros(3)}
    models = jax.tree.map(lambda leaf: np.zeros([5, *leaf.shape]), params)
    check_same_shapes("anchor", params, params)
    check_same_shapes("adapted", models, params, leading=["models"])
    with pytest.raises(ValueError, match=r"^adapted\['bias'\] must have shape \[models, 3\], got \[3\]"):
        check_same_shapes("adapted", models | {"bias": params["bias"]}, params, leading=["models"])
    with pytest.raises(ValueError, match=r"^anchor must have the structure"):
        check_same_shapes("anchor", {"kernel": params["kernel"]}, params)
