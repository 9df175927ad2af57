"""Optimizers and schedules by name, as a command line gives them.

    make_optimizer("stable_spam", 3e-3, steps=2000, options=parse_options(["reset_every=500", "b2=0.95"]))

The schedule has its peak at 1 and is multiplied by the learning rate, which may therefore be traced: a sweep vmaps it.
"""

import difflib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

import jaxreg.optim
import jaxreg.schedules
from experiments.refine import read_schedule
from jaxreg.optim import quantize_state
from jaxreg.typing import ScalarLike
from jaxreg.validation import check_range

_HOMES = {"jaxreg": jaxreg.optim, "optax": optax, "optax.contrib": optax.contrib}
_UNFIT = {
    "dpsgd": "takes the gradients of single examples",
    "lbfgs": "searches along a line, which takes the loss function",
    "optimistic_adam": "takes no schedule; optimistic_adam_v2 does",
    "rprop": "takes no schedule",
    "sm3": "takes no schedule",
    "sophia": "estimates curvature, which takes the loss function",
}
_SHORT_NAMES = {"constant": "constant_schedule", "cosine": "cyclic_cosine", "linear": "linear_decay"}
_OF_JAXREG = ("cyclic_cosine", "linear_decay", "wsd", "wsd_s")


def make_optimizer(
    name: str,
    learning_rate: ScalarLike,
    *,
    steps: int,
    options: Mapping[str, Any] | None = None,
    schedule: str = "cosine",
    schedule_options: Mapping[str, Any] | None = None,
    warmup: float = 0.1,
    clip_norm: float | None = None,
    state_bits: int = 32,
    multipliers: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Any optimizer of jaxreg or optax, with a schedule.

    Pass ``value=loss`` to ``update``: some optimizers look at it, such as ``momo``.

    Args:
        name: one of :func:`optimizer_names`: jaxreg's where optax has one of the same name. "optax.adamw",
            "optax.contrib.muon" or "jaxreg.spam" say whose.
        learning_rate: at the peak, >= 0; may be traced.
        steps: length of the run, at least 1.
        options: the optimizer's keyword arguments.
        schedule: see :func:`make_shape`.
        schedule_options: keyword arguments of the schedule.
        warmup: steps of the warmup, or its share of the run if below 1.
        clip_norm: gradients with a larger norm, of all leaves together, are scaled down to it before the optimizer;
            None for none.
        state_bits: 32, or 8 for :func:`jaxreg.optim.quantize_state`.
        multipliers: tree of floats, like the parameters, that updates are multiplied by at last. So they act like a
            learning rate for every leaf, weight decay that is multiplied by the learning rate included.

    Returns:
        The optimizer.

    Raises:
        ValueError: there is no such optimizer, option or schedule, or an argument is outside its range.
    """
    check_range("learning_rate", learning_rate, "[0, inf)")
    check_range("clip_norm", clip_norm, "(0, inf]")
    if state_bits not in (8, 32):
        raise ValueError(f"state_bits must be 8 or 32, got {state_bits}")
    factory = _find_optimizer(name)
    options = dict(options or {})
    _check_options(name, factory, options, reserved=("learning_rate",))
    shape = make_shape(schedule, steps=steps, warmup=warmup, options=schedule_options)

    def rate(step):
        return learning_rate * shape(step)

    optimizer = _call(name, factory, {"learning_rate": rate} | options, options)
    parts = [quantize_state(optimizer) if state_bits == 8 else optimizer]
    if clip_norm is not None:
        parts.insert(0, optax.clip_by_global_norm(clip_norm))
    if multipliers is not None:
        parts.append(_scaled_by(multipliers))
    return optax.with_extra_args_support(optax.chain(*parts))


def make_shape(
    schedule: str, *, steps: int, warmup: float = 0.1, options: Mapping[str, Any] | None = None
) -> optax.Schedule:
    """A learning-rate schedule by name, as a multiple of the peak.

    Args:
        schedule: "constant", "cosine" (to a tenth, unless ``min_ratio`` says otherwise), "linear" or "wsd"; a schedule
            of optax, with or without "_schedule"; "wsd_s" of jaxreg; or "refined:PATH", which
            ``python -m experiments.refine`` has written for as many steps, and which knows its own warmup.
        steps: length of the run, at least 1.
        warmup: steps, or a share of the run if below 1, in which the rate rises linearly. Schedules that know of no
            warmup begin after it.
        options: the schedule's keyword arguments. Its length, warmup and peak are known.

    Returns:
        A function of the step.

    Raises:
        ValueError: there is no such schedule or option, an argument is outside its range, or a file can't be used.
    """
    check_range("steps", steps, "[1, inf)")
    if schedule.startswith("refined:"):
        if options:
            raise ValueError(f"a refined schedule has no options, got {', '.join(options)}")
        return _read_refined(schedule.removeprefix("refined:"), steps)
    check_range("warmup", warmup, f"[0, {max(1, steps)})")
    warmup_steps = round(warmup * steps) if warmup < 1 else round(warmup)
    factory = _find_schedule(schedule)
    accepted = inspect.signature(factory).parameters
    own_warmup = "warmup_steps" in accepted
    length = steps if own_warmup else steps - warmup_steps
    known = {
        "init_value": 0.0 if "peak_value" in accepted else 1.0,
        **dict.fromkeys(("peak", "peak_value", "value"), 1.0),
        "end_value": 0.0,
        **dict.fromkeys(("total_steps", "decay_steps", "transition_steps"), length),
        "checkpoints": (length,),
        "warmup_steps": warmup_steps,
    }
    options = dict(options or {})
    _check_options(schedule, factory, options)
    inner = _call(schedule, factory, {key: known[key] for key in known if key in accepted} | options, options)
    if own_warmup or warmup_steps == 0:
        return inner

    def shape(step):
        return jnp.where(step < warmup_steps, (step + 1) / warmup_steps, inner(jnp.maximum(step - warmup_steps, 0)))

    return shape


def parse_options(words: Iterable[str]) -> dict[str, Any]:
    """Keyword arguments from words such as ``b2=0.95``, ``nesterov=true``, ``mask=none`` or ``checkpoints=100,200``.

    >>> parse_options(["b2=0.95", "nesterov=true", "mask=none", "code=linear", "checkpoints=100,200"])
    {'b2': 0.95, 'nesterov': True, 'mask': None, 'code': 'linear', 'checkpoints': (100, 200)}

    Args:
        words: each a name, "=" and a number, true, false, none, or text; or several of them, with commas.

    Returns:
        The values by name.

    Raises:
        ValueError: a word is no such thing, or a name comes twice.
    """
    options = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not (equals and text and name.isidentifier()):
            raise ValueError(f"options must look like name=value, got {word!r}")
        if name in options:
            raise ValueError(f"option {name} is given twice: {options[name]!r} and {text}")
        values = tuple(_parse_value(part) for part in text.split(",") if part)
        options[name] = values if "," in text else values[0]
    return options


def optimizer_names() -> tuple[str, ...]:
    """The optimizers that :func:`make_optimizer` knows by name alone."""
    return tuple(sorted({name for home in _HOMES.values() for name in _optimizers_of(home)}))


def _optimizers_of(home):
    """Functions of a learning rate that isn't all there is to them; by name."""
    return {
        name: function
        for name, function in vars(home).items()
        if inspect.isfunction(function)
        and next(iter(inspect.signature(function).parameters), None) == "learning_rate"
        and not name.startswith(("_", "scale_by_"))
        and name not in _UNFIT
    }


def _find_optimizer(name):
    prefix, _, last = name.rpartition(".")
    homes = _HOMES if not prefix else {key: home for key, home in _HOMES.items() if key in (prefix, f"optax.{prefix}")}
    for home in homes.values():
        if last in _optimizers_of(home):
            return _optimizers_of(home)[last]
    if last in _UNFIT and homes:
        raise ValueError(f"optimizer {name} cannot be used here: it {_UNFIT[last]}")
    raise ValueError(f"no optimizer is called {name!r}{_near(last, optimizer_names())}")


def _find_schedule(name):
    ours = {each: getattr(jaxreg.schedules, each) for each in _OF_JAXREG}
    theirs = {each: function for each, function in vars(optax).items() if each.endswith("_schedule")}
    del theirs["scale_by_schedule"]
    known = ours | theirs
    for candidate in (_SHORT_NAMES.get(name, name), f"{name}_schedule"):
        if candidate in known:
            return known[candidate]
    raise ValueError(f"no schedule is called {name!r}{_near(name, ['wsd', *_SHORT_NAMES, *known])}")


def _check_options(name, factory, options, reserved=()):
    accepted = [option for option in inspect.signature(factory).parameters if option not in reserved]
    for option in options:
        if option not in accepted:
            near = _near(option, accepted)
            raise ValueError(f"{name} has no option {option!r}{near}; it takes {', '.join(accepted) or 'none'}")


def _call(name: str, factory: Callable, arguments: dict[str, Any], options: dict[str, Any]):
    parameters = inspect.signature(factory).parameters.values()
    missing = [p.name for p in parameters if p.default is p.empty and p.name not in arguments]
    if missing:
        raise ValueError(f"{name} needs the option{'s' * (len(missing) > 1)} {', '.join(missing)}")
    try:
        return factory(**arguments)
    except TypeError as error:
        given = ", ".join(f"{option}={value!r}" for option, value in options.items())
        raise ValueError(f"{name} cannot take {given}") from error


def _near(name, known):
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _parse_value(text):
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _read_refined(path, steps):
    try:
        with open(path) as file:
            made_for = len(json.load(file)["rates"])
        schedule = read_schedule(path, peak=1.0)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no schedule that `python -m experiments.refine` has written: {error}") from error
    if made_for != steps:
        raise ValueError(f"{path} is for a run of {made_for} steps, got steps={steps}")
    return schedule


def _scaled_by(multipliers):
    def scale(updates, _):
        return jax.tree.map(lambda update, factor: (factor * update).astype(update.dtype), updates, multipliers)

    return optax.stateless(scale)
