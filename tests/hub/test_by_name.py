"""A name on the Hub works exactly as a folder does."""

import json
import re
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging
from huggingface_hub import constants
from transformers import AutoImageProcessor, AutoModel, AutoModelForMaskedImageModeling, ViTImageProcessorPil

from transformers_mage import MageConfig, MageForMaskedImageModeling, MagePipeline, MageScheduler
from transformers_mage.data.tokenization import load_tokenizer
from transformers_mage.files import FolderError
from transformers_mage.representation import load_classifier, load_encoder
from transformers_mage.training.conditional import load_for_training

from .conftest import CARDS
from .server import HubServer


def weights(pipe: MagePipeline) -> torch.Tensor:
    return torch.cat([weight.flatten() for weight in pipe.model.state_dict().values()])


def tokens(pipe: MagePipeline) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    return pipe(generator=torch.Generator().manual_seed(0), output_type="latent").images


@pytest.mark.parametrize("door", [MagePipeline, DiffusionPipeline])
def test_pipeline(hub: HubServer, saved: Path, small_pipeline: MagePipeline, door: type):
    hub.hub.create("org/model", saved)

    pipe = door.from_pretrained("org/model")

    assert isinstance(pipe, MagePipeline)
    assert torch.equal(tokens(pipe), tokens(small_pipeline))
    assert pipe.config._name_or_path == "org/model"


@pytest.mark.parametrize("door", [MagePipeline, DiffusionPipeline])
def test_how_a_pipeline_works_best_comes_with_it(
    hub: HubServer, small_pipeline: MagePipeline, tmp_path: Path, door: type
):
    own = {
        "encoder_keep_share": 0.5,
        "full_steps": [0, 2],
        "guidance_schedule": "cosine",
        "guidance_interval": [0.5, 1.0],
    }
    MagePipeline(small_pipeline.model, small_pipeline.scheduler, **own).save_pretrained(tmp_path / "model")
    hub.hub.create("org/model", tmp_path / "model")

    pipe = door.from_pretrained("org/model")

    assert {name: pipe.config[name] for name in own} == own


@pytest.mark.parametrize(
    "own",
    [
        {"encoder_keep_share": 1, "full_steps": 2},
        {"full_steps": (0, 2), "guidance_scale": 0},
        {"guidance_scale": 0.0, "guidance_interval": (0, 0.5)},
        {"guidance_interval": [0, 1]},
    ],
)
def test_diffusers_warns_of_no_way_to_say_it(saved: Path, own: dict, monkeypatch, caplog):
    monkeypatch.setattr(logging.get_logger("diffusers"), "propagate", True)

    pipe = MagePipeline.from_pretrained(saved, **own)

    assert {name: pipe.config[name] for name in own} == {name: pytest.approx(value) for name, value in own.items()}
    assert not caplog.records


@pytest.mark.parametrize("door", [MagePipeline, DiffusionPipeline])
def test_folder_of_an_older_card(hub: HubServer, door: type):
    """It names the scheduler's file rather than the package."""
    index = json.loads((CARDS / "mage-digits" / "model_index.json").read_text())
    index["scheduler"] = ["transformers_mage.scheduling_mage", "MageScheduler"]
    repository = hub.hub.create("org/model", CARDS / "mage-digits")
    repository.files["model_index.json"] = json.dumps(index).encode()

    assert isinstance(door.from_pretrained("org/model").scheduler, MageScheduler)


def test_diffusers_finds_a_folder(saved: Path):
    assert isinstance(DiffusionPipeline.from_pretrained(saved), MagePipeline)


def test_models_and_processor(
    hub: HubServer, small_pipeline: MagePipeline, tmp_path: Path, pixel_values: torch.Tensor
):
    small_pipeline.image_processor = ViTImageProcessorPil(size={"height": 32, "width": 32}, do_normalize=False)
    small_pipeline.save_pretrained(tmp_path / "saved")
    hub.hub.create("org/model", tmp_path / "saved")

    model = AutoModelForMaskedImageModeling.from_pretrained("org/model")
    encoder = AutoModel.from_pretrained("org/model")
    processor = AutoImageProcessor.from_pretrained("org/model", backend="pil")

    assert torch.equal(model(pixel_values).logits, small_pipeline.model(pixel_values).logits)
    assert torch.equal(encoder(pixel_values).pooler_output, small_pipeline.model.mage(pixel_values).pooler_output)
    assert processor.size == {"height": 32, "width": 32}
    assert MagePipeline.from_pretrained("org/model").image_processor is not None


