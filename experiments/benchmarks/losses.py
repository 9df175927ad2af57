"""Time and memory of losses, next to cross-entropy, and of interval bounds, next to a forward pass.

    python -m experiments.benchmarks losses                        # [8192, 1000] float32: two minutes on two cores
    python -m experiments.benchmarks losses --batch 1024 --only comp_sum --only elr

One call is the mean loss of a batch, its gradient with respect to the logits and, for a loss that has a state, the next
one in place of the last, all of it jitted. The training set is as large as the batch. Every loss is timed by turns with
``optax.softmax_cross_entropy_with_integer_labels``; the table has the median of the pairs' ratios and their quartiles.
The row ``cross_entropy`` is that loss against itself: its distance from 1 is the noise. "temp" is what a call stores on
its way, arguments and results not counted, in multiples of the logits' bytes. Soft targets, a teacher's logits and the
like are given. The bounds of a network's outputs over a box of inputs are timed by turns with a forward pass. Results
are written to ``experiments/results/benchmarks/losses_<backend>.json``.

Cross-entropy reads the logits and writes their gradient. What takes a second array of their size, soft targets or a
teacher's logits, has half as much again to move, and ``elr`` and ``pskd``, which take each example's row from a table
and put another one back, twice as much.
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.benchmarks.optimizers import RESULTS
from experiments.benchmarks.timing import paired_ratio
from experiments.harness import results
from experiments.harness.models import Mlp
from jaxreg import losses, robustness
from jaxreg.typing import Array, Float, Int
from jaxreg.validation import check_range


class Given(NamedTuple):
    """What losses take beside the logits.

    Attributes:
        labels: class indices.
        partners: those of the examples that are mixed in.
        index: positions of the examples in a training set of this size.
        targets: class probabilities.
        others: logits of another network, or of mixed examples.
        state: of a loss that has one.
    """

    labels: Int[Array, "batch"]
    partners: Int[Array, "batch"]
    index: Int[Array, "batch"]
    targets: Float[Array, "batch classes"]
    others: Float[Array, "batch classes"]
    state: Any = None


class Loss(NamedTuple):
    """A row of the table.

    Attributes:
        of: the losses of a batch, of logits and what else is given; with the next state if there is one.
        init: makes the state, of the number of examples and of classes.
    """

    of: Callable[[Float[Array, "batch classes"], Given], Any]
    init: Callable[[int, int], Any] | None = None


def _beside_a_table(logits, given):
    """Cross-entropy, while the examples' rows of a table are read, scaled and written: what any loss pays for one."""
    table = given.state.at[given.index].multiply(0.7, unique_indices=True)
    return optax.softmax_cross_entropy_with_integer_labels(logits, given.labels), table


LOSSES: Mapping[str, Loss] = {
    "cross_entropy": Loss(lambda x, g: optax.softmax_cross_entropy_with_integer_labels(x, g.labels)),
    "cross_entropy, beside a table": Loss(_beside_a_table, lambda n, classes: jnp.ones([n, classes])),
    "comp_sum": Loss(lambda x, g: losses.comp_sum(x, g.labels)),
    "comp_sum, tau 1.7": Loss(lambda x, g: losses.comp_sum(x, g.labels, tau=1.7)),
    "ldr_kl": Loss(lambda x, g: losses.ldr_kl(x, g.labels)),
    "ldr_kl, raw logits": Loss(lambda x, g: losses.ldr_kl(x, g.labels, normalize=None)),
    "aldr_kl": Loss(
        lambda x, g: losses.aldr_kl(g.state, x, g.labels, g.index), lambda n, classes: losses.aldr_kl_init(n)
    ),
    "elr": Loss(lambda x, g: losses.elr(g.state, x, g.labels, g.index), losses.elr_init),
    "pskd": Loss(lambda x, g: losses.pskd(g.state, x, g.labels, g.index, alpha=0.5), losses.pskd_init),
    "soft_cross_entropy": Loss(lambda x, g: losses.soft_cross_entropy(x, g.targets)),
    "kd_kl": Loss(lambda x, g: losses.kd_kl(x, g.others)),
    "binary_kl_norm": Loss(lambda x, g: losses.binary_kl_norm(x, g.others)),
    "decoupled_mixup_ce": Loss(lambda x, g: losses.decoupled_mixup_ce(x, g.labels, g.partners, 0.3)),
    "decoupled_mixup_bce": Loss(lambda x, g: losses.decoupled_mixup_bce(x, g.labels, g.partners, 0.3)),
    "mixup_ranking": Loss(lambda x, g: losses.mixup_ranking(x, g.others, g.targets)),
    "mndcg, one mixture": Loss(lambda x, g: losses.mndcg(x, g.others[:, None], g.targets[:, None])),
    "flexible_evidential": Loss(lambda x, g: losses.flexible_evidential(x, g.labels)),
    "stablemax_cross_entropy": Loss(lambda x, g: losses.stablemax_cross_entropy(x, g.labels)),
}


class Network(NamedTuple):
    """A network whose outputs are bounded.

    Attributes:
        module: flax's.
        inputs: shape of a batch.
    """

    module: nn.Module
    inputs: tuple[int, ...]


def _convolutional():
    layers = []
    for features in (32, 64, 64):
        layers += [nn.Conv(features, (3, 3), strides=2), nn.relu]
    return nn.Sequential([*layers, lambda x: x.reshape(len(x), -1), nn.Dense(10)])


