import json
import re

import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from diffusers import VQModel
from huggingface_hub import ModelCard
from PIL import Image
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from tests.in_process import load_script
from transformers_mage import MageConfig, MageForMaskedImageModeling
from transformers_mage.metrics import (
    FrechetInceptionDistance,
    KernelInceptionDistance,
    PrecisionRecall,
    TokenizerScores,
    TransformersFeatures,
)

VQ_CONFIG = {
    "block_out_channels": [8, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "norm_num_groups": 4,
    "num_vq_embeddings": 16,
    "mid_block_add_attention": False,
}


@pytest.fixture(scope="module")
def evaluate():
    return load_script("evaluate_generation")


@pytest.fixture(scope="module")
def mage(tmp_path_factory):
    """A MAGE folder with features of 8 numbers."""
    folder = tmp_path_factory.mktemp("mage")
    torch.manual_seed(0)
    config = MageConfig(
        codebook_size=16,
        image_size=16,
        patch_size=2,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        decoder_hidden_size=8,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        vq_config=VQ_CONFIG,
    )
    MageForMaskedImageModeling(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}, do_normalize=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pixels():
    generator = torch.Generator().manual_seed(0)
    return {
        "samples": torch.randint(256, (20, 3, 16, 16), dtype=torch.uint8, generator=generator),
        "references": torch.randint(200, (25, 3, 16, 16), dtype=torch.uint8, generator=generator),
    }


@pytest.fixture
def images(tmp_path, pixels):
    for name, side in pixels.items():
        (tmp_path / name).mkdir()
        for i, image in enumerate(side):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / name / f"{i:02}.png")
    return tmp_path


@pytest.fixture
def flags(images, mage):
    return {
        "samples": images / "samples",
        "references": images / "references",
        "feature_network": mage,
        "output_dir": images / "out",
    }


def run(evaluate, flags):
    evaluate([word for name, value in flags.items() for word in (f"--{name}", str(value))])
    return json.loads((flags["output_dir"] / "results.json").read_text())


@pytest.fixture(scope="module")
def expected(mage, pixels):
    sides = {"predictions": pixels["samples"], "references": pixels["references"]}
    network = TransformersFeatures(mage)
    metrics = [FrechetInceptionDistance(network), KernelInceptionDistance(network), PrecisionRecall(network)]
    return {name: value for metric in metrics for name, value in metric.compute(**sides).items()}


def test_two_folders(evaluate, flags, expected):
    results = run(evaluate, flags | {"model_name": "mage-test", "batch_size": 7})
    assert results["scores"] == pytest.approx(expected, rel=1e-6)
    assert results["samples"] == {"path": str(flags["samples"]), "count": 20, "skipped": 0}
    card = ModelCard.load(flags["output_dir"] / "results.md")
    assert {result.metric_type for result in card.data.eval_results} == {"fid", "kid", "precision", "recall"}
    assert {file.name for file in flags["output_dir"].iterdir()} == {"results.json", "results.md"}


def test_saved_dataset(evaluate, flags, expected, tmp_path, pixels):
    rows = [{"image": Image.fromarray(image.permute(1, 2, 0).numpy())} for image in pixels["references"]]
    Dataset.from_list(rows, Features({"image": ImageFeature()})).save_to_disk(tmp_path / "dataset")
    assert run(evaluate, flags | {"references": tmp_path / "dataset"})["scores"] == pytest.approx(expected, rel=1e-6)


def test_statistics_stand_for_the_references(evaluate, flags, tmp_path):
    saved = run(evaluate, flags | {"save_statistics": tmp_path / "statistics.safetensors"})
    results = run(evaluate, flags | {"references": tmp_path / "statistics.safetensors"})
    assert results["scores"] == saved["scores"]


def test_moments_give_fid(evaluate, flags, tmp_path, mage, pixels, expected):
    features = TransformersFeatures(mage)(pixels["references"])[0].detach().double()
    np.savez(tmp_path / "moments.npz", mu=features.mean(0), sigma=np.cov(features, rowvar=False))
    results = run(evaluate, flags | {"references": tmp_path / "moments.npz"})
    assert results["scores"] == {"fid": pytest.approx(expected["fid"], rel=1e-5)}


def test_any_vision_model_gives_features(evaluate, flags, tmp_path):
    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16)
    ViTModel(config).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "vit")
    scores = run(evaluate, flags | {"feature_network": tmp_path / "vit", "metrics": "fid"})["scores"]
    assert list(scores) == ["fid"]
    assert scores["fid"] > 0


@pytest.mark.parametrize("kind", ["vqmodel", "mage"])
def test_tokenizer(evaluate, flags, tmp_path, mage, pixels, kind):
    torch.manual_seed(0)
    tokenizer = VQModel(**VQ_CONFIG)
    tokenizer.save_pretrained(tmp_path / "vqmodel")
    folder = mage if kind == "mage" else tmp_path / "vqmodel"
    results = run(evaluate, {k: v for k, v in flags.items() if k != "samples"} | {"tokenizer": folder})
    assert set(results["scores"]) == {"psnr", "ssim", "rfid", "codes_used", "code_perplexity"}
    if kind == "vqmodel":
        expected = TokenizerScores(tokenizer, TransformersFeatures(mage))
        expected.add_batch(pixels["references"])
        assert results["scores"] == pytest.approx(expected.compute(), rel=1e-4)


def test_undecodable_images_are_counted(evaluate, flags):
    (flags["samples"] / "99.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match="1 of the 21 images in .*samples cannot be decoded"):
        assert run(evaluate, flags)["samples"]["skipped"] == 1


def test_few_samples_are_told(evaluate, flags):
    for file in sorted(flags["samples"].iterdir())[8:]:
        file.unlink()
    with pytest.warns(UserWarning, match="8 predictions are too few for features of 8 numbers"):
        run(evaluate, flags)


def test_bad_input_is_told_without_a_traceback(evaluate, flags, tmp_path):
    def fails(message, **changes):
        with pytest.raises(SystemExit, match=message):
            run(evaluate, flags | changes)

    (tmp_path / "empty").mkdir()
    fails("empty holds no images", samples=tmp_path / "empty")
    (tmp_path / "empty" / "0.png").write_bytes(b"no image")
    fails("None of the 1 images in .*empty can be decoded", samples=tmp_path / "empty")
    fails("missing does not exist", references=tmp_path / "missing")
    np.savez(tmp_path / "other.npz", mu=np.zeros(3), sigma=np.eye(3))
    fails("sizes 8 and 3", references=tmp_path / "other.npz")
    fails(r"holds statistics for \['fid'\], not for kid", references=tmp_path / "other.npz", metrics="kid")
    fails("gives none", metrics="inception_score")
    run(evaluate, flags | {"save_statistics": tmp_path / "statistics.safetensors"})
    fails(
        f'holds statistics of "{re.escape(str(flags["feature_network"]))}" features',
        references=tmp_path / "statistics.safetensors",
        feature_network="inception",
    )


def test_flags_that_do_not_go_together(evaluate, capsys):
    for words, message in (
        ([], "Say what to score"),
        (["--batch_size", "0"], "must be at least 1"),
        (["--pixel_min", "2"], "must be below `--pixel_max`"),
        (["--samples", "x"], "Say what to compare with"),
        (["--samples", "x", "--references", "y", "--metrics", "fid,lpips"], "There is no metric lpips"),
    ):
        with pytest.raises(SystemExit):
            evaluate(words)
        assert message in capsys.readouterr().err
