"""The command line's runs, the models that are started from, and scores over one and two processes."""

import json
import math
import os
import socket
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from datasets import Dataset
from safetensors.torch import load_file, save_file

from transformers_mage import MageConfig, MageForImageClassification, MageForMaskedImageModeling
from transformers_mage.data.labelled_images import LabelledImages
from transformers_mage.data.labels import Classes
from transformers_mage.representation.classification import (
    ClassificationArguments,
    evaluate,
    evaluation_loader,
    evaluation_processor,
    image_shape,
    load_classifier,
    load_encoder,
    score,
)

NUM_IMAGES = 50
NAMES = [str(i) for i in range(NUM_IMAGES)]


def labelled(dataset: Dataset) -> LabelledImages:
    return LabelledImages(dataset, "image", "label", Classes(dict(enumerate(NAMES)), NAMES))


@pytest.fixture
def folder(small_model: MageForMaskedImageModeling, tmp_path: Path) -> Path:
    small_model.save_pretrained(tmp_path)
    return tmp_path


# Runs


def test_one_run_for_each_dataset_number_of_shots_and_seed():
    arguments = ClassificationArguments(
        dataset_name="data/birds,cars", shots_per_class=[1, 5], seed=3, num_seeds=2, output_dir="out"
    )
    runs = arguments.runs()

    assert [(run.dataset_name, run.shots, run.seed) for run in runs[:3]] == [
        ("data/birds", 1, 3),
        ("data/birds", 1, 4),
        ("data/birds", 5, 3),
    ]
    assert len(runs) == 8
    assert runs[2].output_dir == "out/birds/5-shots/seed-3"
    assert ClassificationArguments(dataset_name="birds", output_dir="out").runs()[0].output_dir == "out"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "Say which model to start from"),
        ({"model_name_or_path": "m", "streaming": True}, "leave `--streaming` out"),
        ({"model_name_or_path": "m", "num_seeds": 0}, "`--num_seeds` must be at least 1, got 0"),
    ],
)
def test_impossible_runs_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ClassificationArguments(dataset_name="birds", **values).check()


# Models


def test_a_classifier_starts_from_any_mage_folder(folder, small_model, pixel_values):
    model = load_classifier(str(folder), ["cat", "dog"], drop_path_rate=0.1)

    assert model.config.id2label == {0: "cat", 1: "dog"}
    assert model.config.drop_path_rate == 0.1
    assert torch.equal(model.mage(pixel_values).pooler_output, small_model.mage(pixel_values).pooler_output)
    assert model.classifier.weight.abs().max() < 1e-4


def test_a_classifier_of_the_same_classes_keeps_its_head_and_of_others_does_not(small_config, tmp_path):
    MageForImageClassification(MageConfig(**{**small_config.to_dict(), "id2label": {0: "a", 1: "b"}})).save_pretrained(
        tmp_path
    )
    saved = load_file(tmp_path / "model.safetensors")["classifier.weight"]

    assert torch.equal(load_classifier(str(tmp_path), ["x", "y"]).classifier.weight, saved)
    assert load_classifier(str(tmp_path), ["x", "y", "z"]).classifier.weight.shape == (3, 32)


def test_a_checkpoint_of_another_size_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))

    with pytest.raises(SystemExit, match=r"another size than the configuration says: .* \(\d+ such\)"):
        load_classifier(str(folder), ["cat", "dog"])


def test_weights_that_are_not_there_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "layers.1" not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})

    with pytest.raises(SystemExit, match=r"no weights for \d+ of the encoder's parameters, as mage.layers.1"):
        load_classifier(str(folder), ["cat", "dog"])


@pytest.mark.parametrize("load", [load_encoder, lambda name: load_classifier(name, ["cat", "dog"])])
def test_no_model_and_no_tokenizer_are_refused(small_config, tmp_path, load):
    with pytest.raises(SystemExit, match="There is no MAGE model in"):
        load(str(tmp_path))
    config = MageConfig(**{**small_config.to_dict(), "vq_config": None})
    MageForMaskedImageModeling(config).save_pretrained(tmp_path)
    with pytest.raises(SystemExit, match="has no tokenizer, so it takes no images"):
        load(str(tmp_path))


def test_other_image_sizes_must_make_whole_tokens(small_config):
    assert image_shape(small_config) == (3, 32, 32)
    assert image_shape(small_config, 48) == (3, 48, 48)
    with pytest.raises(SystemExit, match="must be a multiple of 4, got 50"):
        image_shape(small_config, 50)


def test_the_processor_makes_the_crops_that_were_evaluated(small_config, numbered_images):
    """Images as large as the model's are taken whole; others, 4 x 4 here, are resized to 36 and cropped."""
    same_size = labelled(numbered_images.take(2))
    small = evaluation_processor(same_size, MageConfig(**{**small_config.to_dict(), "image_size": 4}))
    large = evaluation_processor(same_size, small_config, do_normalize=True)

    assert (small.do_center_crop, small.do_normalize) == (False, False)
    assert (large.do_center_crop, large.size["shortest_edge"], large.crop_size["height"]) == (True, 36, 32)
    assert large.image_mean == pytest.approx([0.485, 0.456, 0.406])


# Scores


def predict_from_brightness(pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
    """The i-th image has value i: "right" says so, "even" rounds down to even numbers."""
    value = (pixel_values[:, 0, 0, 0] * 255).round().long()
    scores = {"right": value, "even": value // 2 * 2}
    return {name: 9.0 * torch.nn.functional.one_hot(ids, NUM_IMAGES) for name, ids in scores.items()}


def evaluate_numbers(dataset: Dataset, accelerator: Accelerator) -> dict[str, dict[str, float]]:
    arguments = ClassificationArguments(eval_batch_size=8)
    loader = evaluation_loader(labelled(dataset), (1, 4, 4), arguments, accelerator)
    return evaluate(predict_from_brightness, loader, accelerator)


def test_scores_of_two_classifiers(numbered_images):
    scores = evaluate_numbers(numbered_images, Accelerator())

    assert (scores["right"]["accuracy"], scores["even"]["accuracy"]) == (1.0, 0.5)
    assert scores["right"]["num_images"] == NUM_IMAGES
    assert scores["right"]["loss"] == pytest.approx(math.log(1 + 49 * math.exp(-9)), abs=1e-5)


def test_images_that_do_not_count():
    scores = score(torch.eye(3), torch.tensor([0, 0, -100]))

    assert (scores["accuracy"], scores["num_images"]) == (0.5, 2)


def run_process(rank: int, port: int, dataset: Dataset, folder: Path):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)  # threads do not survive a fork
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    scores = {size: evaluate_numbers(dataset.take(size), accelerator) for size in (50, 17, 1)}
    (folder / f"{rank}.json").write_text(json.dumps(scores))
    accelerator.end_training()


def test_two_processes_count_what_one_counts(numbered_images, tmp_path):
    """Of 50, 17 and 1 images: sizes that two processes and batches of 8 do not divide."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (port, numbered_images, tmp_path)
    torch.multiprocessing.start_processes(run_process, arguments, nprocs=2, start_method="fork")

    expected = {str(n): evaluate_numbers(numbered_images.take(n), Accelerator()) for n in (50, 17, 1)}
    for rank in range(2):
        result = json.loads((tmp_path / f"{rank}.json").read_text())
        for size, scores in expected.items():
            for name, values in scores.items():
                assert result[size][name] == pytest.approx(values)
                assert result[size][name]["num_images"] == int(size)
