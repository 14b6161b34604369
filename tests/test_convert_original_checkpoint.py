"""The command: original checkpoints of every kind become folders that reproduce the recorded numbers."""

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import VQModel
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
)

from tests.original_files import convert, original_weights, save_original, save_tokenizer
from tests.reference import TINY, ReferenceCase, relative_error
from transformers_mage import MageConfig, MagePipeline, convert_original_checkpoint
from transformers_mage.conversion import folder as conversion_folder
from transformers_mage.convert_original_checkpoint import main

# Relative error of a correct model whose every activation is rounded.
ROUNDING = {"float16": 2e-3, "bfloat16": 1e-2}


@pytest.fixture(scope="module")
def pretrained(reference: ReferenceCase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted pre-training checkpoint, with its tokenizer inside."""
    place = tmp_path_factory.mktemp("pretrained")
    checkpoint = save_original(place / "mage.pth", original_weights(case=reference))
    return convert(checkpoint, place / "mage", case=reference)


@torch.no_grad()
def test_auto_model_has_the_recorded_tokens_and_features(reference, pretrained):
    model = AutoModel.from_pretrained(pretrained)
    outputs = model(reference.pixel_values)

    recorded = reference.recorded
    tokens = model.get_image_tokens(reference.pixel_values)
    assert torch.equal(tokens.flatten(1), recorded["tokenizer.token_ids"])
    assert relative_error(outputs.pooler_output, recorded["encoder.before_norm_mean"]) < 1e-5
    assert relative_error(outputs.last_hidden_state[:, ::16], recorded["encoder.last_hidden_state"]) < 1e-5


@torch.no_grad()
def test_masked_image_modeling_has_the_recorded_loss(reference, pretrained):
    recorded = reference.recorded
    masks = {"bool_masked_pos": recorded["mim.masked"], "bool_dropped_pos": recorded["mim.dropped"]}

    outputs = AutoModelForMaskedImageModeling.from_pretrained(pretrained)(reference.pixel_values, **masks)

    assert relative_error(outputs.loss, recorded["mim.loss"]) < 1e-5


@torch.no_grad()
def test_pipeline_has_the_recorded_logits_and_sample(reference, pretrained):
    recorded = reference.recorded
    pipe = MagePipeline.from_pretrained(pretrained)

    logits = pipe.model(input_ids=recorded["decode.tokens_in"][4]).logits
    pixels = pipe.model.decode_image_tokens(recorded["decode.sampled"][-1])

    assert relative_error(logits[:, ::16, ::7], recorded["decode.logits"][1]) < 1e-5
    assert relative_error(pixels[:, :, ::4, ::4], recorded["decode.image"]) < 1e-5
    # The paper's settings.
    assert (pipe.scheduler.config.num_inference_steps, pipe.scheduler.config.temperature) == (20, 6.0)


@pytest.mark.parametrize("kind", ["classifier", "probe"])
@torch.no_grad()
def test_classifiers_have_the_recorded_logits(reference, kind, tmp_path):
    checkpoint = save_original(tmp_path / "mage.pth", original_weights(kind, tokenizer=False, case=reference))

    folder = convert(checkpoint, tmp_path / "out", case=reference)

    model = AutoModelForImageClassification.from_pretrained(folder)
    logits = model(input_ids=reference.recorded["tokenizer.token_ids"]).logits
    assert relative_error(logits, reference.recorded[f"{kind}.logits"]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classifier", "probe"])
@pytest.mark.parametrize("where", ["inside", "second file"])
@torch.no_grad()
def test_classifiers_of_pixels(kind, where, tmp_path):
    checkpoint = save_original(tmp_path / "mage.pth", original_weights(kind, tokenizer=where == "inside"))
    second = [] if where == "inside" else ["--tokenizer", save_tokenizer(tmp_path / "vqgan.ckpt")]

    folder = convert(checkpoint, tmp_path / "out", *second)

    logits = AutoModelForImageClassification.from_pretrained(folder)(TINY.pixel_values).logits
    assert relative_error(logits, TINY.recorded[f"{kind}.logits"]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["model", "classifier", "probe"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@torch.no_grad()
def test_half_precision_keeps_every_token(kind, dtype, tmp_path):
    checkpoint = save_original(tmp_path / "mage.pth", original_weights(kind))

    folder = convert(checkpoint, tmp_path / "out", "--dtype", dtype)

    assert _precisions(folder) == {"tokenizer": {torch.float32}, "model": {getattr(torch, dtype)}}
    model = AutoModel.from_pretrained(folder)
    assert (model.dtype, model.vqvae.dtype) == (getattr(torch, dtype), torch.float32)
    tokens = model.get_image_tokens(TINY.pixel_values).flatten(1)
    assert torch.equal(tokens, TINY.recorded["tokenizer.token_ids"])
    features = model(TINY.pixel_values).pooler_output
    assert relative_error(features, TINY.recorded["encoder.before_norm_mean"]) < ROUNDING[dtype]


def _precisions(folder: Path) -> dict[str, set[torch.dtype]]:
    """Of the floating-point numbers as stored."""
    stored = {"tokenizer": set(), "model": set()}
    for name, weight in load_file(folder / "model.safetensors").items():
        if weight.is_floating_point():
            stored["tokenizer" if "vqvae" in name else "model"].add(weight.dtype)
    return stored


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pipeline_loads_in_half_precision_but_for_the_tokenizer(small_pipeline, dtype, tmp_path):
    small_pipeline.save_pretrained(tmp_path)

    pipe = MagePipeline.from_pretrained(tmp_path, dtype=dtype)

    assert (pipe.model.dtype, pipe.vqvae.dtype) == (dtype, torch.float32)


def test_model_without_a_tokenizer_takes_tokens(tmp_path, capsys):
    checkpoint = save_original(tmp_path / "mage.pth", original_weights(tokenizer=False))

    folder = convert(checkpoint, tmp_path / "out")

    assert "no tokenizer inside" in capsys.readouterr().out
    model = AutoModel.from_pretrained(folder)
    pooled = model(input_ids=TINY.recorded["tokenizer.token_ids"]).pooler_output
    assert relative_error(pooled, TINY.recorded["encoder.before_norm_mean"]) < 1e-5


def test_second_tokenizer_that_agrees_changes_nothing(tmp_path):
    checkpoint = save_original(tmp_path / "mage.pth", original_weights())
    tokenizer = save_tokenizer(tmp_path / "vqgan.ckpt")

    folder = convert(checkpoint, tmp_path / "out", "--tokenizer", tokenizer)

    assert MagePipeline.from_pretrained(folder).vqvae is not None


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["state_dict", "bare", "prefixed"])
@torch.no_grad()
def test_tokenizer_alone_becomes_a_stock_model(layout, tmp_path):
    weights = TINY.tokenizer_weights
    if layout == "prefixed":
        weights = {f"vqgan.{name}": weight for name, weight in weights.items()}
    torch.save({"state_dict": weights} if layout == "state_dict" else weights, tmp_path / "vqgan.ckpt")

    folder = convert(tmp_path / "vqgan.ckpt", tmp_path / "out")

    latents = VQModel.from_pretrained(folder).encode(TINY.pixel_values).latents

    assert relative_error(latents[:, ::8, ::4, ::4], TINY.recorded["tokenizer.latents"]) < 1e-5
    assert ModelCard.load(folder / "README.md").data.license == "mit"


def test_files_of_old_pytorch_open(tmp_path):
    weights = original_weights()
    checkpoint = save_original(tmp_path / "mage.pth", weights, _use_new_zipfile_serialization=False)

    folder = convert(checkpoint, tmp_path / "out")

    stored = load_file(folder / "model.safetensors")
    assert torch.equal(stored["mage.embeddings.layernorm.weight"], weights["token_emb.LayerNorm.weight"])


def test_class_token_pooling_is_recognised(tmp_path):
    """A classifier of the class token has the encoder's final norm in place of `fc_norm`."""
    weights = original_weights("classifier")
    weights = {name.replace("fc_norm.", "norm."): weight for name, weight in weights.items()}

    folder = convert(save_original(tmp_path / "classifier.pth", weights), tmp_path / "out")

    model = AutoModelForImageClassification.from_pretrained(folder)
    assert model.config.classifier_pooling == "cls"
    assert torch.equal(model.mage.layernorm.weight, weights["norm.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["model", "classifier", "probe"])
def test_image_processor_is_the_evaluation_crop(kind, tmp_path):
    """Shorter side to 292, centre 256, pixels in [0, 1]; only fine-tuning normalised them."""
    folder = convert(save_original(tmp_path / "mage.pth", original_weights(kind)), tmp_path / "out")
    ramp = np.linspace(0, 255, 584, dtype=np.uint8)[None, :, None].repeat(400, axis=0).repeat(3, axis=2)
    photo = Image.fromarray(ramp)

    pixels = AutoImageProcessor.from_pretrained(folder)(photo, return_tensors="pt")["pixel_values"][0]

    width = round(584 * 292 / 400)
    left = (width - 256) // 2
    resized = photo.resize((width, 292), Image.Resampling.BICUBIC)
    cropped = np.asarray(resized.crop((left, 18, left + 256, 274)), dtype=np.float32) / 255
    expected = torch.from_numpy(cropped).permute(2, 0, 1)
    if kind == "classifier":
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        expected = (expected - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(pixels, expected, atol=1e-5, rtol=0)


def test_labels_name_the_classes(tmp_path):
    names = [f"kind of fish {number}" for number in range(10)]
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(names) + "\n")
    checkpoint = save_original(tmp_path / "probe.pth", original_weights("probe"))

    folder = convert(checkpoint, tmp_path / "out", "--labels", labels)

    config = AutoModelForImageClassification.from_pretrained(folder).config
    assert config.id2label == dict(enumerate(names))
    assert config.label2id["kind of fish 3"] == 3


def test_says_what_went_where_and_what_to_type_next(tmp_path, capsys):
    weights = original_weights() | {"projection_head.0.weight": torch.zeros(4, 64)}

    convert(save_original(tmp_path / "mage.pth", weights), tmp_path / "out")

    said = capsys.readouterr().out
    assert "mage.pth: MAGE-C of another size" in said
    assert "vqgan.*" in said
    assert "Left out, the projection head of MAGE-C: projection_head.0.weight." in said
    assert "Left out, training state: args, epoch, optimizer, scaler." in said
    assert "patch_embed.proj.weight" in said
    assert f'MagePipeline.from_pretrained("{tmp_path / "out"}")' in said


@pytest.mark.slow
def test_round_trip_is_exact_but_for_folded_shortcuts(tmp_path, capsys):
    weights = original_weights()
    folder = convert(save_original(tmp_path / "mage.pth", weights), tmp_path / "out")

    main([str(folder), str(tmp_path / "back.pth"), "--to_original"])

    assert "241 tensors" in capsys.readouterr().out
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    assert {name: weight.shape for name, weight in back.items()} == {n: w.shape for n, w in weights.items()}
    unread = ("cls_token", "pos_embed", "patch_embed", "mask_token", "decoder_pos_embed", "decoder_pred")
    folded = {name.removesuffix("nin_shortcut.weight") for name in weights if "nin_shortcut" in name}
    for name, weight in weights.items():
        is_folded = any(name.startswith(block) for block in folded) and ("conv2" in name or "nin_" in name)
        if not is_folded and (not name.startswith(unread) or name == "decoder_pos_embed_learned"):
            assert torch.equal(back[name], weight), name
    again = convert(save_original(tmp_path / "again.pth", back), tmp_path / "again")
    first, second = (load_file(place / "model.safetensors") for place in (folder, again))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", ["classifier", "probe"])
def test_classifiers_go_back_too(kind, tmp_path):
    weights = original_weights(kind)
    folder = convert(save_original(tmp_path / "classifier.pth", weights), tmp_path / "out")

    main([str(folder), str(tmp_path / "back.pth"), "--to_original"])

    back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights if name.startswith(("head", "blocks")))


# What people have on disk instead of a checkpoint of MAGE; each must say so, with exit code 1 and no output.


class _Malicious:
    """Unpickled, it would leave a file behind."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def _malicious(path: Path):
    torch.save({"model": original_weights(), "args": _Malicious(path.with_suffix(".trace"))}, path)


def _malicious_without_pytorch(path: Path):
    """Twice, so that the second import refers back to the strings of the first."""
    both = [_Malicious(path.with_suffix(suffix)) for suffix in (".trace", ".trace2")]
    path.write_bytes(pickle.dumps({"model": both}))


def _truncated(path: Path):
    whole = save_original(path, original_weights(tokenizer=False)).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def _truncated_old_format(path: Path):
    save_original(path, original_weights(tokenizer=False), _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def _mae(path: Path):
    names = ("cls_token", "pos_embed", "mask_token", "decoder_pos_embed")
    blocks = {"patch_embed.proj.weight": torch.zeros(8, 3, 16, 16), "decoder_pred.weight": torch.zeros(768, 8)}
    torch.save({"model": {**{name: torch.zeros(1, 1, 8) for name in names}, **blocks}}, path)


def _maskgit(path: Path):
    """A Flax checkpoint: a msgpack map of one entry, whose key is a string."""
    path.write_bytes(b"\x81\xa6params\x81\xa7Embed_0\x80")


def _maskgit_in_pytorch(path: Path):
    weight = torch.zeros(8, 8)
    torch.save({"transformer_layers.0.attention.query.weight": weight, "mlm_layer.mlm_dense.weight": weight}, path)


def _taming_vqgan(path: Path):
    torch.save({"state_dict": {**TINY.tokenizer_weights, "encoder.mid.attn_1.q.weight": torch.zeros(8)}}, path)


def _wrong_shapes(path: Path):
    weights = original_weights()
    weights["blocks.1.mlp.fc2.weight"] = torch.zeros(64, 250)
    weights["blocks.1.attn.extra.weight"] = torch.zeros(3)
    del weights["decoder_norm.bias"]
    save_original(path, weights)


def _of_another_codebook(path: Path):
    weights = original_weights() | {"vqgan.quantize.embedding.weight": torch.zeros(128, 32)}
    save_original(path, weights)


BAD_FILES = {
    "malicious": (_malicious, ["asks for more than tensors", f"{os.name}.mkdir", "nothing of it was run"]),
    "malicious, without PyTorch": (_malicious_without_pytorch, [f"{os.name}.mkdir", "nothing of it was run"]),
    "truncated": (_truncated, ["truncated", "Download it again"]),
    "truncated, old format": (_truncated_old_format, ["damaged", "Download it again"]),
    "empty": (lambda path: path.touch(), ["is empty"]),
    "HTML": (lambda path: path.write_text("\n<!DOCTYPE html><html>Virus scan"), ["an HTML page", "browser"]),
    "HTML with a mark": (lambda path: path.write_text("\ufeff<html>", "utf-8"), ["an HTML page"]),
    "Git LFS": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1"), ["git lfs pull"]),
    "text": (lambda path: path.write_text("not found"), ["not a checkpoint of PyTorch", "not found"]),
    "safetensors": (lambda path: path.write_bytes(b"\x02" + b"\0" * 7 + b"{}" + b"\0" * 9), ["safetensors file"]),
    "folder": (lambda path: path.mkdir(), ["is a folder", "--to_original"]),
    "nothing": (lambda path: None, ["There is no file"]),
    "a list": (lambda path: torch.save([1, 2], path), ["holds a list, not the weights"]),
    "no weights": (lambda path: torch.save({"epoch": 3}, path), ["holds epoch, which are not named tensors"]),
    "numbered": (lambda path: torch.save({0: torch.zeros(2)}, path), ["holds 0, which are not named tensors"]),
    "one byte": (lambda path: path.write_bytes(b"\x85"), ["not a checkpoint of PyTorch"]),
    "no pickle": (lambda path: path.write_bytes(b"\x80\x02" + b"\xff" * 9), ["damaged"]),
    "MAE": (_mae, ["a checkpoint of MAE, not of MAGE", "mask_token"]),
    "MaskGIT": (_maskgit, ["a Flax checkpoint (msgpack), as MaskGIT's are"]),
    "MaskGIT in PyTorch": (_maskgit_in_pytorch, ["a checkpoint of MaskGIT, in a PyTorch port"]),
    "VQGAN with attention": (_taming_vqgan, ["a VQGAN with attention"]),
    "unknown": (
        lambda path: torch.save({"layer.weight": torch.zeros(2)}, path),
        ["not a checkpoint of MAGE: it holds layer"],
    ),
    "another codebook": (_of_another_codebook, ["the tokenizer of `vq_config` has 128 codes"]),
    "wrong shapes": (
        _wrong_shapes,
        [
            "decoder_norm.bias is missing",
            "blocks.1.attn.extra.weight is unexpected",
            "blocks.1.mlp.fc2.weight has shape (64, 250) instead of (64, 256)",
        ],
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file_says_what_it_is(name, tmp_path):
    write, messages = BAD_FILES[name]
    write(tmp_path / "file.pth")

    with pytest.raises(SystemExit) as failure:
        convert(tmp_path / "file.pth", tmp_path / "out")

    assert str(tmp_path / "file.pth") in failure.value.code
    for message in messages:
        assert message in failure.value.code
    left = {path.name for path in tmp_path.iterdir()}
    assert left <= {"file.pth"}


@pytest.mark.slow
def test_command_line_ends_with_a_message_and_exit_code_1(tmp_path):
    page = tmp_path / "mage-vitb-1600.pth"
    page.write_text("<html><title>Google Drive - Virus scan warning</title></html>")
    command = [sys.executable, "-m", "transformers_mage.convert_original_checkpoint", page, tmp_path / "out"]

    result = subprocess.run(command, capture_output=True, text=True, check=False)

    assert result.returncode == 1
    assert "is an HTML page, not a checkpoint" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_tokenizers_that_disagree_are_refused(tmp_path):
    checkpoint = save_original(tmp_path / "mage.pth", original_weights())
    other = {"decoder.conv_out.bias": torch.ones(3)}
    tokenizer = save_tokenizer(tmp_path / "vqgan.ckpt", **other)

    with pytest.raises(SystemExit, match=r"another tokenizer inside.*decoder\.conv_out\.bias"):
        convert(checkpoint, tmp_path / "out", "--tokenizer", tokenizer)

    assert not (tmp_path / "out").exists()


def test_what_is_there_is_never_overwritten(tmp_path):
    checkpoint = save_original(tmp_path / "mage.pth", original_weights())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()

    with pytest.raises(SystemExit, match="exists already"):
        convert(checkpoint, tmp_path / "out")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_interrupted_while_writing_leaves_nothing(error, tmp_path, monkeypatch):
    def interrupt(*args):
        raise error

    checkpoint = save_original(tmp_path / "mage.pth", original_weights())
    monkeypatch.setattr(convert_original_checkpoint, "read_model", interrupt)

    with pytest.raises(SystemExit, match="Nothing was written"):
        convert(checkpoint, tmp_path / "out")

    assert [path.name for path in tmp_path.iterdir()] == ["mage.pth"]


# The command as it is, that waits for its end where it would load back what it wrote.
INTERRUPTED = """
import runpy, time
from transformers_mage.conversion import folder
folder.read_model = lambda *args: [print("written", flush=True), time.sleep(600)]
runpy.run_module("transformers_mage.convert_original_checkpoint", run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGTERM, signal.SIGKILL])
def test_killed_command_leaves_no_folder(kill, tmp_path):
    checkpoint = save_original(tmp_path / "mage.pth", original_weights())
    command = [sys.executable, "-c", INTERRUPTED, checkpoint, tmp_path / "out", "--num_attention_heads", "4"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "written\n"

    process.send_signal(kill)
    _, said = process.communicate()

    assert not (tmp_path / "out").exists()
    if kill == signal.SIGTERM:
        assert process.returncode == 1
        assert "Interrupted. Nothing was written" in said
        assert [path.name for path in tmp_path.iterdir()] == ["mage.pth"]


@pytest.mark.slow
def test_folder_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    def spoilt(folder, model_class):
        model = conversion_folder.read_model(folder, model_class)
        model.mage.layers[1].mlp.fc1.bias.data[3] += 1e-3
        return model

    checkpoint = save_original(tmp_path / "mage.pth", original_weights())
    monkeypatch.setattr(convert_original_checkpoint, "read_model", spoilt)

    with pytest.raises(SystemExit, match="computes other features"):
        convert(checkpoint, tmp_path / "out")

    assert not (tmp_path / "out").exists()


def test_heads_that_shapes_do_not_tell_are_asked_for(tmp_path):
    weights = {"token_emb.word_embeddings.weight": torch.zeros(1065, 48), "mlm_layer.bias": torch.zeros(1, 1, 1065)}
    checkpoint = save_original(tmp_path / "mage.pth", weights)

    with pytest.raises(SystemExit, match="--num_attention_heads"):
        main([str(checkpoint), str(tmp_path / "out")])


def test_sizes_are_read_off_the_shapes(tmp_path):
    folder = convert(save_original(tmp_path / "mage.pth", original_weights()), tmp_path / "out")

    config = MageConfig.from_pretrained(folder)
    assert config.to_diff_dict().keys() - TINY.config().to_diff_dict().keys() == {"architectures", "dtype"}
    assert TINY.config().to_diff_dict().items() <= config.to_diff_dict().items()
