import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.in_process import MODEL_FLAGS, last_step
from transformers_mage import MagePipeline
from transformers_mage.data.token_cache import CachedTokens, CacheMetadata
from transformers_mage.data.tokenization import load_tokenizer
from transformers_mage.files import fingerprint
from transformers_mage.training.pretraining import MageForPreTraining

Script = Callable[[list[str]], None]


@pytest.fixture
def flags(image_folder: Path, tokenizer_folder: Path) -> list[str]:
    flags = ["--dataset_name", image_folder, "--tokenizer_name_or_path", tokenizer_folder]
    return [*MODEL_FLAGS, *flags, "--learning_rate", "0.01", "--checkpointing_steps", "0", "--logging_steps", "1"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_bits(first: Path, second: Path):
    first, second = weights(first), weights(second)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_loss_falls_and_the_folder_generates(train_mage: Script, flags: list[str], tmp_path: Path):
    train_mage([*flags, "--max_train_steps", "150", "--tokenized_views", "2", "--output_dir", tmp_path])
    first, last = losses(tmp_path)[:10], losses(tmp_path)[-10:]
    assert sum(last) < 0.95 * sum(first)
    pipe = MagePipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    images = pipe(num_images=2, num_inference_steps=2, output_type="pt", generator=torch.Generator().manual_seed(0))
    assert images.images.shape == (2, 1, 8, 8)


def test_training_ends_where_the_held_out_loss_has_long_been_lower(
    train_mage: Script, flags: list[str], tmp_path: Path, monkeypatch
):
    held_out = iter([3.0, 2.0, 2.5, 1.0, 1.5, 1.2, 1.1, 0.5])
    monkeypatch.setitem(train_mage.module, "evaluate", lambda *_: {"validation_loss": next(held_out)})
    patience = ["--validation_split", "test", "--validation_steps", "2", "--early_stopping_patience", "3"]
    train_mage([*flags, *patience, "--max_train_steps", "100", "--output_dir", tmp_path])

    # Three looks after the one at the eighth update.
    assert last_step(tmp_path) == 14
    assert MagePipeline.from_pretrained(tmp_path)


def test_what_ended_early_stays_ended(train_mage: Script, flags: list[str], tmp_path: Path, monkeypatch):
    """A run that is killed between its last checkpoint and its model, and given again; and by other settings."""
    held_out = iter([1.0, 2.0, 0.9, 0.8])
    monkeypatch.setitem(train_mage.module, "evaluate", lambda *_: {"validation_loss": next(held_out)})
    flags = [*flags, "--validation_split", "test", "--validation_steps", "2", "--checkpointing_steps", "2"]
    flags += ["--max_train_steps", "8", "--output_dir", tmp_path, "--early_stopping_patience"]
    train_mage([*flags, "1"])
    model = tmp_path / "model.safetensors"
    once = model.read_bytes()
    model.unlink()

    train_mage([*flags, "1", "--resume_from_checkpoint", "latest"])
    assert model.read_bytes() == once
    assert last_step(tmp_path) == 4
    train_mage([*flags, "3", "--resume_from_checkpoint", "latest"])
    assert last_step(tmp_path) == 8


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra",
    [
        [],
        ["--tokenized_views", "3"],
        ["--contrastive_weight", "0.1", "--use_ema"],
        ["--contrastive_weight", "0.1", "--gradient_accumulation_steps", "2"],
        ["--in_memory_limit", "0", "--gradient_accumulation_steps", "2"],
        ["--streaming", "--shuffle_window", "2"],
        ["--streaming", "--dataloader_num_workers", "2"],
    ],
)
def test_resuming_gives_the_same_bits(train_mage: Script, flags: list[str], tmp_path: Path, extra: list[str]):
    flags = [*flags, "--max_train_steps", "6", "--checkpointing_steps", "4", *extra]
    train_mage([*flags, "--output_dir", tmp_path / "once"])
    checkpoint = tmp_path / "once" / "checkpoint-4"
    train_mage([*flags, "--output_dir", tmp_path / "twice", "--resume_from_checkpoint", checkpoint])
    assert_same_bits(tmp_path / "once", tmp_path / "twice")
    assert losses(tmp_path / "twice") == losses(tmp_path / "once")[4:]


