"""Runs of the training scripts as what :mod:`~experiments.harness.combination` takes: how their parameters are judged.

Language models by their loss on held-out text, consistency and diffusion models by their samples. Whatever a search may
look at, text, examples or noise, is none of what is reported.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.harness import consistency_settings, pretraining
from experiments.harness.combination import Combinable
from experiments.harness.consistency_training import ConsistencyTraining
from experiments.harness.examples import as_floats
from experiments.harness.mesh import rows_sharding
from experiments.harness.placement import OnMesh
from experiments.harness.pretraining import Pretraining
from experiments.harness.run_settings import DeviceSettings
from experiments.harness.sample_plots import plot_samples
from experiments.harness.training_run import CONFIG, read_settings
from jaxreg.typing import Array, Float, PRNGKeyArray
from jaxreg.validation import check_range

NOISE_SEED = 0
"""Of the noise that samples are made of; the same for all runs, and for a run's searches however often."""

PICTURED_IMAGES, PICTURED_POINTS = 64, 2048


def open_run(
    workdir: Path,
    *,
    search_batches: int | None = None,
    report_batches: int | None = None,
    devices: DeviceSettings = DeviceSettings(),
) -> Combinable:
    """The run in a directory, of whichever script.

    Args:
        workdir: the run's directory.
        search_batches: how many batches to choose by; the kind's usual number by default.
        report_batches: how many others to report on.
        devices: where.

    Raises:
        ValueError: it holds no run, or there is not enough to judge by.
    """
    try:
        groups = json.loads((workdir / CONFIG).read_text())
    except (OSError, ValueError):
        groups = ()  # what is wrong is said by whoever reads the settings
    kind = GenerativeModel if "objective" in groups else LanguageModel
    given = {"search_batches": search_batches, "report_batches": report_batches}
    return kind(workdir, **{name: value for name, value in given.items() if value is not None}, devices=devices)


class LanguageModel(Combinable):
    """A run of :mod:`experiments.pretrain`, judged by its loss on held-out text.

    Args:
        workdir: the run's directory.
        search_batches: held-out batches for the search.
        report_batches: other ones, for what is reported.
        devices: where.

    Raises:
        ValueError: it is not the directory of a run, or its held-out text is too short for so many batches.
    """

    metric = "loss (nats a token)"

    def __init__(
        self,
        workdir: Path,
        *,
        search_batches: int = 2,
        report_batches: int = 4,
        devices: DeviceSettings = DeviceSettings(),
    ):
        _check_batches(search_batches, report_batches)
        run = Pretraining(read_settings(workdir, pretraining.Settings), devices)
        self.shapes = run.shapes()
        total = search_batches + report_batches
        batches = run.corpus.validation(total)
        _check_disjoint(batches, total, run.settings.model.context, in_memory=len(run.corpus.text) > 0)
        rows = [run.placement.rows(batch.tokens) for batch in batches]
        # Spread over the text: its beginning and its end are of different kinds.
        search = set(np.linspace(0, total - 1, search_batches).round().astype(int).tolist())
        self._search = [part for number, part in enumerate(rows) if number in search]
        self._report = [part for number, part in enumerate(rows) if number not in search]
        self._mean = run.placement.compile_mean(run.validation_loss)

    def fitness(self, params: Any) -> float:
        return self._loss(params, self._search)

    def report(self, params: Any) -> dict[str, float]:
        return {"loss": self._loss(params, self._report)}

    def _loss(self, params, batches):
        return float(np.mean(jax.device_get([self._mean(params, rows) for rows in batches])))


