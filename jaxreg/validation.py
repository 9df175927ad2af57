"""What hyperparameters and arguments must satisfy."""

import numbers


def check_range(name: str, value: object, interval: str) -> None:
    """Raises unless ``value`` lies in an interval written as in mathematics.

    Only Python (and NumPy) numbers are looked at: a JAX array may be traced, and reading it would block the device.

    >>> check_range("b1", 1.5, "[0, 1)")
    Traceback (most recent call last):
    ValueError: b1 must be in [0, 1), got 1.5

    Args:
        name: the argument's name, for the message.
        value: what was passed.
        interval: such as ``"[0, 1)"`` or ``"(0, inf)"``.

    Raises:
        ValueError: ``value`` is a number outside the interval (NaN is outside of every interval).
    """
    if not isinstance(value, numbers.Real):
        return
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    if not (above and below):
        raise ValueError(f"{name} must be in {interval}, got {value}")


def check_params(params: object) -> None:
    """Raises unless the ``update`` of an optimizer got the parameters.

    >>> check_params(None)
    Traceback (most recent call last):
    ValueError: this transformation needs the current parameters: call update(updates, state, params)

    Args:
        params: what ``update`` was passed.

    Raises:
        ValueError: it is None.
    """
    if params is None:
        raise ValueError("this transformation needs the current parameters: call update(updates, state, params)")
