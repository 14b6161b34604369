import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from transformers_mage import MageConfig
from transformers_mage.data import DataError
from transformers_mage.metrics.images import ImageCollection
from transformers_mage.sampling import ClassPlan, ImageFolderWriter, NpzWriter, TarWriter, samples_path, write_manifest


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (5, 8, 6, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path, pixels):
    (tmp_path / "images" / "nested").mkdir(parents=True)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "images" / ("nested" if i > 2 else "") / f"{i}.png")
    (tmp_path / "images" / "notes.txt").write_text("no image")
    return tmp_path / "images"


@pytest.fixture
def dataset(pixels):
    features = datasets.Features({"picture": datasets.Image(), "label": datasets.Value("int64")})
    pictures = [Image.fromarray(image) for image in pixels]
    return datasets.Dataset.from_dict({"picture": pictures, "label": list(range(5))}, features)


def assert_holds(source, pixels):
    assert torch.equal(torch.stack([source[i] for i in range(len(source))]), torch.tensor(pixels).permute(0, 3, 1, 2))


def test_folder(folder, pixels):
    assert_holds(ImageCollection(folder), pixels)


def test_saved_dataset(dataset, pixels, tmp_path):
    dataset.save_to_disk(tmp_path / "saved")
    assert_holds(ImageCollection(tmp_path / "saved"), pixels)
    datasets.DatasetDict({"test": dataset, "train": dataset}).save_to_disk(tmp_path / "splits")
    assert_holds(ImageCollection(tmp_path / "splits", split="test"), pixels)
    with pytest.raises(DataError, match=r"it has the splits \['test', 'train'\]"):
        ImageCollection(tmp_path / "splits")


def test_parquet(dataset, pixels, tmp_path):
    (tmp_path / "parquet").mkdir()
    dataset.to_parquet(tmp_path / "parquet" / "train.parquet")
    assert_holds(ImageCollection(tmp_path / "parquet"), pixels)


@pytest.mark.parametrize("channels", [1, 3])
def test_npz_of_samples(pixels, tmp_path, channels):
    pixels = pixels[..., :channels]
    np.savez(tmp_path / "samples.npz", arr_0=pixels)
    assert_holds(ImageCollection(tmp_path / "samples.npz", channels=channels), pixels)


@pytest.mark.parametrize("output_format", ["png", "tar", "npz"])
def test_output_of_generate(pixels, tmp_path, output_format):
    writers = {
        "png": lambda: ImageFolderWriter(tmp_path / "images", 4, 5),
        "tar": lambda: TarWriter(tmp_path, 4, 5),
        "npz": lambda: NpzWriter(tmp_path, 4, 5, pixels.shape[1:3]),
    }
    writer = writers[output_format]()
    writer.prepare()
    for rows in (range(4), range(4, 5)):
        writer.write(rows, pixels[list(rows)], None)
    writer.close()
    writer.finish(ClassPlan(MageConfig(), None, 5))
    write_manifest(tmp_path, {})
    Image.new("RGB", (99, 99)).save(tmp_path / "grid.png")
    assert_holds(ImageCollection(samples_path(tmp_path)), pixels)


def test_shards_that_are_no_tar_files(tmp_path):
    (tmp_path / "0.tar").write_bytes(b"no tar" * 500)
    with pytest.raises(ValueError, match=r"0\.tar is not an uncompressed tar file"):
        ImageCollection(tmp_path)


def test_resolution_crops_the_centre(tmp_path):
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, 5:35] = 200
    (tmp_path / "wide").mkdir()
    Image.fromarray(image).save(tmp_path / "wide" / "0.png")
    assert torch.equal(ImageCollection(tmp_path / "wide", resolution=10)[0], torch.full((3, 10, 10), 200).byte())


def test_processes_share_the_images_without_padding(folder, pixels):
    source = ImageCollection(folder)
    shares = [
        torch.cat([images for images, _ in source.batches(2, process_index=rank, num_processes=2)])
        for rank in range(2)
    ]
    assert [len(share) for share in shares] == [3, 2]
    assert torch.equal(shares[1], torch.tensor(pixels[1::2]).permute(0, 3, 1, 2))


def test_undecodable_images_are_skipped_and_counted(folder):
    (folder / "0.png").write_bytes(b"no image")
    truncated = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(truncated[: len(truncated) // 2])
    batches = list(ImageCollection(folder).batches(batch_size=2))
    assert batches[0] == (None, 2)
    assert [(len(images), skipped) for images, skipped in batches[1:]] == [(2, 0), (1, 0)]


def test_undecodable_rows_are_skipped_and_counted(tmp_path, dataset):
    rows = dataset.cast_column("picture", datasets.Image(decode=False)).to_list()
    rows[1]["picture"]["bytes"] = b"no image"
    rows[2]["picture"] = None
    datasets.Dataset.from_list(rows, dataset.features).save_to_disk(tmp_path / "saved")
    ((images, skipped),) = ImageCollection(tmp_path / "saved").batches(batch_size=9)
    assert len(images) == 3
    assert skipped == 2


def test_sources_without_images(tmp_path, dataset):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no images"):
        ImageCollection(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        ImageCollection(tmp_path / "missing")
    np.savez(tmp_path / "latents.npz", arr_0=np.zeros((3, 4)))
    with pytest.raises(ValueError, match=r"holds \['arr_0'\], of which none is uint8"):
        ImageCollection(tmp_path / "latents.npz")
    dataset.select_columns("label").save_to_disk(tmp_path / "labels")
    with pytest.raises(DataError, match=r"no column \"image\" but \['label'\]"):
        ImageCollection(tmp_path / "labels")
    with pytest.raises(DataError, match=r"no column \"picture\" but \['label'\]"):
        ImageCollection(tmp_path / "labels", image_column="picture")
    with pytest.raises(DataError, match="holds no images that can be decoded"):
        ImageCollection(tmp_path / "labels", image_column="label")


def test_sizes_must_agree(folder):
    Image.new("RGB", (9, 9)).save(folder / "9.png")
    with pytest.raises(ValueError, match="images of several sizes"):
        list(ImageCollection(folder).batches(batch_size=9))
    ((images, _),) = ImageCollection(folder, resolution=4).batches(batch_size=9)
    assert images.shape == (6, 3, 4, 4)
