"""Model cards say what a checkpoint is, what was published about it and whose it is."""

from pathlib import Path

import pytest

from transformers_mage import MageConfig
from transformers_mage.conversion.card import is_contrastive, model_card
from transformers_mage.conversion.reading import OriginalCheckpoint

LARGE = {"num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 16, "decoder_hidden_size": 1024}


def _card(name: str, kind: str = "pretraining", **sizes) -> str:
    return str(model_card(OriginalCheckpoint(Path(name), kind, {}), MageConfig(**sizes), usage="print(1)"))


def test_pretrained_base():
    card = _card("mage-vitb-1600.pth")

    assert "license: mit" in card
    assert "# MAGE ViT-B" in card
    assert "| FID, unconditional | 11.1 |" in card
    assert "| linear probe, top-1 (%) | 74.7 |" in card
    assert "not measured again" in card
    assert "li2023mage" in card
    assert "print(1)" in card


def test_pretrained_large():
    card = _card("mage-vitl-1600.pth", **LARGE)

    assert "| FID, unconditional | 9.1 |" in card
    assert "grid search" in card


def test_contrastive_model_has_its_own_figures():
    card = _card("mage-c-vitb.pth")

    assert "# MAGE-C ViT-B" in card
    assert "78.2" in card
    assert "FID" not in card


def test_fine_tuned_large():
    card = _card("mage-vitl-ft.pth", "classifier", num_labels=1000, **LARGE)

    assert "pipeline_tag: image-classification" in card
    assert "| fine-tuned, top-1 (%) | 83.9 |" in card


def test_other_sizes_claim_no_published_figures():
    card = _card("checkpoint-80.pth", num_hidden_layers=4)

    assert "of another size" in card
    assert "Published results" not in card
    assert "imagenet" not in card.lower()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mage-c-vitb.pth", True),
        ("magec_vitl.pth", True),
        ("mage-checkpoint.pth", False),
        ("mage-vitb-1600.pth", False),
    ],
)
def test_contrastive_models_are_told_by_the_file_name(name, expected):
    assert is_contrastive(OriginalCheckpoint(Path(name), "pretraining", {})) == expected


def test_contrastive_models_are_told_by_their_head():
    checkpoint = OriginalCheckpoint(Path("a.pth"), "pretraining", {}, projection_head=["projection_head.0.weight"])

    assert is_contrastive(checkpoint)