class GenerativeModel(Combinable):
    """A run of :mod:`experiments.consistency`, judged by how far its samples are from data.

    That is the Fréchet distance of images and the energy distance of points. A search compares with examples that were
    trained on, a report with those that were not; if one of these is among the former too, it is left out there. There
    are as many examples as samples, or all there are. Samples are made a batch of training at a time.

    Args:
        workdir: the run's directory.
        search_batches: batches of samples for the search, always of the same noise.
        report_batches: other ones, for what is reported.
        devices: where.

    Raises:
        ValueError: it is not the directory of a run, or it has no examples to search by but those to report on.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        search_batches: int = 8,
        report_batches: int = 32,
        devices: DeviceSettings = DeviceSettings(),
    ):
        _check_batches(search_batches, report_batches)
        run = ConsistencyTraining(read_settings(workdir, consistency_settings.Settings), devices)
        batch = run.settings.data.batch
        self.shapes = run.shapes()
        self.metric = "energy distance of samples" if len(run.shape) == 1 else "Fréchet distance of samples"
        key_search, key_report = jax.random.split(jax.random.key(NOISE_SEED))
        self.search_noise, self.report_noise = _keys(key_search, search_batches), _keys(key_report, report_batches)
        self.report_examples = np.asarray(run.held_out[: report_batches * batch])
        self.search_examples = _others(_trained_on(run, search_batches * batch), self.report_examples)
        if len(self.search_examples) < 2:
            raise ValueError(f"{workdir} was trained on hardly any example but those that it is judged by")
        self._fitness = self._distance(run, self.search_noise, self.search_examples)
        self._report = self._distance(run, self.report_noise, self.report_examples)
        self._points = self.report_examples[:PICTURED_POINTS] if len(run.shape) == 1 else None
        pictured = PICTURED_IMAGES if self._points is None else PICTURED_POINTS
        self._draw = jax.jit(lambda params: run.sample(params, self.report_noise[0], pictured))

    def fitness(self, params: Any) -> float:
        return float(self._fitness(params))

    def report(self, params: Any) -> dict[str, float]:
        return {"distance": float(self._report(params))}

    def others(self, state: Any) -> dict[str, Any]:
        return {"EMA of the training": state.average}

    def picture(self, params: Any, path: Path) -> Path:
        return plot_samples(jax.device_get(self._draw(params)), path, data=self._points)

    @staticmethod
    def _distance(run, keys: PRNGKeyArray, examples: Float[Array, "n *shape"]) -> Callable[[Any], Float[Array, ""]]:
        """Of the samples that parameters make of some noise, as one jitted function."""
        distance = run.distance_to(examples)

        batch, placement = run.settings.data.batch, run.placement

        def draw(params, key):
            samples = run.sample(params, key, batch)
            if isinstance(placement, OnMesh) and batch % placement.mesh.size == 0:
                # Or every device would make all of them.
                samples = jax.lax.with_sharding_constraint(samples, rows_sharding(placement.mesh))
            return samples

        @jax.jit
        def judge(params):
            samples = jax.lax.map(functools.partial(draw, params), keys)
            return distance(samples.reshape(-1, *run.shape))

        return judge


def _check_batches(search_batches, report_batches):
    check_range("search_batches", search_batches, "[1, inf)")
    check_range("report_batches", report_batches, "[1, inf)")


def _keys(key, count):
    """The first keys of an endless row."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(count))


def _check_disjoint(batches, total, context, *, in_memory):
    if in_memory:
        distances = np.diff(np.sort(np.concatenate([batch.positions for batch in batches])))
        alike = bool((distances < context).any())
    else:
        tokens = np.concatenate([batch.tokens for batch in batches])
        alike = len(np.unique(tokens, axis=0)) < len(tokens)
    if alike:
        raise ValueError(
            "search_batches and report_batches must be fewer, for the held-out text is too short for "
            f"{total} batches of different rows"
        )


def _trained_on(run, count):
    """The examples of the first batches, each once: ``count`` of them or, if there are fewer, all."""
    found: dict[int, Any] = {}
    batches, repeated = run.batches(), False
    while len(found) < count and not repeated:  # an epoch has every example once
        batch = next(batches)
        positions = batch.positions.tolist()
        repeated = not found.keys().isdisjoint(positions)
        found |= zip(positions, np.asarray(as_floats(batch.rows)), strict=True)
    return np.stack(list(found.values())[:count])


def _others(examples, known):
    """Those examples that are not among the known ones."""
    seen = {example.tobytes() for example in known}
    return np.array([example for example in examples if example.tobytes() not in seen])
