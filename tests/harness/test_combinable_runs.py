import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from experiments.harness import consistency_settings, pretraining
from experiments.harness.combinable_runs import GenerativeModel, LanguageModel, open_run
from experiments.harness.consistency_settings import NetworkSettings
from experiments.harness.pretraining import ModelSettings
from experiments.harness.run_settings import DeviceSettings

ONE = DeviceSettings(devices=1)
LLAMA = ModelSettings(layers=1, width=16, heads=2, hidden=16, context=28)
NETWORK = NetworkSettings(width=8, layers=1)


def write_text_run(workdir, data):
    settings = pretraining.Settings(model=LLAMA, data=pretraining.DataSettings(data=data, batch=8)).complete()
    (workdir / "config.json").write_text(json.dumps(dataclasses.asdict(settings)))
    return workdir


def write_sample_run(workdir, data, batch):
    data = consistency_settings.DataSettings(data=data, batch=batch)
    settings = consistency_settings.Settings(data=data, network=dataclasses.replace(NETWORK, network="mlp")).complete()
    (workdir / "config.json").write_text(json.dumps(dataclasses.asdict(settings)))
    return workdir


class TestLanguageModel:
    def test_search_and_report_read_different_text(self, tmp_path):
        (tmp_path / "text.txt").write_text("".join(f"{number:06d} " for number in range(3000)))
        run = open_run(
            write_text_run(tmp_path, f"file:{tmp_path / 'text.txt'}"), search_batches=2, report_batches=3, devices=ONE
        )
        assert isinstance(run, LanguageModel)
        search, report = (np.concatenate(batches).astype(np.uint8) for batches in (run._search, run._report))
        assert len(search) == 2 * 8
        assert len(report) == 3 * 8
        numbers = [
            {number for row in rows for number in re.findall(r"\d{6}", bytes(row).decode())}
            for rows in (search, report)
        ]
        assert len(numbers[0]) > 3 * 16
        assert not numbers[0] & numbers[1]

    def test_fitness_is_the_mean_loss_and_the_same_at_every_call(self, tmp_path):
        run = open_run(write_text_run(tmp_path, "python"), search_batches=1, report_batches=2, devices=ONE)
        params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), run.shapes.params)
        # All logits are alike: a uniform guess among 256 bytes.
        assert run.fitness(params) == pytest.approx(np.log(256), rel=1e-5)
        assert run.report(params) == {"loss": pytest.approx(np.log(256), rel=1e-5)}
        assert run.others(None) == {}

    def test_too_many_batches_for_the_text_are_refused(self, tmp_path):
        workdir = write_text_run(tmp_path, "python")
        with pytest.raises(ValueError, match=r"too short for 2001 batches"):
            open_run(workdir, search_batches=2000, report_batches=1, devices=ONE)
        with pytest.raises(ValueError, match=r"^search_batches must be in \[1, inf\), got 0"):
            open_run(workdir, search_batches=0, devices=ONE)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = write_sample_run(tmp_path_factory.mktemp("ring"), "ring", batch=128)
    return open_run(workdir, search_batches=2, report_batches=3)


class TestGenerativeModel:
    def test_search_and_report_have_different_noise_and_different_examples(self, run):
        assert isinstance(run, GenerativeModel)
        keys = np.concatenate([jax.random.key_data(noise) for noise in (run.search_noise, run.report_noise)])
        assert len(keys) == len(np.unique(keys, axis=0)) == 5
        assert run.search_examples.shape == (2 * 128, 2)
        assert run.report_examples.shape == (3 * 128, 2)
        assert not {tuple(point) for point in run.search_examples} & {tuple(point) for point in run.report_examples}

    def test_fitness_is_the_energy_distance_of_one_step_samples(self, run):
        params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), run.shapes.params)
        for measured, points in (
            (run.fitness(params), run.search_examples),
            (run.report(params)["distance"], run.report_examples),
        ):
            # Without its network the model maps noise of 80 to next to nothing: the distance to a point at zero.
            between = cdist(points, points).sum() / (len(points) * (len(points) - 1))
            expected = 2 * np.linalg.norm(points, axis=1).mean() - between
            assert measured == pytest.approx(expected, abs=0.01)
        assert run.fitness(params) == run.fitness(params)

    def test_samples_are_the_same_over_any_number_of_devices(self, run, tmp_path):
        alone = open_run(write_sample_run(tmp_path, "ring", batch=128), search_batches=2, report_batches=3, devices=ONE)
        random = np.random.default_rng(0)
        params = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(leaf.dtype), run.shapes.params)
        assert len(run._fitness(params).devices()) == 8
        assert run.fitness(params) == pytest.approx(alone.fitness(params), rel=1e-4)

    def test_an_example_of_the_report_is_none_of_the_search(self, tmp_path):
        images = np.random.default_rng(0).integers(0, 256, [200, 4, 4, 1], np.uint8)
        images[100:] = images[:100]  # everything twice
        np.save(tmp_path / "images.npy", images)
        run = open_run(write_sample_run(tmp_path, f"file:{tmp_path / 'images.npy'}", batch=64), report_batches=1)
        search, report = ({image.tobytes() for image in part} for part in (run.search_examples, run.report_examples))
        assert len(report) > 10
        assert len(search) == 100 - len(report)
        assert not search & report
        np.save(tmp_path / "images.npy", np.repeat(images[:1], 200, axis=0))
        with pytest.raises(ValueError, match="was trained on hardly any example but those"):
            open_run(tmp_path)


def test_what_is_no_run_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"^workdir must be that of a run"):
        open_run(tmp_path)
