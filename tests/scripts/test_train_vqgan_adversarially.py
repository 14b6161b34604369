"""The full recipe: a perceptual loss and a discriminator, interrupted, distributed, accumulated, looked at."""

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import debug_launcher
from diffusers import VQModel
from PIL import Image
from safetensors.torch import load_file
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessorPil

from tests.in_process import VQ_FLAGS, in_child, load_script
from tests.reference import relative_error

pytestmark = pytest.mark.slow

Script = Callable[[list[str]], None]

GAME = ["--adversarial_weight", "0.5", "--discriminator_channels", "4", "--discriminator_levels", "1"]
GAME += ["--lecam_weight", "0.1", "--crop_scale_min", "1", "--learning_rate", "0.001", "--warmup_steps", "0"]


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny network to see with."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("network")
    sizes = {"embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}
    ResNetForImageClassification(ResNetConfig(**sizes)).save_pretrained(folder)
    ViTImageProcessorPil().save_pretrained(folder)
    return f"transformers:{folder}"


@pytest.fixture
def flags(image_folder: Path, network: str) -> list[str]:
    flags = [*VQ_FLAGS, *GAME, "--dataset_name", image_folder, "--perceptual_weight", "0.1"]
    return [str(flag) for flag in [*flags, "--perceptual_network", network, "--revive_codes_every", "0"]]


def metrics_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def networks_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Everything that is trained, and LeCAM's averages."""
    return load_file(checkpoint / "model.safetensors")


def assert_same_bits(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_parts_of_the_loss_are_tracked_and_the_folder_is_a_plain_vqmodel(
    train_vqgan: Script, flags: list[str], tmp_path: Path
):
    flags += [
        "--adversarial_start_step",
        "2",
        "--adversarial_ramp_steps",
        "2",
        "--adaptive_adversarial_weight",
        "true",
    ]
    flags += ["--discriminator_augmentation", "color,translation,cutout", "--discriminator_spectral_norm", "true"]
    flags += ["--entropy_weight", "0.01", "--normalize_codes", "true", "--vq_config.vq_embed_dim", "2"]
    train_vqgan([*flags, "--max_train_steps", "5", "--logging_steps", "1", "--output_dir", str(tmp_path)])

    lines = metrics_of(tmp_path)
    assert {"perceptual_loss", "entropy_loss", "codes_used", "code_perplexity"} <= lines[0].keys()
    game = {"adversarial_loss", "adaptive_weight", "discriminator_loss", "discriminator_accuracy", "lecam_loss"}
    assert [game <= line.keys() for line in lines] == [False, False, True, True, True]
    vqvae = VQModel.from_pretrained(tmp_path)
    torch.testing.assert_close(vqvae.quantize.embedding.weight.norm(dim=1), torch.ones(16))


def test_before_its_start_the_discriminator_does_not_learn(train_vqgan: Script, flags: list[str], tmp_path: Path):
    flags += ["--adversarial_start_step", "2", "--checkpointing_steps", "1", "--weight_decay", "0.5"]
    train_vqgan([*flags, "--max_train_steps", "3", "--output_dir", str(tmp_path)])
    first, second, third = (networks_of(tmp_path / f"checkpoint-{step}") for step in (1, 2, 3))
    name = "adversary.discriminator.layers.0.weight"
    assert torch.equal(first[name], second[name])
    assert not torch.equal(second[name], third[name])


def test_a_killed_game_continues_with_the_same_bits(train_vqgan: Script, flags: list[str], tmp_path: Path):
    """Its networks, their optimizer's moments, LeCAM's averages, the moving average and the random numbers."""
    flags += ["--discriminator_augmentation", "color,translation", "--use_ema", "true", "--revive_codes_every", "2"]
    flags += ["--max_train_steps", "6", "--checkpointing_steps", "3", "--resume_from_checkpoint", "latest"]

    def run(folder: str, kills: bool):
        if kills:
            kill_at_step(5)
        train_vqgan([*flags, "--output_dir", str(tmp_path / folder)])

    assert in_child(run, "undisturbed", False) == 0
    assert in_child(run, "killed", True) == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "killed").glob("checkpoint-*")] == ["checkpoint-3"]
    assert in_child(run, "killed", False) == 0
    assert_same_bits(*(networks_of(tmp_path / name / "checkpoint-6") for name in ("undisturbed", "killed")))
    models = (VQModel.from_pretrained(tmp_path / name).state_dict() for name in ("undisturbed", "killed"))
    assert_same_bits(*models)


