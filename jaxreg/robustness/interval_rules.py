"""What each operation does to intervals: the rules of :mod:`jaxreg.robustness.interval_bounds`.

Most operations never decrease in any operand, and their bounds are what they make of the ends. DIRECTIONS says which
they are, and which decrease. The others have a function in RULES.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.typing import PyTree


class Bounds(NamedTuple):
    """Least and largest values.

    Attributes:
        lower: an array or a tree of arrays.
        upper: the same for the largest values.
    """

    lower: PyTree
    upper: PyTree


def bind(eqn, operands):
    functions, parameters = (), eqn.primitive.get_bind_params(eqn.params)
    if isinstance(parameters, tuple):  # older JAX passes functions of a call as operands
        functions, parameters = parameters
    outputs = eqn.primitive.bind(*functions, *operands, **parameters)
    return outputs if eqn.primitive.multiple_results else [outputs]


# For each operand: "+" the outputs never decrease in it, "-" they never increase, "c" it must be constant. The last
# sign is that of all further operands.
DIRECTIONS = dict.fromkeys(
    [
        "add", "add_any", "asinh", "atan", "broadcast_in_dim", "cbrt", "ceil", "clamp", "concatenate",
        "copy", "copy_p", "cumlogsumexp", "cummax", "cummin", "cumsum", "device_put", "erf",
        "erf_inv", "exp", "exp2", "expand_dims", "expm1", "floor", "log", "log1p", "logistic", "max", "min", "name",
        "optimization_barrier", "pad", "reduce_max", "reduce_min", "reduce_precision", "reduce_sum",
        "reduce_window_max", "reduce_window_min", "reduce_window_sum", "reshape", "rev", "round", "sharding_constraint",
        "sign", "sinh", "slice", "split", "sqrt", "squeeze", "stop_gradient", "tanh", "tile", "transpose",
    ],
    "+",
)  # fmt: skip
DIRECTIONS |= {
    "dynamic_slice": "+c", "dynamic_update_slice": "++c", "erfc": "-", "gather": "+c", "ge": "+-", "gt": "+-",
    "le": "-+", "lt": "-+", "neg": "-", "rsqrt": "-", "scatter": "+c+", "scatter-add": "+c+", "select_n": "c+",
    "sub": "+-",
}  # fmt: skip

# Where a function ends: an interval may reach beyond, its values do not.
_LEAST = {"log": 0.0, "log1p": -1.0, "rsqrt": 0.0, "sqrt": 0.0}


def _signs(directions, operands):
    return directions + directions[-1] * (len(operands) - len(directions))


def has_varying_indices(directions, operands):
    signs = _signs(directions, operands)
    return any(sign == "c" and isinstance(operand, Bounds) for sign, operand in zip(signs, operands, strict=False))


def monotone_outputs(eqn, operands, directions):
    least = _LEAST.get(eqn.primitive.name)
    if least is not None:
        operands = [Bounds(*(jnp.maximum(end, least) for end in operands[0]))]
    pairs = list(zip(_signs(directions, operands), operands, strict=False))
    lowers = bind(eqn, [upper_end(operand) if sign == "-" else lower_end(operand) for sign, operand in pairs])
    uppers = bind(eqn, [lower_end(operand) if sign == "-" else upper_end(operand) for sign, operand in pairs])
    return [Bounds(a, b) for a, b in zip(lowers, uppers, strict=True)]


def outputs_bent_at_zero(eqn, x, parameters):
    """Of a function that rises or falls on either side of 0: the extremes are at the ends, or at 0 between them."""
    at_lower, at_zero, at_upper = (
        bind(eqn, [point, *parameters])[0] for point in (x.lower, jnp.zeros_like(x.lower), x.upper)
    )
    ends = Bounds(jnp.minimum(at_lower, at_upper), jnp.maximum(at_lower, at_upper))
    bent = (x.lower < 0) & (x.upper > 0)
    lower, upper = jnp.minimum(ends.lower, at_zero), jnp.maximum(ends.upper, at_zero)
    return [Bounds(jnp.where(bent, lower, ends.lower), jnp.where(bent, upper, ends.upper))]


def lower_end(value):
    return value.lower if isinstance(value, Bounds) else value


def upper_end(value):
    return value.upper if isinstance(value, Bounds) else value


def _centre_radius(value):
    lower, upper = value
    return lower + (upper - lower) / 2, (upper - lower) / 2


def _bilinear(eqn, a, b):
    """Products of matrices and convolutions."""

    def product(a, b):
        return bind(eqn, [a, b])[0]

    if not isinstance(b, Bounds):
        centre, radius = _centre_radius(a)
        centre, radius = product(centre, b), product(radius, jnp.abs(b))
    elif not isinstance(a, Bounds):
        centre, radius = _centre_radius(b)
        centre, radius = product(a, centre), product(jnp.abs(a), radius)
    else:
        (centre_a, radius_a), (centre_b, radius_b) = _centre_radius(a), _centre_radius(b)
        centre = product(centre_a, centre_b)
        radius = product(jnp.abs(centre_a), radius_b) + product(radius_a, jnp.abs(centre_b) + radius_b)
    return _no_worse_than_unbounded(centre - radius, centre + radius)


def _no_worse_than_unbounded(lower, upper):
    """Infinite bounds make what is not a number of a difference or a product with zero: nothing is known then."""
    return Bounds(jnp.where(jnp.isnan(lower), -jnp.inf, lower), jnp.where(jnp.isnan(upper), jnp.inf, upper))


def _of_corners(operation, a, b):
    corners = [operation(end_a, end_b) for end_a in _ends(a) for end_b in _ends(b)]
    return _no_worse_than_unbounded(_fold(jnp.minimum, corners), _fold(jnp.maximum, corners))


def _ends(value):
    return value if isinstance(value, Bounds) else (value,)


def _fold(operation, values):
    first, *others = values
    for other in others:
        first = operation(first, other)
    return first


def _mul(eqn, a, b):
    # What is multiplied by itself is a square; as a product of two intervals it could become negative.
    return _square(a) if eqn.invars[0] is eqn.invars[1] else _of_corners(jnp.multiply, a, b)


def _div(eqn, a, b):
    if not isinstance(b, Bounds):
        return _of_corners(jnp.divide, a, b)
    bounded = (b.lower > 0) | (b.upper < 0)
    lower, upper = _of_corners(jnp.divide, a, Bounds(*(jnp.where(bounded, end, 1.0) for end in b)))
    return Bounds(jnp.where(bounded, lower, -jnp.inf), jnp.where(bounded, upper, jnp.inf))


def _abs(value):
    lower, upper = value
    return Bounds(jnp.maximum(jnp.maximum(lower, -upper), 0), jnp.maximum(-lower, upper))


def _square(value):
    return Bounds(*(jnp.square(end) for end in _abs(value)))


def _integer_pow(eqn, value):
    power = eqn.params["y"]
    if power < 0:
        raised = _integer_pow_positive(value, -power)
        return _div(eqn, jnp.ones_like(raised.lower), raised)
    return _integer_pow_positive(value, power)


def _integer_pow_positive(value, power):
    base = value if power % 2 else _abs(value)
    return Bounds(*(jax.lax.integer_pow(end, power) for end in base))


def _select(eqn, which, *cases):
    """One of two, where the choice itself depends on intervals: both, unless it is the same for all inputs."""
    unchosen, chosen = cases
    lower = jnp.where(which.upper, jnp.minimum(lower_end(unchosen), lower_end(chosen)), lower_end(unchosen))
    upper = jnp.where(which.upper, jnp.maximum(upper_end(unchosen), upper_end(chosen)), upper_end(unchosen))
    return Bounds(jnp.where(which.lower, lower_end(chosen), lower), jnp.where(which.lower, upper_end(chosen), upper))


def _convert(eqn, value):
    if jnp.issubdtype(eqn.params["new_dtype"], jnp.bool_):  # whether it is not zero
        lower, upper = value
        return Bounds((lower > 0) | (upper < 0), (lower != 0) | (upper != 0))
    return monotone_outputs(eqn, [value], "+")[0]


def _is_finite(eqn, value):
    return Bounds(jnp.isfinite(value.lower) & jnp.isfinite(value.upper), jnp.ones_like(value.lower, bool))


RULES = {
    "abs": lambda eqn, value: _abs(value),
    "conv_general_dilated": _bilinear,
    "convert_element_type": _convert,
    "div": _div,
    "dot_general": _bilinear,
    "integer_pow": _integer_pow,
    "is_finite": _is_finite,
    "mul": _mul,
    "select_n": _select,
    "square": lambda eqn, value: _square(value),
}
