import matplotlib.image
import numpy as np

from experiments.harness.sample_plots import image_grid, plot_samples


def test_a_grid_has_every_image_in_its_place_with_a_margin():
    images = np.linspace(-1, 1, 5 * 40 * 33).reshape(5, 40, 33, 1)
    grid = image_grid(images, columns=3)
    assert grid.shape == (2 * 41 + 1, 3 * 34 + 1, 3)
    for number, image in enumerate(images):
        top, left = 1 + 41 * (number // 3), 1 + 34 * (number % 3)
        np.testing.assert_allclose(
            grid[top : top + 40, left : left + 33], np.repeat((image + 1) / 2, 3, -1), atol=1e-12
        )
    assert (grid[42:, 1 + 34 * 2 :] == 1).all()  # the place of a sixth
    assert (grid[::41] == 1).all()


def test_small_images_are_magnified_and_colours_beyond_the_ends_are_the_ends():
    images = np.array([[[[2.0, 0.0, -3.0], [np.nan, 1.0, 1.0]]]])  # one image of 1 x 2 pixels
    grid = image_grid(images)
    assert grid.shape == (18, 34, 3)
    np.testing.assert_array_equal(grid[1:17, 1:17], np.broadcast_to([1, 0.5, 0], (16, 16, 3)))
    np.testing.assert_array_equal(grid[1:17, 17:33], np.broadcast_to([0, 1, 1], (16, 16, 3)))


def test_images_are_written_pixel_by_pixel(tmp_path):
    images = np.random.default_rng(0).uniform(-1, 1, (3, 32, 32, 3))
    written = matplotlib.image.imread(plot_samples(images, tmp_path / "a.png", columns=2))[..., :3]
    np.testing.assert_allclose(written, image_grid(images, columns=2), atol=0.5 / 255 + 1e-6)


def test_points_are_drawn_beside_the_data(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr("experiments.harness.sample_plots.save", lambda figure, path: drawn.update(figure=figure))
    points = np.array([[0.5, 0.5], [np.nan, 0.0], [100.0, 0.0]])
    plot_samples(points, tmp_path / "a.png", data=np.array([[-1.0, -1.0], [1.0, 1.0]]))
    (axis,) = drawn["figure"].axes
    lines = {line.get_label(): line.get_xydata() for line in axis.lines}
    np.testing.assert_array_equal(lines["samples"], points[[0, 2]])
    np.testing.assert_array_equal(lines["data"], [[-1, -1], [1, 1]])
    assert axis.get_xlim() == (-1.5, 1.5)  # not as far as the sample far out
