import json
from pathlib import Path

from diffusers import VQModel


def test_the_loss_falls_and_the_codes_are_used(tokenizer_folder: Path):
    lines = [json.loads(line) for line in (tokenizer_folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["reconstruction_loss"] < 0.5 * lines[0]["reconstruction_loss"]
    assert lines[-1]["codes_used"] > 2


def test_the_folder_is_a_plain_vqmodel(tokenizer_folder: Path):
    assert VQModel.from_pretrained(tokenizer_folder).config.num_vq_embeddings == 16
