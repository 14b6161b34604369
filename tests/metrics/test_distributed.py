"""Two real processes give what one process gives."""

import json
import os
import socket

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader, TensorDataset

from tests.side_by_side import run_side_by_side
from transformers_mage.metrics import (
    Accuracy,
    FrechetInceptionDistance,
    InceptionScore,
    KernelInceptionDistance,
    MeanPerClassAccuracy,
    PrecisionRecall,
    Top5Accuracy,
)

pytestmark = pytest.mark.slow

CLASSIFICATION = [Accuracy, Top5Accuracy, MeanPerClassAccuracy]
NUM_SAMPLES = 103  # neither two processes nor batches of 8 divide it


def samples():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(7, (NUM_SAMPLES,), generator=generator)
    return torch.randn(NUM_SAMPLES, 7, generator=generator) + torch.eye(7)[labels], labels


def sides(metric):
    logits, labels = samples()
    inputs = {"predictions": logits, "references": logits[:80] + labels[:80, None] / 5}
    return {side: inputs[side] for side in metric.features}


def generation_metrics(**kwargs):
    return [
        FrechetInceptionDistance(**kwargs),
        InceptionScore(num_splits=3, **kwargs),
        KernelInceptionDistance(max_samples=30, num_subsets=5, **kwargs),
        PrecisionRecall(**kwargs),
    ]


def accuracies_gathered(accelerator, cache_dir):
    """The usual loop: what `gather_for_metrics` returns goes to a metric that knows nothing of processes."""
    metrics = [metric_class(cache_dir=cache_dir) for metric_class in CLASSIFICATION]
    for batch in accelerator.prepare(DataLoader(TensorDataset(*samples()), batch_size=8)):
        predictions, references = accelerator.gather_for_metrics(batch)
        for metric in metrics:
            metric.add_batch(predictions=predictions, references=references)
    return [metric.compute() for metric in metrics]


def accuracies_exchanged(accelerator, **kwargs):
    """Without gathering: each process adds its own samples, none of them padding, and the metrics exchange sums."""
    metrics = [metric_class(**kwargs) for metric_class in CLASSIFICATION]
    accelerator.dataloader_config = DataLoaderConfiguration(even_batches=False)
    for predictions, references in accelerator.prepare(DataLoader(TensorDataset(*samples()), batch_size=8)):
        for metric in metrics:
            metric.add_batch(predictions=predictions, references=references)
    return [metric.compute() for metric in metrics]


def generation_scores(shard, **kwargs):
    results = []
    for metric in generation_metrics(**kwargs):
        for side, inputs in sides(metric).items():
            metric.add_batch(**{side: inputs[shard]})
        results.append(metric.compute())
    return results


def scores_against_file(rank, path, **kwargs):
    metric = FrechetInceptionDistance(**kwargs)
    metric.load_statistics(path)
    return metric.compute(predictions=samples()[0][rank::2])


def run_process(rank, port, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    options = {"num_process": 2, "process_id": rank, "cache_dir": str(folder / "cache")}
    results = {
        "gathered": accuracies_gathered(accelerator, options["cache_dir"]),
        "exchanged": accuracies_exchanged(accelerator, **options),
        "interleaved": generation_scores(slice(rank, None, 2), **options),
        "references from a file": scores_against_file(rank, folder / "references.safetensors", **options),
        "one process idle": generation_scores(slice(0, None if rank == 0 else 0), **options),
    }
    (folder / f"{rank}.json").write_text(json.dumps(results))
    accelerator.end_training()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    metric = FrechetInceptionDistance()
    metric.add_batch(**sides(metric))
    metric.save_statistics(folder / "references.safetensors")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run_side_by_side(run_process, port, folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def expected_accuracies():
    predictions, references = samples()
    return [metric_class().compute(predictions=predictions, references=references) for metric_class in CLASSIFICATION]


def test_gathered_samples_count_once(results):
    assert results[0]["gathered"] == results[1]["gathered"] == expected_accuracies()


def test_exchanged_sums_count_once(results):
    assert results[0]["exchanged"] == expected_accuracies()
    assert results[1]["exchanged"] == [None] * len(CLASSIFICATION)


@pytest.mark.parametrize("division", ["interleaved", "one process idle"])
def test_generation_metrics(results, division):
    for result, expected in zip(results[0][division], generation_scores(slice(None)), strict=True):
        assert result == pytest.approx(expected, rel=1e-9)
    assert results[1][division] == [None] * 4


def test_every_process_may_load_the_same_references(results):
    metric = FrechetInceptionDistance()
    assert results[0]["references from a file"] == pytest.approx(metric.compute(**sides(metric)), rel=1e-9)