@pytest.mark.slow
def test_training_from_cached_tokens(
    train_mage: Script,
    cache_tokens: Script,
    image_folder: Path,
    tokenizer_folder: Path,
    tmp_path: Path,
):
    """It needs neither images nor a tokenizer, and the folder has one all the same."""
    made = ["--dataset_name", image_folder, "--tokenizer_name_or_path", tokenizer_folder, "--image_size", "8"]
    made += ["--views", "2", "--rows_per_shard", "10", "--output_dir", tmp_path / "tokens"]
    cache_tokens(made)
    cache_tokens([*made, "--train_split", "test"])
    flags = [*MODEL_FLAGS, "--max_train_steps", "4", "--logging_steps", "1", "--output_dir", tmp_path / "model"]
    flags += ["--validation_split", "test", "--validation_steps", "2", "--sample_steps", "2"]
    train_mage([*flags, "--token_cache", tmp_path / "tokens"])
    lines = [json.loads(line) for line in (tmp_path / "model" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation_loss" in line] == [2, 4]
    assert len(list((tmp_path / "model" / "samples").glob("*.png"))) == 4
    assert MagePipeline.from_pretrained(tmp_path / "model").vqvae is not None


@pytest.mark.slow
def test_cached_tokens_train_as_the_pixels_they_were_made_of(
    train_mage: Script, cache_tokens: Script, image_folder: Path, tokenizer_folder: Path, tmp_path: Path
):
    """One fixed view of each image: the losses of 50 updates are equal."""
    view = ["--crop_scale_min", "1", "--horizontal_flip", "false"]
    images = ["--dataset_name", image_folder, "--tokenizer_name_or_path", tokenizer_folder]
    cache_tokens([*images, *view, "--image_size", "8", "--views", "1", "--output_dir", tmp_path / "tokens"])
    flags = [*MODEL_FLAGS, *view, "--max_train_steps", "50", "--logging_steps", "1", "--checkpointing_steps", "0"]
    train_mage([*flags, *images, "--output_dir", tmp_path / "pixels"])
    train_mage([*flags, "--token_cache", tmp_path / "tokens", "--output_dir", tmp_path / "cached"])
    assert len(losses(tmp_path / "pixels")) == 50
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "pixels"), rel=1e-5)


def test_an_interrupted_token_cache_continues(
    cache_tokens: Script, image_folder: Path, tokenizer_folder: Path, tmp_path: Path
):
    flags = ["--dataset_name", image_folder, "--tokenizer_name_or_path", tokenizer_folder, "--image_size", "8"]
    flags += ["--views", "2", "--rows_per_shard", "10", "--output_dir"]
    cache_tokens([*flags, tmp_path / "once"])
    cache_tokens([*flags, tmp_path / "again"])
    shard = tmp_path / "again" / "train" / "shard-00001-of-00003"
    shard.rename(shard.with_name(".shard-00001-of-00003.partial"))
    cache_tokens([*flags, tmp_path / "again"])
    first, second = (CachedTokens(tmp_path / name / "train") for name in ("once", "again"))
    draws = list(range(48))
    assert torch.equal(first.__getitems__(draws).input_ids, second.__getitems__(draws).input_ids)
    with pytest.raises(SystemExit, match=r"holds other tokens \(seed was 0 there and is 1 now\)"):
        cache_tokens([*flags, tmp_path / "again", "--seed", "1"])


