"""A line for each tokenizer, of what they make of the same images."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import VQModel
from PIL import Image
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessorPil

from tests.in_process import load_script
from transformers_mage.metrics import TokenizerScores, load_feature_network

Script = Callable[[list[str]], None]


def save_tokenizer(folder: Path, seed: int, **config) -> Path:
    torch.manual_seed(seed)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    sizes = {"block_out_channels": [8, 8], "norm_num_groups": 4, "num_vq_embeddings": 16}
    VQModel(**blocks, **sizes, mid_block_add_attention=False, **config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, images: np.ndarray) -> Path:
    """Images, two tokenizers, and a network to see with."""
    place = tmp_path_factory.mktemp("place")
    (place / "images").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(place / "images" / f"{number:02}.png")
    save_tokenizer(place / "one", 1)
    save_tokenizer(place / "two", 2, vq_embed_dim=2)
    torch.manual_seed(0)
    sizes = {"embedding_size": 4, "hidden_sizes": [4], "depths": [1], "layer_type": "basic"}
    ResNetForImageClassification(ResNetConfig(**sizes)).save_pretrained(place / "network")
    ViTImageProcessorPil().save_pretrained(place / "network")
    return place


@pytest.fixture(scope="module")
def evaluate(place: Path) -> Script:
    script = load_script("evaluate_reconstruction")

    def run(words: list[str]):
        network = f"transformers:{place / 'network'}"
        flags = ["--references", place / "images", "--batch_size", "5", "--feature_networks", network]
        script([str(word) for word in [*flags, "--perceptual_network", network, *words]])

    return run


def test_two_tokenizers_make_two_lines(evaluate: Script, place: Path, images: np.ndarray, tmp_path: Path):
    evaluate(["--tokenizers", f"{place / 'one'},{place / 'two'}", "--output_dir", tmp_path])

    results = json.loads((tmp_path / "results.json").read_text())
    assert results["references"]["count"] == 12
    network = f"transformers:{place / 'network'}"
    for name in ("one", "two"):
        expected = TokenizerScores(VQModel.from_pretrained(place / name), {network: load_feature_network(network)})
        expected.add_batch(torch.from_numpy(images).permute(0, 3, 1, 2))
        found = results["tokenizers"][str(place / name)]
        assert found.pop("perceptual_distance") > 0
        assert found == pytest.approx(expected.compute(), rel=1e-4)
    table = (tmp_path / "results.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in table[2:]] == [f"| {place / 'one'}", f"| {place / 'two'}"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tokenizers", "{place}/one", "--resolution", "15"], r"token of .*one is 2 x 2 pixels, .* 15 x 15"),
        (["--tokenizers", "{place}/one,{place}/grey"], "grey and of colour images"),
        (["--tokenizers", "{place}/network"], "There is no tokenizer in .*network"),
    ],
)
def test_mistakes_end_with_a_message(evaluate: Script, place: Path, words: list[str], message: str, tmp_path: Path):
    save_tokenizer(place / "grey", 3, in_channels=1, out_channels=1)
    with pytest.raises(SystemExit, match=message):
        evaluate([*(word.format(place=place) for word in words), "--output_dir", str(tmp_path)])
