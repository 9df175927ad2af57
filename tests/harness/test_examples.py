import itertools
import json

import jax
import numpy as np
import pytest

from experiments.harness.data import digits
from experiments.harness.examples import _points, as_floats, open_examples
from experiments.harness.frechet import SPLIT_SEED
from jaxreg.data import gaussian_ring, two_moons
from jaxreg.metrics import energy_distance
from tests.jax_options import configured


def write(tmp_path, images):
    np.save(tmp_path / "images.npy", images)
    return f"file:{tmp_path / 'images.npy'}"


def numbered(tmp_path, count=20, **options):
    """Images of one pixel that is the image's number, of which a tenth is held out."""
    images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None], (count, 4, 4))
    return open_examples(write(tmp_path, images), **{"batch": 5, **options})


def rows_of(batches, count):
    return np.concatenate([batch.rows for batch in itertools.islice(batches, count)])


def test_digits_are_those_the_classifier_knows_and_those_it_does_not():
    source = open_examples("digits", batch=4)
    split = digits(jax.random.key(SPLIT_SEED))
    assert source.shape == (8, 8, 1)
    batch = next(source.train())
    np.testing.assert_allclose(batch.rows.reshape(4, 64), 2 * np.asarray(split.train_x)[batch.positions] - 1, atol=1e-6)
    np.testing.assert_allclose(source.held_out.reshape(-1, 64), 2 * np.asarray(split.test_x) - 1, atol=1e-6)


def test_points_to_be_judged_by_are_not_trained_on():
    source = open_examples("moons", batch=2**16)
    assert source.shape == (2,)
    trained = {tuple(point) for point in next(source.train()).rows.tolist()}
    assert len(trained) == 2**16
    assert not trained & {tuple(point) for point in source.held_out.tolist()}


@pytest.mark.parametrize(("name", "density"), [("ring", gaussian_ring), ("moons", two_moons)])
def test_points_are_of_the_density_of_that_name(name, density):
    held_out = open_examples(name, batch=1).held_out
    one, other = (np.asarray(density(jax.random.key(number), len(held_out))) for number in (0, 1))
    far = float(energy_distance(one, other * 1.1, block_size=1024))
    assert abs(float(energy_distance(one, held_out, block_size=1024))) < 0.2 * far
    np.testing.assert_allclose(held_out.std(axis=0), one.std(axis=0), rtol=0.02)


def test_a_state_is_valid_whatever_jax_was_told_about_compiling():
    options = dict(jax_disable_most_optimizations=not jax.config.values["jax_disable_most_optimizations"])
    state = open_examples("ring", batch=4).train().state()
    _points.cache_clear()  # as in a new process
    with configured(**options):
        next(open_examples("ring", batch=4).train(state))


def test_an_epoch_has_every_example_once_and_the_next_in_another_order(tmp_path):
    source = numbered(tmp_path)
    held_out = source.held_out[:, 0, 0, 0].tolist()
    rows = rows_of(source.train(), 8)[:, 0, 0, 0]  # 40 of 18
    first, second = rows[:18].tolist(), rows[18:36].tolist()
    assert sorted(first) == sorted(second) == sorted(set(range(20)) - set(held_out))
    assert len(held_out) == 2
    assert first != second


@pytest.mark.parametrize("steps", [0, 4, 11])
def test_a_state_continues_with_exactly_the_next_batch(tmp_path, steps):
    options = dict(flip=True, seed=3)
    batches = numbered(tmp_path, **options).train()
    for _ in range(steps):
        next(batches)
    state = json.loads(json.dumps(batches.state()))
    resumed = numbered(tmp_path, **options).train(state)
    assert resumed.state() == state
    np.testing.assert_array_equal(rows_of(resumed, 5), rows_of(batches, 5))


def test_processes_have_their_parts_of_the_same_batches(tmp_path):
    whole = rows_of(numbered(tmp_path, batch=6, flip=True).train(), 4).reshape(4, 6, -1)
    parts = [
        rows_of(numbered(tmp_path, batch=6, flip=True, process_index=index, process_count=3).train(), 4)
        for index in range(3)
    ]
    np.testing.assert_array_equal(np.concatenate([part.reshape(4, 2, -1) for part in parts], axis=1), whole)


def test_half_of_the_images_are_mirrored(tmp_path):
    image = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
    spec = write(tmp_path, np.repeat(image, 20, axis=0))
    rows = rows_of(open_examples(spec, batch=400, flip=True).train(), 1)[..., 0]
    mirrored = (rows == image[:, :, ::-1]).all((1, 2))
    assert ((rows == image).all((1, 2)) ^ mirrored).all()
    assert 150 < mirrored.sum() < 250


def test_bytes_are_colours_and_numbers_are_as_they_are():
    np.testing.assert_allclose(as_floats(np.array([0, 51, 255], np.uint8)), [-1, -0.6, 1], atol=1e-6)
    np.testing.assert_array_equal(as_floats(np.array([0.0, 51.0], np.float32)), [0, 51])


def test_a_state_of_other_examples_is_refused(tmp_path):
    state = numbered(tmp_path).train().state()
    with pytest.raises(ValueError, match="seed was 0, here it is 1"):
        numbered(tmp_path, seed=1).train(state)


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("digit", {}, r'data must be "digits", "ring", "moons", "file:PATH" or "hf:NAME", got \'digit\''),
        ("ring", {"flip": True}, "flip is for images"),
        ("ring", {"size": 4}, "size is for folders and data sets, got 4 for ring"),
        ("ring", {"batch": 0}, "batch must be in"),
        ("ring", {"process_count": 4, "batch": 6}, "batch must be divisible by process_count = 4, got 6"),
        ("file:nowhere.npy", {}, "nowhere.npy: there is no such file"),
    ],
)
def test_what_cannot_be_opened_is_named(spec, options, message):
    with pytest.raises(ValueError, match=message):
        open_examples(spec, **{"batch": 4, **options})


def test_too_few_images_to_hold_some_out_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"held_out_share must leave .* got 0.1 of 10"):
        numbered(tmp_path, count=10)
    with pytest.raises(ValueError, match=r"size is for folders and data sets; .* \(4, 4, 1\)"):
        numbered(tmp_path, size=8)