def test_a_damaged_shard_is_named_and_made_again(
    cache_tokens: Script, image_folder: Path, tokenizer_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    flags = ["--dataset_name", image_folder, "--tokenizer_name_or_path", tokenizer_folder, "--image_size", "8"]
    flags += ["--rows_per_shard", "10", "--output_dir", tmp_path]
    cache_tokens(flags)
    shard = tmp_path / "train" / "shard-00001-of-00003"
    before = CachedTokens(tmp_path / "train").__getitems__(list(range(24))).input_ids
    (shard / "data-00000-of-00001.arrow").write_bytes(b"")
    cache_tokens(flags)
    assert "shard-00001-of-00003 data-00000-of-00001.arrow has 0 bytes instead of" in capsys.readouterr().out
    assert torch.equal(CachedTokens(tmp_path / "train").__getitems__(list(range(24))).input_ids, before)


def test_a_cache_has_one_tokenizer(
    cache_tokens: Script, image_folder: Path, tokenizer_folder: Path, mage_folder: Path, tmp_path: Path
):
    flags = ["--dataset_name", image_folder, "--image_size", "8", "--views", "1", "--output_dir", tmp_path]
    cache_tokens([*flags, "--tokenizer_name_or_path", tokenizer_folder])
    with pytest.raises(SystemExit, match=r"train holds tokens of another tokenizer"):
        cache_tokens([*flags, "--tokenizer_name_or_path", mage_folder, "--train_split", "test"])
    assert CacheMetadata.load(tmp_path / "train").tokenizer == fingerprint(load_tokenizer(tmp_path / "tokenizer"))


def test_a_loss_that_is_not_finite_stops_the_run(
    train_mage: Script, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    forward, passes = MageForPreTraining.forward, []

    def poisoned(self: MageForPreTraining, *args, **kwargs):
        loss, metrics = forward(self, *args, **kwargs)
        passes.append(loss)
        return (loss * float("nan") if len(passes) == 6 else loss), metrics

    monkeypatch.setattr(MageForPreTraining, "forward", poisoned)
    flags = [*flags, "--checkpointing_steps", "3", "--max_train_steps", "9", "--output_dir", tmp_path]
    with pytest.raises(SystemExit, match="not finite in update 6"):
        train_mage(flags)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
    (dump,) = tmp_path.glob("nonfinite-loss-step-6-*.pt")
    assert torch.load(dump)["batch"]["pixels"].shape == (8, 1, 8, 8)


def test_other_settings_are_named_on_resuming(
    train_mage: Script, flags: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    flags = [*flags, "--output_dir", tmp_path, "--checkpointing_steps", "2"]
    train_mage([*flags, "--max_train_steps", "2"])
    train_mage([*flags, "--max_train_steps", "3", "--resume_from_checkpoint", "latest"])
    assert "another max_train_steps than before: 2 became 3" in caplog.text


def test_another_learning_rate_is_learned_with_from_the_checkpoint_on(
    train_mage: Script, flags: list[str], tmp_path: Path
):
    """Weights after one update more than the checkpoint: those of the new rate, not of the old one."""
    flags = [*flags, "--checkpointing_steps", "2", "--max_train_steps", "3", "--min_learning_rate", "0"]
    train_mage([*flags, "--output_dir", tmp_path / "old"])
    shutil.copytree(tmp_path / "old" / "checkpoint-2", tmp_path / "checkpoint-2")
    resumed = [*flags, "--resume_from_checkpoint", tmp_path / "checkpoint-2", "--output_dir"]
    train_mage([*resumed, tmp_path / "same"])
    train_mage([*resumed, tmp_path / "other", "--learning_rate", "0.04", "--weight_decay", "0.5"])
    assert_same_bits(tmp_path / "old", tmp_path / "same")
    before = load_file(tmp_path / "checkpoint-2" / "model.safetensors")["mage.head.bias"]
    same, other = (weights(tmp_path / name)["head.bias"] - before for name in ("same", "other"))
    # Biases are not decayed, so that they move in proportion to the rate.
    torch.testing.assert_close(other, 4 * same)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--use_ema"], "use_ema was False and is True now. Give `--use_ema False`"),
        (["--contrastive_weight", "0.1"], "Give `--contrastive_weight 0.0`"),
        (["--model.hidden_size", "32"], "Give `--model.hidden_size 16`"),
        (["--model.num_attention_heads", "4"], "Give `--model.num_attention_heads 2`"),
    ],
)
def test_what_a_resumed_run_cannot_change_is_refused(
    train_mage: Script, flags: list[str], run_of_two: Path, extra: list[str], message: str
):
    with pytest.raises(SystemExit, match=re.escape(message)):
        train_mage([*flags, *extra, "--output_dir", run_of_two, "--resume_from_checkpoint", "latest"])


@pytest.fixture
def run_of_two(train_mage: Script, flags: list[str], tmp_path: Path) -> Path:
    """A finished run of two updates."""
    train_mage([*flags, "--max_train_steps", "2", "--checkpointing_steps", "1", "--output_dir", tmp_path / "run"])
    return tmp_path / "run"


def test_a_used_folder_is_refused_and_nothing_in_it_touched(train_mage: Script, flags: list[str], run_of_two: Path):
    before = {path: path.read_bytes() for path in run_of_two.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit, match=r"holds a run already \(checkpoint-2, .*--resume_from_checkpoint latest"):
        train_mage([*flags, "--max_train_steps", "1", "--output_dir", run_of_two])
    assert {path: path.read_bytes() for path in run_of_two.rglob("*") if path.is_file()} == before


def test_a_cut_line_of_metrics_does_not_end_a_resumed_run(train_mage: Script, flags: list[str], run_of_two: Path):
    metrics = run_of_two / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-20])
    flags = [*flags, "--max_train_steps", "3", "--output_dir", run_of_two, "--resume_from_checkpoint", "latest"]
    train_mage(flags)
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == [1, 3]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--dataset_name", "/nowhere"], "cannot be loaded"),
        (["--image_column", "photo"], 'has no column "photo"'),
        (["--train_split", "nosuch"], "it has the splits"),
        (["--tokenizer_name_or_path", "/nowhere"], "There is no tokenizer in /nowhere"),
        (["--model.hidden_size", "17"], "makes no model"),
        (["--model.hidden_act", "nope"], "makes no model"),
        (["--validation_split", "nosuch"], "it has the splits"),
        (["--total_batch_size", "9"], "is not a multiple of the 8 images"),
        (["--streaming", "--num_train_epochs", "1"], "say `--num_train_samples N`"),
        (["--token_cache", "/nowhere"], "is not a split of a token cache"),
    ],
)
def test_mistakes_end_with_a_message(train_mage: Script, flags: list[str], extra: list[str], message: str):
    with pytest.raises(SystemExit, match=re.escape(message)):
        train_mage([*flags, *extra])
