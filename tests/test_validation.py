import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.validation import check_range


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
