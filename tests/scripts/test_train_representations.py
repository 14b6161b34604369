"""From images to images led by representations: train_mage.py twice, then train_representation_diffusion.py."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

from tests.in_process import MODEL_FLAGS, load_script
from transformers_mage import MagePipeline, RepresentationDiffusionModel

Script = Callable[[list[str]], None]
DIFFUSION = ["--representation_model.hidden_size", "16", "--representation_model.bottleneck_size", "8"]
DIFFUSION += ["--representation_model.time_embedding_size", "8", "--representation_model.num_blocks", "1"]
DIFFUSION += ["--train_batch_size", "8", "--report_to", "none", "--logging_steps", "1", "--learning_rate", "0.01"]
VIEW = ["--crop_scale_min", "1", "--horizontal_flip", "false"]


@pytest.fixture(scope="session")
def train_diffusion() -> Script:
    return load_script("train_representation_diffusion")


@pytest.fixture
def flags(image_folder: Path) -> list[str]:
    flags = ["--dataset_name", image_folder, "--max_train_steps", "2", "--checkpointing_steps", "0", *VIEW]
    return [*MODEL_FLAGS, *flags, "--logging_steps", "1", "--learning_rate", "0.01"]


@pytest.fixture
def led(train_mage: Script, flags: list[str], tokenizer_folder: Path, tmp_path: Path) -> Path:
    """A model led by the representations of an earlier one."""
    tokenizer = ["--tokenizer_name_or_path", tokenizer_folder]
    train_mage([*flags, *tokenizer, "--output_dir", tmp_path / "earlier"])
    by_it = ["--representation_model_name_or_path", tmp_path / "earlier", "--validation_split", "test"]
    train_mage([*flags, *tokenizer, *by_it, "--sample_steps", "2", "--output_dir", tmp_path / "led"])
    return tmp_path / "led"


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def generate(folder: Path, **kwargs) -> torch.Tensor:
    pipe = MagePipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe(num_inference_steps=2, generator=generator, output_type="pt", **kwargs).images


def test_images_of_drawn_representations(train_diffusion: Script, image_folder: Path, led: Path, tmp_path: Path):
    config = MagePipeline.from_pretrained(led).model.config
    assert (config.representation_size, config.representation_source["model_name_or_path"]) == (16, "earlier")
    assert (led / "samples" / "samples-00000002.png").exists()
    flags = [*DIFFUSION, *VIEW, "--model_name_or_path", led, "--dataset_name", image_folder, "--use_ema"]

    train_diffusion([*flags, "--max_train_steps", "4", "--output_dir", tmp_path / "complete"])

    assert len(losses(tmp_path / "complete")) == 4
    assert generate(tmp_path / "complete", num_images=2, guidance_scale=1.0).shape == (2, 1, 8, 8)
    assert generate(tmp_path / "complete", like=torch.rand(2, 1, 8, 8)).shape == (2, 1, 8, 8)
    assert torch.equal(*(load_file(path / "model.safetensors")["head.bias"] for path in (led, tmp_path / "complete")))
    card = (tmp_path / "complete" / "README.md").read_text()
    assert "led by representations" in card
    assert "sample-0.png" in card


@pytest.mark.slow
def test_from_cached_tokens(
    train_mage: Script,
    train_diffusion: Script,
    cache_tokens: Script,
    image_folder: Path,
    tokenizer_folder: Path,
    led: Path,
    tmp_path: Path,
):
    """Neither needs images: the earlier model reads the tokens, and what is learned is the same as from images."""
    images = ["--dataset_name", image_folder, "--tokenizer_name_or_path", tokenizer_folder, "--image_size", "8"]
    cache_tokens([*images, *VIEW, "--views", "1", "--output_dir", tmp_path / "tokens"])
    flags = [*MODEL_FLAGS, *VIEW, "--max_train_steps", "2", "--checkpointing_steps", "0", "--logging_steps", "1"]
    flags += ["--learning_rate", "0.01", "--token_cache", tmp_path / "tokens"]
    train_mage(
        [*flags, "--representation_model_name_or_path", led.parent / "earlier", "--output_dir", tmp_path / "too"]
    )
    assert losses(tmp_path / "too") == pytest.approx(losses(led), rel=1e-5)

    flags = [*DIFFUSION, *VIEW, "--model_name_or_path", led, "--max_train_steps", "3", "--checkpointing_steps", "0"]
    train_diffusion([*flags, "--dataset_name", image_folder, "--output_dir", tmp_path / "of-images"])
    for limit in ("2", "0"):
        more = ["--token_cache", tmp_path / "tokens", "--in_memory_limit", limit]
        train_diffusion([*flags, *more, "--output_dir", tmp_path / f"of-tokens-{limit}"])
        assert losses(tmp_path / f"of-tokens-{limit}") == pytest.approx(losses(tmp_path / "of-images"), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("extra", [[], ["--class_conditional", "--gradient_accumulation_steps", "2"]])
def test_resuming_gives_the_same_bits(
    train_diffusion: Script, image_folder: Path, led: Path, tmp_path: Path, extra: list[str]
):
    flags = [*DIFFUSION, "--dataset_name", image_folder, "--model_name_or_path", led, "--use_ema", *extra]
    flags += ["--max_train_steps", "6", "--checkpointing_steps", "4"]
    train_diffusion([*flags, "--output_dir", tmp_path / "once"])
    checkpoint = tmp_path / "once" / "checkpoint-4"
    train_diffusion([*flags, "--output_dir", tmp_path / "twice", "--resume_from_checkpoint", checkpoint])

    weights = [
        load_file(tmp_path / run / "representation_model" / "diffusion_pytorch_model.safetensors")
        for run in ("once", "twice")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    if extra:
        assert generate(tmp_path / "once", class_labels=["0", 1]).shape == (2, 1, 8, 8)


@pytest.mark.slow
def test_from_extracted_features(train_diffusion: Script, colours: Path, mage_folder: Path, tmp_path: Path):
    features = ["--model_name_or_path", mage_folder, "--dataset_name", colours, "--poolings", "mean", "cls"]
    load_script("extract_features")([*features, "--output_dir", tmp_path / "features"])
    flags = [*DIFFUSION, "--features", tmp_path / "features", "--max_train_steps", "2", "--class_conditional"]

    train_diffusion([*flags, "--feature_name", "layer_1_mean", "--output_dir", tmp_path / "diffusion"])

    model = RepresentationDiffusionModel.from_pretrained(tmp_path / "diffusion")
    assert (model.config.representation_size, model.config.num_classes) == (16, 2)
    with pytest.raises(SystemExit, match=r"say which of .*layer_1_cls.* to take with `--feature_name`"):
        train_diffusion([*flags, "--output_dir", tmp_path / "again"])


@pytest.mark.slow
def test_representations_of_any_image_model(
    train_mage: Script, train_diffusion: Script, flags: list[str], image_folder: Path, tokenizer_folder, tmp_path: Path
):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    ViTModel(ViTConfig(**sizes, image_size=8, patch_size=4)).save_pretrained(tmp_path / "vit")
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "vit")
    by_it = ["--representation_model_name_or_path", tmp_path / "vit", "--tokenizer_name_or_path", tokenizer_folder]
    train_mage([*flags, *by_it, "--contrastive_weight", "0.1", "--output_dir", tmp_path / "led"])
    flags = [*DIFFUSION, "--dataset_name", image_folder, "--model_name_or_path", tmp_path / "led"]

    train_diffusion([*flags, "--max_train_steps", "2", "--output_dir", tmp_path / "complete"])

    assert isinstance(MagePipeline.from_pretrained(tmp_path / "complete").representation_encoder, ViTModel)
    assert generate(tmp_path / "complete", like=torch.rand(2, 1, 8, 8)).shape == (2, 1, 8, 8)


def test_mistakes_end_with_a_message(train_diffusion: Script, image_folder: Path, mage_folder: Path, tmp_path, capsys):
    flags = [*DIFFUSION, "--dataset_name", image_folder, "--output_dir", tmp_path]
    with pytest.raises(SystemExit):
        train_diffusion(flags)
    assert "Say what to draw representations for: `--model_name_or_path FOLDER`" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="holds no pipeline"):
        train_diffusion([*flags, "--model_name_or_path", mage_folder])