def test_revisions(hub: HubServer, saved: Path, small_pipeline: MagePipeline, tmp_path: Path):
    repository = hub.hub.create("org/model", saved)
    first = repository.references["main"]
    before = weights(small_pipeline).clone()
    with torch.no_grad():
        small_pipeline.model.head.bias += 1
    small_pipeline.save_pretrained(tmp_path / "later")
    later = {path.name: path.read_bytes() for path in (tmp_path / "later").glob("*.*")}
    repository.commit("experiment", {**repository.files, **later}, "later", first)

    assert torch.equal(weights(MagePipeline.from_pretrained("org/model")), before)
    assert torch.equal(weights(MagePipeline.from_pretrained("org/model", revision=first)), before)
    changed = MagePipeline.from_pretrained("org/model", revision="experiment")
    assert torch.equal(weights(changed), weights(small_pipeline))


def test_private_repository_with_its_token(hub: HubServer, saved: Path):
    hub.hub.create("org/model", saved, private=True)

    assert isinstance(MagePipeline.from_pretrained("org/model", token="hf_right"), MagePipeline)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["local_files_only", "offline"])
def test_cache_without_a_network(
    hub: HubServer, saved: Path, small_pipeline: MagePipeline, tmp_path: Path, monkeypatch, how: str
):
    hub.hub.create("org/model", saved)
    folder = MagePipeline.download("org/model", cache_dir=tmp_path / "other")
    hub.requests.clear()

    if how == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    only_local = {"local_files_only": True} if how == "local_files_only" else {}
    pipe = MagePipeline.from_pretrained("org/model", cache_dir=tmp_path / "other", **only_local)

    assert torch.equal(tokens(pipe), tokens(small_pipeline))
    assert Path(folder).is_relative_to(tmp_path / "other")
    assert not hub.requests


def test_variant_and_shards(hub: HubServer, small_pipeline: MagePipeline, tmp_path: Path):
    expected = weights(small_pipeline).clone()
    small_pipeline.save_pretrained(tmp_path / "saved", max_shard_size="200KB")
    small_pipeline.to(torch.bfloat16)
    small_pipeline.save_pretrained(tmp_path / "saved", variant="bf16", max_shard_size="200KB")
    hub.hub.create("org/model", tmp_path / "saved")

    whole = MagePipeline.from_pretrained("org/model", dtype=torch.float32)
    fetched = [request for request in hub.requests if "bf16" in request]
    half = MagePipeline.from_pretrained("org/model", variant="bf16")

    assert torch.equal(weights(whole), expected)
    assert not fetched
    assert half.dtype == torch.bfloat16
    assert torch.equal(weights(half), weights(small_pipeline))
    assert torch.equal(
        weights(MagePipeline.from_pretrained(tmp_path / "saved", variant="bf16")), weights(small_pipeline)
    )
    with pytest.raises(ValueError, match="`variant=fp16`, and org/model holds none"):
        MagePipeline.from_pretrained("org/model", variant="fp16")


