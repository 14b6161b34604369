from pathlib import Path

import pytest
import torch

from tests.in_process import load_script
from transformers_mage.data.tokenization import load_tokenizer
from transformers_mage.image_tokens import encode_images


def test_a_tokenizer_gets_fewer_codes(image_folder: Path, tokenizer_folder: Path, tmp_path: Path):
    flags = ["--dataset_name", image_folder, "--tokenizer_name_or_path", tokenizer_folder, "--image_size", 8]
    load_script("reduce_codes")([*flags, "--codebook_size", 3, "--output_dir", tmp_path / "reduced"])

    before, after = load_tokenizer(str(tokenizer_folder)), load_tokenizer(str(tmp_path / "reduced"))
    assert after.config.num_vq_embeddings == 3 < before.config.num_vq_embeddings
    assert torch.equal(after.encoder.conv_in.weight, before.encoder.conv_in.weight)
    assert set(encode_images(after, torch.rand(8, 1, 8, 8)).unique().tolist()) <= {0, 1, 2}


def test_more_codes_than_tokens_are_refused(image_folder: Path, tokenizer_folder: Path, tmp_path: Path):
    flags = ["--dataset_name", image_folder, "--tokenizer_name_or_path", tokenizer_folder, "--image_size", 8]
    with pytest.raises(SystemExit, match="1000 codes need as many tokens or more, and the images have 384"):
        load_script("reduce_codes")([*flags, "--codebook_size", 1000, "--output_dir", tmp_path / "reduced"])
