"""Scores over one and two processes."""

import json
import math
import os
import socket
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset

from tests.in_process import forget_accelerate
from transformers_mage.data.batches import Loading
from transformers_mage.data.labelled_images import EvaluationImages
from transformers_mage.data.loading import Columns
from transformers_mage.representation import evaluate, score
from transformers_mage.representation.scoring import evaluation_loader

NUM_IMAGES = 50


def predict_from_brightness(pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
    """The i-th image has value i: "right" says so, "even" rounds down to even numbers."""
    value = (pixel_values[:, 0, 0, 0] * 255).round().long()
    scores = {"right": value, "even": value // 2 * 2}
    return {name: 9.0 * torch.nn.functional.one_hot(ids, NUM_IMAGES) for name, ids in scores.items()}


def evaluate_numbers(dataset: Dataset, accelerator: Accelerator) -> dict[str, dict[str, float]]:
    loader = evaluation_loader(EvaluationImages(dataset, Columns(), (1, 4, 4)), Loading(8), accelerator)
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
    forget_accelerate()
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