def test_only_what_a_pipeline_needs_is_fetched(hub: HubServer, saved: Path):
    hub.hub.create("org/model", saved).files["checkpoint-1/model.safetensors"] = b"much"

    MagePipeline.download("org/model")

    assert not [request for request in hub.requests if "checkpoint-1/" in request and "/resolve/" in request]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("org/nothing", {}, "neither a folder here nor a model on the Hub; if it is private, log in"),
        ("org/private", {}, "neither a folder here nor a model on the Hub; if it is private, log in"),
        ("org/nothing", {"token": "hf_right"}, "if it is private, your token may not read it"),
        ("org/model", {"token": "hf_wrong"}, "does not know the token"),
        ("org/gated", {}, "is gated: ask for access at http://"),
        ("org/model", {"revision": "nowhere"}, "has no revision 'nowhere'"),
        ("org/model", {"local_files_only": True}, "neither a folder here nor in the cache"),
        ("org/weights", {}, "holds no pipeline: it has no model_index.json"),
        ("/no/such/folder", {}, "There is no folder /no/such/folder"),
        ("not a name", {}, "There is no folder not a name"),
    ],
)
def test_what_cannot_be_loaded_is_told_in_a_line(
    hub: HubServer, saved: Path, name: str, arguments: dict, message: str
):
    hub.hub.create("org/model", saved)
    hub.hub.create("org/private", saved, private=True)
    hub.hub.create("org/gated", saved, gated=True)
    hub.hub.create("org/weights", {"config.json": b"{}"})

    with pytest.raises(OSError, match=re.escape(message)) as caught:
        MagePipeline.from_pretrained(name, **arguments)

    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_network(hub: HubServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")

    with pytest.raises(OSError, match="and the Hub cannot be reached") as caught:
        MagePipeline.from_pretrained("org/model")

    assert "\n" not in str(caught.value)


def test_a_download_that_is_cut_is_completed(hub: HubServer, saved: Path, small_pipeline: MagePipeline, monkeypatch):
    hub.hub.create("org/model", saved)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.cut(r"GET .*/model\.safetensors", after=1000)

    assert torch.equal(tokens(MagePipeline.from_pretrained("org/model")), tokens(small_pipeline))


def test_half_a_download(hub: HubServer, saved: Path, monkeypatch: pytest.MonkeyPatch):
    hub.hub.create("org/model", saved)
    MagePipeline.download("org/model")
    cached = next((Path(constants.HF_HUB_CACHE)).rglob("snapshots/*/model.safetensors"))
    cached.unlink()

    with pytest.raises(OSError, match="Only a part of org/model is in the cache"):
        MagePipeline.from_pretrained("org/model", local_files_only=True)


@pytest.mark.parametrize("place", ["folder", "name"])
def test_code_does_not_run_without_trust(hub: HubServer, saved: Path, tmp_path: Path, place: str):
    evil = f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\nclass MagePipeline: pass\n"
    for path in ("pipeline.py", "modeling_mage.py", "model/load_from_root.py", "scheduler/entry.py"):
        (saved / path).parent.mkdir(exist_ok=True)
        (saved / path).write_text(evil)
    index = {"_class_name": ["pipeline", "MagePipeline"], "model": ["load_from_root", "MageModelFromRoot"]}
    (saved / "model_index.json").write_text(json.dumps({**index, "scheduler": ["entry", "MageScheduler"]}))
    hub.hub.create("org/model", saved)
    name = str(saved) if place == "folder" else "org/model"

    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DiffusionPipeline.from_pretrained(name)
    assert isinstance(MagePipeline.from_pretrained(name), MagePipeline)
    assert not (tmp_path / "ran").exists()


def test_unknown_arguments_are_refused(hub: HubServer):
    with pytest.raises(TypeError, match="`mirror`"):
        MagePipeline.download("org/model", mirror="x")


@pytest.mark.parametrize("kind", ["model", "tokenizer", "sharded tokenizer"])
def test_tokenizer(hub: HubServer, saved: Path, small_pipeline: MagePipeline, tmp_path: Path, kind: str):
    if kind != "model":
        size = "100KB" if kind == "sharded tokenizer" else "5GB"
        small_pipeline.vqvae.save_pretrained(tmp_path / "tokenizer", max_shard_size=size)
    hub.hub.create("org/tokenizer", saved if kind == "model" else tmp_path / "tokenizer")

    tokenizer = load_tokenizer("org/tokenizer")

    assert torch.equal(tokenizer.quantize.embedding.weight, small_pipeline.vqvae.quantize.embedding.weight)


def test_there_is_no_tokenizer(hub: HubServer, small_config: MageConfig, tmp_path: Path):
    config = MageConfig(**{**small_config.to_dict(), "vq_config": None})
    MageForMaskedImageModeling(config).save_pretrained(tmp_path / "saved")

    for name in ("org/nothing", "outputs/misspelt", str(tmp_path / "saved")):
        with pytest.raises(FolderError, match=f"There is no tokenizer in {name}") as caught:
            load_tokenizer(name)
        assert "\n" not in str(caught.value)
    assert len(hub.requests) == 2


def test_encoder_classifier_and_training(hub: HubServer, saved: Path, small_pipeline: MagePipeline):
    hub.hub.create("org/model", saved)
    expected = small_pipeline.model.mage.layernorm.weight

    assert torch.equal(load_encoder("org/model").layernorm.weight, expected)
    assert load_classifier("org/model", ["a", "b"]).config.id2label == {0: "a", 1: "b"}
    assert torch.equal(load_for_training("org/model", {}).mage.layernorm.weight, expected)
    for load in (load_encoder, lambda name: load_for_training(name, {})):
        with pytest.raises(FolderError, match="neither a folder here nor a model on the Hub") as caught:
            load("org/nothing")
        assert "\n" not in str(caught.value)
