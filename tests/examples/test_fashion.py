"""The example of clothes: its data set, its judge, its figures."""

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import load_from_disk
from PIL import Image

from examples.fashion import bundle, compare_conditions, compare_precisions, evaluate, make_dataset, sweep, train_judge
from examples.fashion.cards import write_card
from examples.fashion.images import load_split
from examples.fashion.judge import JUNK, FashionJudge, Verdicts, as_grey, judge_images
from examples.fashion.scores import fashion_scores, nearest_images
from examples.junk import JUNK_KINDS, joined_halves, make_junk, shuffled_blocks
from transformers_mage import (
    MageConfig,
    MageForMaskedImageModeling,
    MageModel,
    MagePipeline,
    MageScheduler,
    RepresentationDiffusionModel,
)


def write_idx(path: Path, array: np.ndarray):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def idx_dir(tmp_path: Path) -> Path:
    """240 + 20 images of a single grey level each, ten times their class."""
    for name, count in (("train", 240), ("t10k", 20)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte.gz", labels)
        images = np.broadcast_to(10 * labels[:, None, None], (count, 28, 28))
        write_idx(tmp_path / f"{name}-images-idx3-ubyte.gz", images)
    return tmp_path


@pytest.fixture
def data(idx_dir: Path, tmp_path: Path) -> Path:
    make_dataset.main(["--idx_dir", str(idx_dir), "--output_dir", str(tmp_path / "data")])
    return tmp_path / "data"


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_dataset_has_a_split_to_choose_on(data):
    dataset = load_from_disk(data)
    assert {name: len(split) for name, split in dataset.items()} == {"train": 220, "validation": 20, "test": 20}
    assert dataset["train"].features["label"].names == list(make_dataset.CLASSES)
    images, labels = load_split(data, "validation")
    assert images.shape == (20, 1, 28, 28)
    assert torch.equal(images[:, 0, 0, 0], 10 * labels)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), "has neither"),
        (lambda file: file.write_bytes(gzip.compress(b"\0\0\x08\x01\0\0\0\x01\0")), "not an idx file of 3 dimensions"),
        (lambda file: file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes())[:-1])), "is incomplete"),
    ],
)
def test_damaged_files_are_named(idx_dir, tmp_path, damage, message):
    damage(idx_dir / "train-images-idx3-ubyte.gz")

    with pytest.raises(SystemExit, match=rf"train-images-idx3-ubyte.*{message}|{message}.*train-images-idx3-ubyte"):
        make_dataset.main(["--idx_dir", str(idx_dir), "--output_dir", str(tmp_path / "data")])


def test_junk_is_not_what_it_was_made_of(generator):
    images, labels = torch.rand(32, 1, 28, 28, generator=generator), torch.arange(32) % 10

    junk = make_junk(images, labels, generator)

    assert junk.shape == images.shape
    assert junk.min() >= 0
    assert junk.max() <= 1
    assert (junk - images).abs().mean(dim=(1, 2, 3)).min() > 0.05
    assert set(JUNK_KINDS) == {"shuffled blocks", "halves of two images", "noise", "blur"}


def test_shuffling_keeps_all_pixels(generator):
    images = torch.rand(3, 1, 28, 28, generator=generator)

    shuffled = shuffled_blocks(images, torch.zeros(3), generator)

    assert torch.equal(shuffled.flatten(1).sort().values, images.flatten(1).sort().values)


def test_halves_are_of_different_kinds(generator):
    labels = torch.arange(20) % 10
    images = labels.float()[:, None, None, None].expand(-1, 1, 28, 28)

    joined = joined_halves(images, labels, generator).flatten(1)

    for image, label in zip(joined, labels, strict=True):
        levels, counts = image.unique(return_counts=True)
        assert len(levels) == 2
        assert label in levels
        assert counts.tolist() == [392, 392]


def test_verdicts_count_junk_as_not_sure():
    verdicts = Verdicts(torch.zeros(4, 1), torch.tensor([0, 3, JUNK, 3]), torch.tensor([0.9, 0.7, 0.99, 0.81]))

    assert verdicts.sure == 0.5
    assert verdicts.junk == 0.25
    assert verdicts.shares == [0.25, 0, 0, 0.5, 0, 0, 0, 0, 0, 0]


