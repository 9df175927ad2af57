import io
import re

import numpy as np
import PIL.Image
import pytest

from experiments.harness.image_files import read_array, read_dataset, read_folder

COLOURED = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3), dtype=np.uint8)


def write_pictures(folder, images, kind="png"):
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        PIL.Image.fromarray(image).save(folder / f"{number:03}.{kind}")
    return folder


def test_an_array_is_read_as_it_is(tmp_path):
    np.save(tmp_path / "a.npy", COLOURED)
    np.testing.assert_array_equal(read_array(tmp_path / "a.npy"), COLOURED)


def test_the_images_of_an_archive_are_found_by_their_name_and_grey_ones_get_a_channel(tmp_path):
    np.savez(tmp_path / "a.npz", y_train=np.arange(5), x_train=COLOURED[..., 0] / 255)
    images = read_array(tmp_path / "a.npz")
    assert images.dtype == np.float32
    np.testing.assert_allclose(images[..., 0], COLOURED[..., 0] / 255, rtol=1e-6)
    np.savez_compressed(tmp_path / "b.npz", whatever=COLOURED)
    np.testing.assert_array_equal(read_array(tmp_path / "b.npz"), COLOURED)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.zeros([2, 2]), "b": np.zeros([2, 2])}, "one called images or x_train or arr_0, got a, b"),
        ({"images": np.zeros(3)}, r"2 to 4 dimensions, got float64 \(3,\)"),
        ({"images": np.array([["a"]])}, "must hold numbers"),
        ({"images": np.array([[1.0, np.nan]])}, "must hold finite numbers"),
    ],
)
def test_what_is_no_array_of_images_is_named(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        read_array(tmp_path / "a.npz")


def test_a_damaged_file_is_named(tmp_path):
    np.savez(tmp_path / "a.npz", images=COLOURED)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"cut\.npz cannot be read as an \.npy or \.npz file"):
        read_array(tmp_path / "cut.npz")


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path):
    write_pictures(tmp_path / "b", COLOURED[2:])
    write_pictures(tmp_path / "a", COLOURED[:2])
    (tmp_path / "notes.txt").write_text("not a picture")
    np.testing.assert_array_equal(read_folder(tmp_path), COLOURED)


def test_grey_pictures_have_one_channel_unless_others_have_colours(tmp_path):
    write_pictures(tmp_path, COLOURED[:2, ..., 0])
    np.testing.assert_array_equal(read_folder(tmp_path), COLOURED[:2, ..., :1])
    PIL.Image.fromarray(COLOURED[2]).save(tmp_path / "coloured.png")
    images = read_folder(tmp_path)
    np.testing.assert_array_equal(images[0], np.repeat(COLOURED[0, ..., :1], 3, axis=-1))
    np.testing.assert_array_equal(images[2], COLOURED[2])


def test_pictures_are_cropped_to_the_square_in_their_middle_and_scaled(tmp_path):
    wide = np.zeros([4, 8, 3], np.uint8)
    wide[:, 2:6] = 200  # the square
    write_pictures(tmp_path, [wide])
    np.testing.assert_array_equal(read_folder(tmp_path, size=2), np.full([1, 2, 2, 3], 200))


def test_pictures_that_are_not_alike_ask_for_a_size(tmp_path):
    write_pictures(tmp_path, [COLOURED[0], COLOURED[0, :5]])
    with pytest.raises(ValueError, match=r"size must be given .*001\.png is 5 x 8, those before 6 x 8"):
        read_folder(tmp_path)


def test_a_folder_without_pictures_or_with_a_broken_one_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no picture"):
        read_folder(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"broken\.png cannot be read as a picture"):
        read_folder(tmp_path)


class TestDatasets:
    @pytest.fixture(autouse=True)
    def offline(self, monkeypatch, tmp_path):
        """Nothing is downloaded, and nothing written in the home directory."""
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def test_the_images_of_a_data_set_are_those_of_its_column(self, tmp_path):
        import datasets

        def encode(image):
            buffer = io.BytesIO()
            PIL.Image.fromarray(image).save(buffer, format="png")
            return {"bytes": buffer.getvalue(), "path": None}

        features = datasets.Features({"label": datasets.Value("int64"), "img": datasets.Image()})
        columns = {"label": range(5), "img": [encode(image) for image in COLOURED]}
        datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "images.parquet")
        np.testing.assert_array_equal(read_dataset(f"hf:parquet:{tmp_path / 'images.parquet'}"), COLOURED)

    def test_a_folder_is_a_data_set_too(self, tmp_path):
        write_pictures(tmp_path / "pictures", COLOURED)
        np.testing.assert_array_equal(read_dataset(f"hf:imagefolder:{tmp_path / 'pictures'}"), COLOURED)

    def test_a_data_set_without_images_says_what_it_has(self, tmp_path):
        (tmp_path / "text.jsonl").write_text('{"text": "a", "number": 1}\n')
        with pytest.raises(ValueError, match=re.escape("one column of images, got [] of text, number")):
            read_dataset(f"hf:json:{tmp_path / 'text.jsonl'}")