def kill_at_step(number: int):
    original, steps = torch.optim.AdamW.step, []

    def deadly(*args, **kwargs):
        steps.append(number)
        if len(steps) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    torch.optim.AdamW.step = deadly


def train_alone(words: list[str]):
    torch.set_num_threads(1)
    load_script("train_vqgan")(words)


@pytest.mark.usefixtures("clean_environment")
def test_two_processes_and_two_micro_batches_equal_one(flags: list[str], tmp_path: Path):
    """
    With a fixed weight, LeCAM and group norms nothing depends on how the images of an update are spread. (The adaptive
    weight, the entropy, the augmentation and the estimates of spectral norms do.)
    """
    flags += ["--max_train_steps", "3", "--horizontal_flip", "false", "--checkpointing_steps", "3"]
    runs = {"one": ["16"], "micro-batches": ["8", "--gradient_accumulation_steps", "2"], "processes": ["8"]}
    for name, batch in runs.items():
        words = [*flags, "--output_dir", str(tmp_path / name), "--train_batch_size", *batch]
        if name == "processes":
            debug_launcher(train_alone, (words,), num_processes=2)
        else:
            train_alone(words)
    one, *others = (networks_of(tmp_path / name / "checkpoint-3") for name in runs)
    for other in others:
        assert {name for name in one if relative_error(other[name], one[name]) > 1e-4} == set()


@pytest.mark.usefixtures("clean_environment")
def test_two_processes_end_together(flags: list[str], tmp_path: Path):
    """Where held-out images are good enough, which one of them knows."""
    flags += ["--max_train_steps", "6", "--stop_at_psnr", "1", "--output_dir", str(tmp_path)]
    flags += ["--validation_split", "train", "--validation_steps", "2"]
    debug_launcher(train_alone, (flags,), num_processes=2)
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 2
    assert VQModel.from_pretrained(tmp_path)


def test_a_frozen_encoder_keeps_the_tokens(
    train_vqgan: Script, flags: list[str], tokenizer_folder: Path, tmp_path: Path
):
    flags += [
        "--pretrained_model_name_or_path",
        str(tokenizer_folder),
        "--freeze_encoder",
        "true",
        "--use_ema",
        "true",
    ]
    flags += ["--revive_codes_every", "1", "--weight_decay", "0.5", "--max_train_steps", "4"]
    train_vqgan([*flags, "--output_dir", str(tmp_path)])
    before, after = (VQModel.from_pretrained(folder).state_dict() for folder in (tokenizer_folder, tmp_path))
    same = {name.split(".")[0] for name in before if torch.equal(before[name], after[name])}
    assert same >= {"encoder", "quant_conv", "quantize"}
    assert not torch.equal(before["decoder.conv_in.weight"], after["decoder.conv_in.weight"])


def test_held_out_images_are_scored_and_shown(train_vqgan: Script, flags: list[str], network: str, tmp_path: Path):
    flags += ["--validation_split", "test", "--validation_steps", "2", "--feature_network", network]
    train_vqgan([*flags, "--max_train_steps", "2", "--use_ema", "true", "--output_dir", str(tmp_path)])
    scores = next(line for line in metrics_of(tmp_path) if "validation_psnr" in line)
    names = ("psnr", "ssim", "perceptual_distance", "rfid", "codes_used", "code_perplexity")
    assert {f"validation_{name}" for name in names} <= scores.keys()
    # Eight images in a row, and their reconstructions below, enlarged and with gaps.
    picture = Image.open(tmp_path / "samples" / "reconstructions-00000002.png")
    assert picture.size == (8 * 64 + 7 * 2, 2 * 64 + 2)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (["--perceptual_network", "vgg"], r'There is no network "vgg".*torchvision:resnet50'),
        (["--discriminator_augmentation", "colour"], "takes color, translation, cutout; got colour"),
        (["--freeze_encoder", "true"], "say `--pretrained_model_name_or_path FOLDER`"),
        (["--lecam_weight", "-1"], "`--lecam_weight` must be at least 0, got -1"),
    ],
)
def test_mistakes_end_with_a_message(
    train_vqgan: Script, flags: list[str], mistake: list[str], message: str, capsys: pytest.CaptureFixture
):
    with pytest.raises(SystemExit) as error:
        train_vqgan([*flags, *mistake])
    said = capsys.readouterr().err + str(error.value)
    assert re.search(message, said)
