"""Kills and signals at random moments: in the end there is what there would have been without them."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.in_process import MODEL_FLAGS, VQ_FLAGS, load_script
from tests.original_files import convert, original_weights, save_original
from transformers_mage import MageForMaskedImageModeling, MagePipeline, MageScheduler
from transformers_mage.data.token_cache import CachedTokens
from transformers_mage.training.checkpointing import checkpoints

from .disturbing import STATUSES, TIMES, Scenario, on_two_processes

Script = Callable[[list[str]], None]
DECODED = ["--in_memory_limit", "0"]
STREAMED = ["--streaming", "--shuffle_window", "5"]
WORKERS = ["--dataloader_num_workers", "2"]
TRAINING = {
    "in memory": [],
    "decoded": DECODED,
    "decoded by 2 workers": [*DECODED, *WORKERS],
    "streamed": STREAMED,
    "streamed by 2 workers": [*STREAMED, *WORKERS],
    "MAGE-C, accumulated": [*DECODED, "--gradient_accumulation_steps", "3", "--contrastive_weight", "0.1"],
}
ON_TWO = {name: TRAINING[name] for name in ("in memory", "decoded by 2 workers", "streamed by 2 workers")}


def assert_same_tensors(ours: Path, theirs: Path):
    first, second = load_file(ours), load_file(theirs)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def losses(folder: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    # What was measured at a step on held-out images has a line of its own.
    lines = [line for line in lines if "loss" in line]
    assert len({line["step"] for line in lines}) == len(lines), "a step was logged twice"
    return {line["step"]: line["loss"] for line in lines}


def assert_same_training(folder: Path, once: Path, weights: str = "model.safetensors"):
    assert_same_tensors(folder / weights, once / weights)
    assert losses(folder) == losses(once)


def newest_checkpoint(folder: Path) -> int:
    whole = checkpoints(folder)
    return int(whole[-1].name.rpartition("-")[2]) if whole else 0


def training(name: str, script: Script, flags: list[str], **kwargs) -> Scenario:
    schedule = ["--checkpointing_steps", "4", "--checkpoints_total_limit", "2", "--logging_steps", "1"]
    flags = [*flags, *schedule, "--resume_from_checkpoint", "latest"]
    run = lambda folder: script([*flags, "--output_dir", folder])  # noqa: E731
    return Scenario(name, run, assert_same_training, newest_checkpoint, **kwargs)


@pytest.fixture
def flags(image_folder: Path, tokenizer_folder: Path) -> list[str]:
    data = ["--dataset_name", image_folder, "--tokenizer_name_or_path", tokenizer_folder]
    return [*MODEL_FLAGS, *data, "--use_ema", "--max_train_steps", "100"]


@pytest.mark.parametrize("loading", TRAINING.values(), ids=TRAINING)
def test_training(train_mage: Script, flags: list[str], tmp_path: Path, loading: list[str], request):
    training(f"training, {request.node.callspec.id}", train_mage, [*flags, *loading]).disturb(tmp_path / "run")


@pytest.mark.parametrize("loading", ON_TWO.values(), ids=ON_TWO)
def test_training_on_two_processes(train_mage: Script, flags: list[str], tmp_path: Path, loading: list[str], request):
    scenario = training(f"training on 2 processes, {request.node.callspec.id}", train_mage, [*flags, *loading])
    scenario.run = on_two_processes(scenario.run)
    # The agent's statuses: of a process that failed, and of the signal that it got.
    scenario.statuses = {1, 130, *scenario.statuses}
    scenario.disturb(tmp_path / "run")


def test_training_from_cached_tokens(
    train_mage: Script, cache_tokens: Script, image_folder: Path, tokenizer_folder: Path, tmp_path: Path
):
    made_of = ["--dataset_name", image_folder, "--tokenizer_name_or_path", tokenizer_folder, "--image_size", "8"]
    cache_tokens([*made_of, "--views", "3", "--output_dir", tmp_path / "tokens"])
    flags = [*MODEL_FLAGS, "--token_cache", tmp_path / "tokens", "--max_train_steps", "100"]
    training("training, cached tokens", train_mage, flags).disturb(tmp_path / "run")
    scenario = training("training on 2 processes, cached tokens", train_mage, flags, statuses={1, *STATUSES})
    scenario.run = on_two_processes(scenario.run)
    scenario.disturb(tmp_path / "on two" / "run")


def test_training_a_tokenizer(train_vqgan: Script, image_folder: Path, tmp_path: Path):
    flags = [*VQ_FLAGS, "--dataset_name", image_folder, "--max_train_steps", "60"]
    scenario = training("training a tokenizer", train_vqgan, flags)
    scenario.same = lambda folder, once: assert_same_training(folder, once, "diffusion_pytorch_model.safetensors")
    scenario.disturb(tmp_path / "run")


def test_fine_tuning(colours: Path, mage_folder: Path, tmp_path: Path):
    flags = ["--dataset_name", colours, "--model_name_or_path", mage_folder, "--train_batch_size", "8"]
    flags += ["--max_train_steps", "60", "--report_to", "none", "--validation_split", "test"]
    training("fine-tuning", load_script("finetune"), flags).disturb(tmp_path / "run")


def test_caching_tokens(cache_tokens: Script, image_folder: Path, tokenizer_folder: Path, tmp_path: Path):
    flags = ["--dataset_name", image_folder, "--tokenizer_name_or_path", tokenizer_folder, "--image_size", "8"]
    flags += ["--views", "3", "--rows_per_shard", "1", "--output_dir"]

    def same(folder: Path, once: Path):
        ours, theirs = (CachedTokens(path / "train") for path in (folder, once))
        draws = list(range(3 * len(theirs)))
        assert torch.equal(ours.__getitems__(draws).input_ids, theirs.__getitems__(draws).input_ids)

    caching = Scenario(
        "caching tokens", lambda folder: cache_tokens([*flags, folder]), same, lambda folder: count(folder, "shard-*")
    )
    caching.disturb(tmp_path / "run")
    caching = Scenario("caching tokens on 2 processes", on_two_processes(caching.run), same, caching.progress)
    caching.statuses = {1, *STATUSES}
    caching.disturb(tmp_path / "on two" / "run", TIMES // 2)


def count(folder: Path, pattern: str) -> int:
    return len(list(folder.rglob(pattern)))


# A card has the folder's name in it.
NOT_COMPARED = {".lock", "README.md"}


def assert_same_files(folder: Path, once: Path):
    ours, theirs = (
        {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}
        for place in (folder, once)
    )
    different = {name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)}
    assert {Path(name).name for name in different} <= NOT_COMPARED


# Samples that no disturbance may lose; an array's are marked in a file of their own.
SAMPLES = {"png": "*.png", "tar": "*.tar", "npz": "samples.npz"}


@pytest.mark.parametrize("output_format", SAMPLES)
def test_generating(mage_folder: Path, tmp_path: Path, output_format: str):
    generate = load_script("generate")
    model = MageForMaskedImageModeling.from_pretrained(mage_folder)
    MagePipeline(model, MageScheduler(model.config.mask_token_id)).save_pretrained(tmp_path / "model")
    flags = ["--pretrained_model_name_or_path", tmp_path / "model", "--num_images", "160", "--batch_size", "4"]
    flags += ["--output_format", output_format, "--shard_size", "16", "--output_dir"]
    generating = Scenario(
        f"generating, {output_format}",
        lambda folder: generate([*flags, folder]),
        assert_same_files,
        lambda folder: count(folder, SAMPLES[output_format]),
    )
    generating.disturb(tmp_path / "run", TIMES // 2)


@pytest.mark.parametrize("output_format", ["parquet", "safetensors"])
def test_extracting_features(colours: Path, mage_folder: Path, tmp_path: Path, output_format: str):
    extract = load_script("extract_features")
    flags = ["--dataset_name", colours, "--model_name_or_path", mage_folder, "--images_per_shard", "1"]
    flags += ["--output_format", output_format, "--dataloader_num_workers", "2", "--output_dir"]
    extracting = Scenario(
        f"extracting features by 2 workers, {output_format}",
        lambda folder: extract([*flags, folder]),
        assert_same_files,
        lambda folder: count(folder, f"train-*.{output_format}"),
    )
    extracting.disturb(tmp_path / "run", TIMES // 2)


@pytest.mark.parametrize("way", ["there", "back"])
def test_converting(tmp_path: Path, way: str):
    """It is not resumed but made anew, and there is either nothing or all of it."""
    source = save_original(tmp_path / "checkpoint.pth", original_weights())
    flags: list[str] = []
    if way == "back":
        source, flags = convert(source, tmp_path / "model"), ["--to_original"]

    def run(folder: Path):
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as the command does it
        # A signal may come when all of it is written: then the command would say that it is there.
        if not folder.exists():
            convert(source, folder, *flags)

    def progress(folder: Path) -> int:
        return int(folder.exists())

    scenario = Scenario(f"converting, {way}", run, assert_same_files, progress, {1, *STATUSES}, is_resumed=False)
    scenario.disturb(tmp_path / "run")