NETWORKS: Mapping[str, Network] = {
    "bounds, dense": Network(Mlp((1024, 1024, 1024, 1024, 10)), (512, 784)),
    "bounds, convolutional": Network(_convolutional(), (128, 32, 32, 3)),
}


def main(
    batch: int = 8192,
    classes: int = 1000,
    repeats: int = 20,
    only: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = (),
    out: Path = RESULTS,
) -> int:
    """Losses: time of value and gradient as ratios to cross-entropy, memory; interval bounds to a forward pass.

    Args:
        batch: examples, at least 2.
        classes: at least 2.
        repeats: pairs of samples to time for each row.
        only: name of a row; give it several times for several. All of them by default.
        out: directory for the JSON file.

    Returns:
        The exit code: 0, or 2 where an argument cannot be used.
    """
    try:
        for name, value, interval in (
            ("--batch", batch, "[2, inf)"),
            ("--classes", classes, "[2, inf)"),
            ("--repeats", repeats, "[1, inf)"),
        ):
            check_range(name, value, interval)
        for name in only:
            if name not in {*LOSSES, *NETWORKS}:
                raise ValueError(f"--only: no row {name!r}; there are {', '.join(map(repr, [*LOSSES, *NETWORKS]))}")
        results.prepare(out)
    except (ValueError, results.OutputError) as error:
        print(error, file=sys.stderr)
        return 2
    rows = []
    with Console(stderr=True).status("") as status:
        for name in only or (*LOSSES, *NETWORKS):
            status.update(f"timing {name}")
            if name in LOSSES:
                rows.append(measure_loss(name, batch, classes, repeats=repeats))
            else:
                rows.append(measure_bounds(name, repeats=repeats))
    result = {
        "benchmark": "losses",
        **results.environment(jax.devices()[:1]),
        "batch": batch,
        "classes": classes,
        "repeats": repeats,
        "rows": rows,
    }
    Console(width=None if sys.stdout.isatty() else 100).print(table(result))
    path = out / f"losses_{result['backend']}.json"
    results.write_json(path, result)
    print(path)
    return 0


def measure_loss(name: str, batch: int, classes: int, *, repeats: int) -> dict[str, object]:
    """The row of one loss."""
    logits, given = _example(batch, classes)
    peer = LOSSES["cross_entropy"]
    call, temp = _compile(LOSSES[name], logits, given)
    peer_call, _ = _compile(peer, logits, given)
    ratio = paired_ratio(call, peer_call, repeats=repeats)
    return {"name": name, "peer": "cross_entropy", **ratio.figures(), "temp_logits": round(temp / logits.nbytes, 3)}


def measure_bounds(name: str, *, repeats: int) -> dict[str, object]:
    """The row of one network's bounds."""
    module, shape = NETWORKS[name]
    inputs = jax.random.uniform(jax.random.key(0), shape)
    params = module.init(jax.random.key(1), inputs)
    forward = jax.jit(module.apply)
    bounds = jax.jit(
        lambda params, x: robustness.interval_bounds(lambda x: module.apply(params, x), x - 0.01, x + 0.01)
    )
    ratio = paired_ratio(
        lambda: jax.block_until_ready(bounds(params, inputs)),
        lambda: jax.block_until_ready(forward(params, inputs)),
        repeats=repeats,
    )
    return {"name": name, "peer": "forward pass", **ratio.figures()}


def table(result: Mapping) -> Table:
    """The rows as a table for the terminal."""
    title = f"losses of [{result['batch']}, {result['classes']}] float32 logits, {result['backend']}"
    grid = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    grid.add_column("", no_wrap=True)
    for header in ("ms", "ratio", "quartiles", "temp"):
        grid.add_column(header, justify="right", no_wrap=True)
    grid.add_column("to", no_wrap=True)
    for row in result["rows"]:
        low, high = row["ratio_quartiles"]
        temp = f"{row['temp_logits']:.2f}" if "temp_logits" in row else "-"
        grid.add_row(row["name"], f"{row['ms']:.2f}", f"{row['ratio']:.3f}", f"{low:.2f}-{high:.2f}", temp, row["peer"])
    return grid


def _example(batch, classes):
    keys = jax.random.split(jax.random.key(0), 6)
    labels, partners = jax.random.randint(keys[0], [2, batch], 0, classes)
    logits, others = 3 * jax.random.normal(keys[1], [2, batch, classes])
    targets = jax.nn.softmax(jax.random.normal(keys[2], [batch, classes]))
    return logits, Given(labels, partners, jax.random.permutation(keys[3], batch), targets, others)


def _compile(loss, logits, given):
    """A call of the loss and its gradient, and the bytes that it stores on its way. The state goes on in place."""

    def mean(logits, state, given):
        result = loss.of(logits, given._replace(state=state))
        values, state = (result, ()) if loss.init is None else result
        return jnp.mean(values), state

    state = () if loss.init is None else loss.init(*logits.shape)
    step = jax.jit(jax.value_and_grad(mean, has_aux=True), donate_argnums=1).lower(logits, state, given).compile()

    def call():
        nonlocal state
        (_, state), _ = jax.block_until_ready(step(logits, state, given))

    return call, step.memory_analysis().temp_size_in_bytes
