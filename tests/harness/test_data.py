import pydoc_data.topics

import jax
import jax.numpy as jnp
import numpy as np
import sklearn.datasets

from experiments.harness import data


def test_digits_are_split_without_loss():
    split = data.digits(jax.random.key(0), train=1200)
    assert split.train_x.shape == (1200, 64)
    assert split.test_x.shape == (597, 64)
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    ours = np.concatenate([split.train_x, split.test_x])
    ours_labels = np.concatenate([split.train_y, split.test_y])
    order, theirs = np.lexsort(ours.T), np.lexsort(images.T)
    np.testing.assert_array_equal(16 * ours[order], images[theirs])
    np.testing.assert_array_equal(ours_labels[order], labels[theirs])


def test_every_seed_splits_differently():
    a, b = (data.digits(jax.random.key(seed)).train_y for seed in (0, 1))
    assert (a != b).any()


def test_long_tailed_digits_are_rare_in_training_and_none_in_the_test():
    split = data.long_tailed_digits(jax.random.key(0), largest=140, ratio=50.0)
    counts = data.long_tailed_counts()
    np.testing.assert_allclose(counts, 140 * 50 ** (-np.arange(10) / 9), atol=0.5)
    np.testing.assert_array_equal(np.bincount(split.train_y, minlength=10), counts)
    np.testing.assert_array_equal(np.bincount(split.test_y), 34)
    both = np.concatenate([split.train_x, split.test_x])
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    of_image = {tuple(image): label for image, label in zip(images, labels, strict=True)}
    found = [of_image[tuple(image)] for image in 16 * both]  # every image is there, with its label
    np.testing.assert_array_equal(found, np.concatenate([split.train_y, split.test_y]))
    assert len(np.unique(both, axis=0)) == len(both)


def test_binary_tasks_are_two_digits_or_diagnoses():
    tasks = data.binary_tasks(jax.random.key(0), train=100, test=250)
    assert tasks.train_x.shape == (4, 100, 64)
    assert tasks.test_x.shape == (4, 250, 64)
    x, y = (np.concatenate(pair, axis=1) for pair in ((tasks.train_x, tasks.test_x), (tasks.train_y, tasks.test_y)))
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    of_image = {tuple(image): label for image, label in zip(images, labels, strict=True)}
    for task, pair in enumerate(data.BINARY_TASKS[1:], start=1):
        assert len(np.unique(x[task], axis=0)) == 350
        np.testing.assert_array_equal([of_image[tuple(image)] for image in 16 * x[task]], np.array(pair)[y[task]])
    measured, diagnoses = sklearn.datasets.load_breast_cancer(return_X_y=True)
    standard = (measured - measured.mean(0)) / measured.std(0)
    nearest = np.square(x[0][:, None, :30] - standard).sum(-1).argmin(1)
    np.testing.assert_allclose(x[0][:, :30], standard[nearest], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(y[0], diagnoses[nearest])
    assert len(np.unique(nearest)) == 350
    assert not x[0][:, 30:].any()


def test_a_quarter_turn_is_a_permutation_and_small_turns_add_up_to_one():
    image = jax.random.uniform(jax.random.key(0), [8, 8])
    np.testing.assert_allclose(image.ravel() @ data.rotation(90.0), jnp.rot90(image).ravel(), atol=1e-5)
    # A smooth blob, well inside the image: interpolation and the border do not matter much.
    x, y = np.mgrid[:8, :8] - 3.5
    blob = np.exp(-((x - 1) ** 2 + y**2) / 2)
    turned = blob.ravel() @ data.rotation(30.0) @ data.rotation(60.0)
    assert np.corrcoef(turned, np.rot90(blob).ravel())[0, 1] > 0.98


def test_flipped_labels_are_the_given_share_and_always_wrong():
    labels = jnp.arange(20_000) % 10
    noisy = data.flip_labels(jax.random.key(0), labels, rate=0.4, num_classes=10)
    flipped = noisy != labels
    np.testing.assert_allclose(flipped.mean(), 0.4, atol=4 * np.sqrt(0.24 / 20_000))
    shift = np.bincount(np.asarray((noisy - labels) % 10)[np.asarray(flipped)], minlength=10)
    np.testing.assert_allclose(shift[1:] / flipped.sum(), 1 / 9, atol=0.015)
    assert (data.flip_labels(jax.random.key(0), labels, rate=0.0, num_classes=10) == labels).all()


def test_documentation_can_be_read_back():
    text = data.documentation()
    topics = pydoc_data.topics.topics
    original = "".join(topics[name] for name in sorted(topics)).encode()
    assert len(text.train) + len(text.validation) == len(original)
    assert len(text.train) == int(0.9 * len(original))
    symbols = np.concatenate([text.train, text.validation])
    alphabet = np.frombuffer(text.alphabet, np.uint8)
    assert len(alphabet) == 63
    known = symbols < 63
    np.testing.assert_array_equal(alphabet[symbols[known]], np.frombuffer(original, np.uint8)[known])
    assert not np.isin(np.frombuffer(original, np.uint8)[~known], alphabet).any()
    assert known.mean() > 0.95


def test_the_commonest_bytes_come_first():
    text = data.documentation()
    counts = np.bincount(np.concatenate([text.train, text.validation]), minlength=64)
    assert (np.diff(counts[:63]) <= 0).all()
    assert text.alphabet[:1] == b" "