def test_judge_is_trained_and_saved(data, tmp_path):
    common = ["--dataset_name", str(data), "--output_dir", str(tmp_path / "judge")]
    train_judge.main([*common, "--num_train_epochs", "1", "--train_batch_size", "64"])

    figures = json.loads((tmp_path / "judge" / "results.json").read_text())["test"]
    assert set(figures["sure_of_each_junk"]) == set(JUNK_KINDS)
    judge = FashionJudge.load(tmp_path / "judge" / "model.safetensors")
    images = load_split(data, "test")[0]
    features, logits = judge(images)
    assert features.shape == (20, 128)
    assert logits.shape == (20, 11)
    # Grey as RGB, and floats as bytes, are the same images.
    torch.testing.assert_close(judge(images.expand(-1, 3, -1, -1).float() / 255)[0], features)


def test_scores_of_real_images_against_themselves(generator):
    judge, images = FashionJudge().eval(), torch.rand(200, 1, 28, 28, generator=generator)

    scores = fashion_scores(judge, images, judge(images)[0].detach())

    assert scores["fd"] == pytest.approx(0, abs=1e-3)
    assert scores["precision"] == scores["recall"] == 1


def test_nearest_image_of_a_copy_is_its_original(generator):
    training = torch.randint(0, 256, (30, 1, 28, 28), generator=generator).to(torch.uint8)

    distances, indices = nearest_images(training[[4, 7]], training)

    assert indices.tolist() == [4, 7]
    assert distances.max() < 1e-2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*too few for features")
def test_ways_of_sampling_are_tried_once(data, tmp_path, small_config, monkeypatch):
    config = MageConfig(**{**small_config.to_dict(), "image_size": 28})
    model = MageForMaskedImageModeling(config).eval()
    MagePipeline(model, MageScheduler(config.mask_token_id)).save_pretrained(tmp_path / "model")
    FashionJudge().save(tmp_path / "model.safetensors")
    flags = ["--dataset_name", data, "--model_name_or_path", tmp_path / "model", "--judge", tmp_path]
    flags += ["--num_images", 10, "--num_inference_steps", 2, 3, "--unmasking_order", "confidence", "--temperature", 6]
    flags += ["--output_dir", tmp_path / "sweep", "--encoder_keep_share", 1, 0.5]

    sweep.main([str(flag) for flag in flags])

    rows = [json.loads(line) for line in (tmp_path / "sweep" / "sweep.jsonl").read_text().splitlines()]
    assert [(row["num_inference_steps"], row["encoder_keep_share"]) for row in rows] == [
        (2, None), (2, 0.5), (3, None), (3, 0.5),
    ]  # fmt: skip
    assert all(row["gflops"] > 0 and row["fd"] >= 0 for row in rows)
    assert (tmp_path / "sweep" / "frontier.png").exists()
    table = (tmp_path / "sweep" / "table.md").read_text().splitlines()[2:]
    assert [line.split(" | ")[1] for line in table if line.startswith("| 3 |")] == ["keep 0.5", "plain"]
    monkeypatch.setattr(sweep, "generate", None)
    sweep.main([str(flag) for flag in flags])


@pytest.mark.filterwarnings("ignore:.*too few for features")
def test_lower_precision_is_compared_with_itself_first(data, tmp_path, small_config, capsys):
    config = MageConfig(**{**small_config.to_dict(), "image_size": 28})
    model = MageForMaskedImageModeling(config).eval()
    MagePipeline(model, MageScheduler(config.mask_token_id, num_inference_steps=2)).save_pretrained(tmp_path / "model")
    flags = ["--dataset_name", data, "--model_name_or_path", tmp_path / "model", "--output_dir", tmp_path / "scores"]
    compare_precisions.main([*map(str, flags), "--num_images", "20", "--precisions", "float32", "bfloat16"])

    rows = json.loads((tmp_path / "scores" / "precisions.json").read_text())
    assert rows["float32"]["other_tokens"] == 0
    assert rows["bfloat16"]["other_tokens"] < 0.1
    assert "| float32 | 0.0 |" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*are too few for features")
