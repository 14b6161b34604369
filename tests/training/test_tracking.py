from pathlib import Path

import pytest
import torch
from accelerate import Accelerator, PartialState

from transformers_mage import MageConfig, sample_masks
from transformers_mage.training.tracking import (
    Averages,
    MetricsFile,
    expected_masks,
    loss_by_mask_ratio,
    training_flops,
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "gigaflops"),
    [
        ({}, 164),
        (
            {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, **{"decoder_hidden_size": 1024}},
            407,
        ),
    ],
    ids=["base", "large"],
)
def test_a_training_step_costs_what_it_must(sizes: dict, gigaflops: float):
    """
    From cached tokens, three times a forward pass of the original, counted, less what only the masked positions of the
    decoder's last layer have: queries, their output and the MLP. At most 3 % above, and no miracle.
    """
    config = MageConfig(**sizes)
    positions, width = 1 + config.sequence_length, config.decoder_hidden_size
    num_unread = positions - expected_masks(config, batch_size=1).max_masked
    saved = 6 * num_unread * (10 * width**2 + 2 * positions * width) / 1e9
    counted = training_flops(config) / 1e9
    assert 0.97 * gigaflops < counted + saved < 1.03 * gigaflops


def test_means_are_weighted():
    averages = Averages(Accelerator(cpu=True))
    averages.add({"loss": torch.tensor(1.0), "bucket": (torch.tensor(0.0), 0.0)})
    averages.add({"loss": torch.tensor(2.0), "bucket": (torch.tensor(6.0), 2.0), "empty": (torch.tensor(0.0), 0.0)})
    assert averages.pop() == {"loss": 1.5, "bucket": 3.0}
    assert averages.pop() == {}


@pytest.mark.parametrize(("ratio", "bucket"), [(0.5, "50_60"), (0.75, "70_80"), (1.0, "90_100")])
def test_the_loss_is_sorted_by_masking_ratio(ratio: float, bucket: str):
    config = MageConfig(mask_ratio_mean=ratio, mask_ratio_std=0)
    metrics = loss_by_mask_ratio(torch.tensor(3.0), sample_masks(config, 2))
    assert metrics[f"loss_masked_{bucket}"] == (torch.tensor(3.0), 1.0)
    assert sum(weight for _, weight in metrics.values()) == 1
    assert len(metrics) == 5


def test_metrics_after_a_checkpoint_and_lines_that_were_cut_are_dropped(tmp_path: Path):
    """A crash may leave a line without its end, or with zeros in its place."""
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1}\n{"st\n\0\0\0\n[1]\n{"step": 2, "loss": NaN}\n{"step": 3}\n{"step": 2, "lo')
    metrics = MetricsFile(file)
    metrics.truncate(2)
    metrics.append({"step": 4})
    assert file.read_text().splitlines() == ['{"step": 1}', '{"step": 2, "loss": NaN}', '{"step": 4}']


def test_a_full_disk_does_not_end_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    PartialState()  # the logger asks it which process this is
    metrics = MetricsFile(tmp_path)  # a folder takes no lines either
    for step in range(3):
        metrics.append({"step": step})
    assert caplog.text.count("Metrics cannot be written") == 1
