"""What may change when a run is resumed, and which folder it may use."""

from pathlib import Path

import pytest
import torch

from transformers_mage.files import FolderError
from transformers_mage.training.resuming import check_changes, check_output_dir, kept_hyperparameters


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model.hidden_size": (16, 32)}, r"model.hidden_size was 16 and is 32 now. Give `--model.hidden_size 16`"),
        ({"model.num_attention_heads": (2, 4)}, "--model.num_attention_heads 2"),
        ({"vq_config.num_vq_embeddings": (16, 32)}, "--vq_config.num_vq_embeddings 16"),
        ({"model.norm_eps": (None, 1)}, "Leave out `--model.norm_eps`"),
        ({"use_ema": (False, True)}, "Give `--use_ema False`"),
        ({"use_ema": (True, False)}, "Give `--use_ema True`"),
        ({"contrastive_weight": (0.0, 0.1)}, "Give `--contrastive_weight 0.0`"),
        ({"freeze_encoder": (True, False), "seed": (0, 1)}, "--freeze_encoder True"),
    ],
)
def test_what_makes_another_model_is_refused(changed: dict, message: str):
    with pytest.raises(FolderError, match=message):
        check_changes(Path("checkpoint-4"), changed)


@pytest.mark.parametrize(
    "changed",
    [
        {"learning_rate": (0.1, 0.2), "max_train_steps": (4, 8), "seed": (0, 1)},
        {"contrastive_weight": (0.1, 0.2)},
        {"model.mask_ratio_mean": (0.5, 0.6)},
        {"use_ema": (None, False)},
    ],
)
def test_what_can_be_changed_is_let_through(changed: dict):
    check_changes(Path("checkpoint-4"), changed)


def training(learning_rate: float, weight_decay: float, total: int = 10):
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW([{"params": [parameter], "weight_decay": weight_decay}], lr=learning_rate)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)
    return optimizer, scheduler


def test_hyperparameters_are_those_of_now_and_the_schedule_is_where_it_was():
    optimizer, scheduler = training(0.1, 0.5)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    state = optimizer.state_dict(), scheduler.state_dict()
    optimizer, scheduler = training(0.2, 0.25, total=20)
    with kept_hyperparameters(optimizer, scheduler):
        optimizer.load_state_dict(state[0])
        scheduler.load_state_dict(state[1])
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (pytest.approx(0.2 * 17 / 20), 0.25)
    optimizer.step()
    scheduler.step()
    assert group["lr"] == pytest.approx(0.2 * 16 / 20)


@pytest.fixture
def used(tmp_path: Path) -> Path:
    for name in ("checkpoint-20", "checkpoint-40"):
        (tmp_path / "run" / name).mkdir(parents=True)
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1}')
    return tmp_path / "run"


def test_a_used_folder_is_not_for_another_run(used: Path):
    with pytest.raises(FolderError, match=r"a run already \(checkpoint-40, metrics.jsonl\).*latest.*--output_dir"):
        check_output_dir(used, None)
    with pytest.raises(FolderError, match="holds another run"):
        check_output_dir(used, "elsewhere/checkpoint-40")
    with pytest.raises(FolderError, match="checkpoint-40, newer than checkpoint-20"):
        check_output_dir(used, str(used / "checkpoint-20"))
    check_output_dir(used, "latest")
    check_output_dir(used, str(used / "checkpoint-40"))


def test_a_finished_model_is_not_overwritten(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FolderError, match="a run already"):
        check_output_dir(tmp_path, None)
    with pytest.raises(FolderError, match="a finished model, and no checkpoint"):
        check_output_dir(tmp_path, "latest")


def test_an_empty_folder_is_for_anybody(tmp_path: Path):
    (tmp_path / "metrics.jsonl").touch()
    for resume in (None, "latest", "elsewhere/checkpoint-3"):
        check_output_dir(tmp_path, resume)
        check_output_dir(tmp_path / "nowhere", resume)
