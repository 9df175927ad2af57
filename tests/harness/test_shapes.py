import jax
import numpy as np
import scipy.ndimage

from experiments.harness.shapes import CLASSES, render_shapes

SHAPES = render_shapes(jax.random.key(0), 40, side=24, shift=(2, 2), noise=0.1)


def test_shapes_look_like_themselves():
    """The last one drawn, the diamond, is as wide as high, its area half of that of its bounding box."""
    assert SHAPES.images.shape == (40, 24, 24, 3)
    assert set(np.unique(SHAPES.labels)) == set(range(CLASSES))
    whole = 0
    for labels in np.asarray(SHAPES.labels):
        assert scipy.ndimage.label(labels == 3)[1] == 1
        rows, columns = np.nonzero(labels == 3)
        if {0, 23} & {*rows, *columns}:
            continue  # cut off by the edge of the image
        whole += 1
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert abs(height - width) <= 2
        assert 0.35 < len(rows) / (height * width) < 0.65
    assert whole >= 10


def test_noise_dilates_or_erodes_by_the_given_number_of_pixels():
    # A diamond's edges are slanted: two pixels off its edge is at most twice two steps along the axes.
    steps = scipy.ndimage.generate_binary_structure(2, 1)
    larger = 0
    for labels, noisy in zip(np.asarray(SHAPES.labels) == 3, np.asarray(SHAPES.noisy_labels) == 3, strict=True):
        small, large = sorted((labels, noisy), key=np.sum)
        assert small.sum() < large.sum()
        assert (small <= large).all()
        assert (large <= scipy.ndimage.binary_dilation(small, steps, iterations=4)).all() or not small.any()
        larger += noisy.sum() > labels.sum()
    assert 10 < larger < 30


def test_classes_have_colours():
    means = [SHAPES.images[SHAPES.labels == k].mean(0) for k in range(CLASSES)]
    np.testing.assert_allclose(means[0], 0.5, atol=0.05)
    assert [int(np.argmax(mean)) for mean in means[1:]] == [0, 1, 2]