@pytest.mark.parametrize("num_classes", [0, 10])
def test_a_model_is_scored_drawn_and_described(data, tmp_path, small_config, num_classes):
    config = MageConfig(**{**small_config.to_dict(), "image_size": 28, "num_classes": num_classes})
    model = MageForMaskedImageModeling(config).eval()
    MagePipeline(model, MageScheduler(config.mask_token_id, num_inference_steps=2)).save_pretrained(tmp_path / "model")
    (tmp_path / "judge").mkdir()
    FashionJudge().save(tmp_path / "judge" / "model.safetensors")
    flags = ["--model_name_or_path", tmp_path / "model", "--judge", tmp_path / "judge", "--dataset_name", data]
    flags += ["--num_images", 20, "--num_inpainted", 16, "--output_dir", tmp_path / "scores"]

    evaluate.main([str(flag) for flag in flags])

    scores = json.loads((tmp_path / "scores" / "samples.json").read_text())
    assert ("asked_class" in scores) == bool(num_classes)
    assert scores["fd"] >= 0
    assert set(json.loads((tmp_path / "scores" / "inpainting.json").read_text())["kept"]) == set(evaluate.HALVES)
    card = tmp_path / "card"
    card.mkdir()
    blocks = (f"<!-- {name} -->\n<!-- /{name} -->\n" for name in ("generation", "kinds", "inpainting"))
    (card / "README.md").write_text("".join(blocks))
    write_card(card, tmp_path / "scores")
    assert "| samples |" in (card / "README.md").read_text()
    assert (card / "pictures" / "samples.png").exists()


def test_what_is_scored_is_not_scored_again(tmp_path):
    file = tmp_path / "part.json"

    first = evaluate.stored(file, lambda evaluation: {"fd": 1.0}, None)
    second = evaluate.stored(file, lambda evaluation: {"fd": 2.0}, None)

    assert first == second == {"fd": 1.0}


def test_bundled_images_are_those_of_the_data_set(data, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "PICTURE", tmp_path / "sheet.png")
    monkeypatch.setattr(bundle, "PER_CLASS", 2)
    bundle.main(["--dataset_name", str(data)])

    images, labels = bundle.load_bundled()

    assert labels.tolist() == sorted(2 * list(range(10)))
    assert torch.equal(images.flatten(1).float().mean(dim=1), 10.0 * labels)


def test_a_few_unseen_images_travel_with_the_example():
    images, labels = bundle.load_bundled()

    assert images.shape == (300, 1, 28, 28)
    assert torch.bincount(labels).tolist() == [30] * 10
    assert bundle.PICTURE.stat().st_size < 200_000


def test_the_judge_knows_clothes_from_junk(generator):
    judge, (images, labels) = FashionJudge.load(), bundle.load_bundled()

    verdicts = judge_images(judge, images)
    junk = judge_images(judge, make_junk(as_grey(images), labels, generator))

    assert (verdicts.kinds == labels).float().mean() > 0.85
    assert 0.75 < verdicts.sure < 0.9
    assert verdicts.junk < 0.05
    assert junk.sure < 0.05


@pytest.mark.filterwarnings("ignore:.*are too few for features")
def test_models_led_by_something_are_compared(data, tmp_path, small_config, monkeypatch):
    """Models that are trained already, of which one is led by representations of another."""
    config = {**small_config.to_dict(), "image_size": 28, "hidden_size": 32}

    def save(name: str, parts: dict, **values):
        model = MageForMaskedImageModeling(MageConfig(**{**config, **values})).eval()
        pipe = MagePipeline(model, MageScheduler(model.config.mask_token_id, num_inference_steps=2), **parts)
        pipe.save_pretrained(tmp_path / "out" / "models" / name)

    encoder = MageModel(MageConfig(**{**config, "vq_config": None}))
    drawing = RepresentationDiffusionModel(32, 8, bottleneck_size=8, time_embedding_size=4, num_blocks=1)
    save("unconditional-0", {})
    save("by-class-0", {}, num_classes=10)
    led = {"representation_size": 32, "representation_source": {"model_name_or_path": "unconditional-0"}}
    for name, parts in (("", {}), ("-complete", {"representation_model": drawing, "representation_encoder": encoder})):
        save(f"by-mage{name}-0", parts, **led)
    monkeypatch.setattr(compare_conditions, "run_script", lambda *flags: pytest.fail(f"{flags} was trained again"))
    variants = ["unconditional", "by MAGE guided", "by MAGE of test images", "by class guided"]
    flags = ["--dataset_name", data, "--output_dir", tmp_path / "out", "--num_images", 20, "--seeds", 0, "--variants"]

    compare_conditions.main([str(flag) for flag in (*flags, *variants)])

    rows = (tmp_path / "out" / "table.md").read_text().splitlines()[2:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == variants
    assert Image.open(tmp_path / "out" / "samples.png").size == (578, 4 * 58 - 2)
    pictures = {path.name for path in (tmp_path / "out" / "by-MAGE-guided-0").glob("*.png")}
    assert pictures == {"samples.png", "neighbours.png", "alike.png", "between.png"}
