"""Files that run code, are damaged or are no images, for every script that reads them: nothing of them is run."""

import dataclasses
import json
import pickle
import random
import shutil
import subprocess
import typing
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as PilImage

from tests.in_process import MODEL_FLAGS, load_module, load_script
from tests.original_files import original_weights, save_original
from transformers_mage import MageForMaskedImageModeling, MagePipeline, MageScheduler
from transformers_mage.convert_original_checkpoint import main as convert

from .disturbing import TIMES, run_alone, said, start, wait_for_start
from .fault_damage import damage
from .table import note_answers

Script = Callable[[list[str]], None]
# What each script is told, but for its output.
DATA = ["--dataset_name", "DATA"]
SMALL = ["--train_batch_size", "4", "--max_train_steps", "2", "--report_to", "none"]
SCRIPTS = {
    "generate": ["--pretrained_model_name_or_path", "MODEL", "--num_images", "2", "--num_inference_steps", "2"],
    "extract_features": ["--model_name_or_path", "MODEL", *DATA],
    "finetune": ["--model_name_or_path", "MODEL", *DATA, *SMALL, "--validation_split", "test"],
    "linear_probe": ["--model_name_or_path", "MODEL", *DATA, *SMALL, "--validation_split", "test"],
    "cache_tokens": ["--tokenizer_name_or_path", "MODEL", *DATA, "--image_size", "8", "--views", "1"],
    "train_mage": [*MODEL_FLAGS, "--tokenizer_name_or_path", "MODEL", *DATA, "--max_train_steps", "2"],
    "train_vqgan": ["--pretrained_model_name_or_path", "MODEL", *DATA, *SMALL, "--image_size", "8"],
}
READING_IMAGES = [name for name in SCRIPTS if name != "generate"]
WEIGHTS = ["pytorch_model.bin", "model.pt", "diffusion_pytorch_model.bin", "vqvae.ckpt", "training_args.bin"]


class Trap:
    """A pickle of it makes a file where it is read."""

    def __init__(self, sign: Path):
        self.sign = sign

    def __reduce__(self):
        return Path.touch, (self.sign,)


@pytest.fixture
def model(mage_folder: Path, tmp_path: Path) -> Path:
    loaded = MageForMaskedImageModeling.from_pretrained(mage_folder)
    pipe = MagePipeline(loaded, MageScheduler(loaded.config.mask_token_id))
    pipe.save_pretrained(tmp_path / "model")
    shutil.copy(mage_folder / "preprocessor_config.json", tmp_path / "model")
    return tmp_path / "model"


def end_of(name: str, model: Path, data: Path, folder: Path, more: list[str] | None = None) -> tuple[int, str]:
    """Exit status and last line of a script, which left no traceback and no process."""
    flags = [{"MODEL": model, "DATA": data}.get(word, word) for word in SCRIPTS[name]]
    status = run_alone(lambda folder: load_script(name)([*flags, "--output_dir", folder, *(more or [])]), folder)
    return status, (said(folder).strip().splitlines() or [""])[-1]


@pytest.mark.parametrize("name", SCRIPTS)
def test_pickles_are_not_run(model: Path, colours: Path, tmp_path: Path, name: str):
    """In the weights' place, in formats of others, and beside the weights."""
    answers = Counter()
    for file in WEIGHTS:
        for place in ("instead of", "beside"):
            folder = Path(shutil.copytree(model, tmp_path / f"{file}-{place}"))
            if place == "instead of":
                (folder / "model.safetensors").unlink()
            torch.save({"weight": Trap(tmp_path / "sign")}, folder / file)
            status, line = end_of(name, folder, colours, tmp_path / f"out-{file}-{place}")
            assert not (tmp_path / "sign").exists(), f"{name} ran {file}"
            assert (status == 0) == (place == "beside"), line
            answers["refused by name" if status else "accepted, not run"] += 1
    note_answers(f"pickles for {name}", answers)


@pytest.mark.parametrize("name", SCRIPTS)
def test_code_in_a_folder_is_not_run(model: Path, colours: Path, tmp_path: Path, name: str):
    (model / "trap.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'sign')!r}).touch()\nclass A: pass\n"
    )
    for file in ("config.json", "model_index.json", "preprocessor_config.json"):
        values = json.loads((model / file).read_text())
        autos = ("AutoConfig", "AutoModel", "AutoModelForMaskedImageModeling", "AutoImageProcessor")
        values["auto_map"] = dict.fromkeys(autos, "trap.A")
        (model / file).write_text(json.dumps(values))
    end_of(name, model, colours, tmp_path / "out")
    assert not (tmp_path / "sign").exists()


@pytest.mark.parametrize("name", SCRIPTS)
def test_damaged_models(model: Path, colours: Path, tmp_path: Path, name: str):
    """Whatever is damaged, a script ends in words, or does not need what is damaged."""
    draw, kinds, answers = random.Random(0), Counter(), Counter()
    for number in range(TIMES):
        folder = Path(shutil.copytree(model, tmp_path / f"model-{number}"))
        file = draw.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
        kinds[damage(file, draw)] += 1
        status, line = end_of(name, folder, colours, tmp_path / f"out-{number}")
        answers["accepted" if status == 0 else "refused by name"] += 1
        assert status == 0 or line, "it says nothing"
        shutil.rmtree(folder)
    note_answers(f"damaged models for {name}", answers)


def png_of(width: int, height: int) -> bytes:
    """The head of a picture that claims a size."""
    content = bytearray(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    body = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    content[12:] = body + zlib.crc32(body).to_bytes(4, "big")
    packed = zlib.compress(bytes(1000))
    data = b"IDAT" + packed
    return bytes(content) + len(packed).to_bytes(4, "big") + data + zlib.crc32(data).to_bytes(4, "big")


BROKEN = {
    "empty": b"",
    "text": b"no image at all",
    "a bomb": png_of(60_000, 60_000),
    "large and cut": png_of(9_000, 9_000),
    "a pickle": pickle.dumps([1, 2]),
}


@pytest.fixture
def broken_images(colours: Path, tmp_path: Path) -> Path:
    """24 images and five broken ones among them; for validation, 8."""
    random_pixels = np.random.default_rng(0).integers(0, 255, (24, 8, 8, 3), dtype=np.uint8)
    for split, count in (("train", 24), ("test", 8)):
        for i in range(count):
            place = tmp_path / "images" / split / ("red" if i % 2 else "blue")
            place.mkdir(parents=True, exist_ok=True)
            PilImage.fromarray(random_pixels[i]).save(place / f"{i:02}.png")
        for i, content in enumerate(BROKEN.values()):
            (tmp_path / "images" / split / "red" / f"1{i}-broken.png").write_bytes(content)
    return tmp_path / "images"


@pytest.mark.parametrize(
    "more", [[], ["--in_memory_limit", "0"], ["--streaming"]], ids=["memory", "decoded", "streamed"]
)
@pytest.mark.parametrize("name", READING_IMAGES)
def test_broken_images(model: Path, broken_images: Path, tmp_path: Path, name: str, more: list[str]):
    knows = {"--in_memory_limit": ("finetune", "linear_probe", "train_mage", "train_vqgan")}
    if more and name not in knows.get(more[0], ("train_mage", "train_vqgan", "cache_tokens")):
        pytest.skip("it has no such flag")
    share = [] if name == "extract_features" else ["--max_skipped_share", "0.9"]
    assert end_of(name, model, broken_images, tmp_path / "out", [*more, *share])[0] == 0, said(tmp_path / "out")


@pytest.mark.parametrize("name", ["finetune", "linear_probe", "train_mage", "cache_tokens", "extract_features"])
@pytest.mark.parametrize("label", [7, -3, None])
def test_labels_out_of_range(model: Path, colours: Path, tmp_path: Path, name: str, label: int | None):
    images = [PilImage.fromarray(np.full((8, 8, 3), 9 * i, np.uint8)) for i in range(16)]
    labels = [0, 1] * 8
    dataset = Dataset.from_dict(
        {"image": images, "label": labels}, features=Features(image=Image(), label=ClassLabel(2))
    )
    storage = dataset.data.column("label").to_pylist()
    storage[5] = label
    table = dataset.data.table.set_column(1, "label", pa.array(storage, pa.int64()))
    damaged = Dataset(table, info=dataset.info)
    DatasetDict(train=damaged, test=damaged).save_to_disk(tmp_path / "data")
    status, _ = end_of(name, model, tmp_path / "data", tmp_path / "out", conditional(name))
    assert status in (0, 1), said(tmp_path / "out")


def conditional(name: str) -> list[str]:
    return ["--class_conditional"] if name == "train_mage" else []


@pytest.fixture
def read_only(tmp_path: Path) -> Path:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting takes more rights")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("name", SCRIPTS)
def test_read_only_outputs(model: Path, colours: Path, tmp_path: Path, read_only: Path, name: str):
    flags = [{"MODEL": model, "DATA": colours}.get(word, word) for word in SCRIPTS[name]]
    out = tmp_path / "out"
    assert run_alone(lambda folder: load_script(name)([*flags, "--output_dir", read_only / "out"]), out) == 1
    assert "Read-only file system" in said(out).splitlines()[-1]


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting takes more rights")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("name", SCRIPTS)
def test_full_disks(model: Path, colours: Path, tmp_path: Path, small_disk: Path, name: str):
    """They say so; after room is made, the same command does all of it."""
    flags = [{"MODEL": model, "DATA": colours}.get(word, word) for word in SCRIPTS[name]]
    more = (
        ["--resume_from_checkpoint", "latest"]
        if name in ("finetune", "linear_probe", "train_mage", "train_vqgan")
        else []
    )

    def run(folder: Path):
        load_script(name)([*flags, "--output_dir", small_disk / "out", *more])

    assert run_alone(run, tmp_path / "out") == 1, said(tmp_path / "out")
    assert "room" in said(tmp_path / "out") or "No space left" in said(tmp_path / "out")
    subprocess.run(["mount", "-o", "remount,size=50m", str(small_disk)], check=True)
    assert run_alone(run, tmp_path / "out") == 0, said(tmp_path / "out")


@pytest.mark.parametrize("name", SCRIPTS)
def test_two_at_once(model: Path, colours: Path, tmp_path: Path, name: str):
    """One of them has the folder, and ends well; the other says so, or finds all done."""
    flags = [{"MODEL": model, "DATA": colours}.get(word, word) for word in SCRIPTS[name]]
    script = load_script(name)
    children = []
    for number in range(2):
        place = tmp_path / f"log-{number}" / "out"
        children.append((start(lambda folder: script([*flags, "--output_dir", tmp_path / "out"]), place), place))
    for child, place in children:
        wait_for_start(child, place)
    for child, _ in children:
        child.join(1800)
    ends = sorted(child.exitcode for child, _ in children)
    text = "".join(said(place) for _, place in children)
    assert "Traceback" not in text, text
    assert ends in ([0, 0], [0, 1]), text
    assert ends == [0, 0] or "is in use by" in text or "already" in text, text


def test_two_conversions_at_once(tmp_path: Path):
    source = save_original(tmp_path / "checkpoint.pth", original_weights())
    heads = ["--num_attention_heads", "4", "--decoder_num_attention_heads", "4"]
    children = [
        start(lambda folder: convert([str(source), str(tmp_path / "out"), *heads]), tmp_path / f"log-{number}" / "out")
        for number in range(2)
    ]
    for child in children:
        child.join(1800)
    text = "".join(said(tmp_path / f"log-{number}" / "out") for number in range(2))
    assert "Traceback" not in text, text
    assert 0 in [child.exitcode for child in children], text


def test_links_and_paths(model: Path, colours: Path, tmp_path: Path):
    """Links are followed, `..` is a path like another, and a link to itself is an error of one line."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "linked-model").symlink_to(model)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, out in (("generate", tmp_path / "link"), ("extract_features", tmp_path / "real" / ".." / "beside")):
        assert end_of(name, tmp_path / "linked-model", colours, tmp_path / name, ["--output_dir", out])[0] == 0
    assert (tmp_path / "real" / "images").is_dir()
    assert list((tmp_path / "beside").glob("train-*"))
    for name in SCRIPTS:
        place = tmp_path / f"{name}-loop"
        status, line = end_of(name, model, colours, place, ["--output_dir", tmp_path / "loop" / "out"])
        assert status == 1, line
        status, line = end_of(name, tmp_path / "loop", colours, place)
        assert status == 1, line


def test_archives_that_are_no_checkpoints(tmp_path: Path):
    """The converter, with zip files of nothing, of a trap, and of a file with a path out of it."""
    with zipfile.ZipFile(tmp_path / "empty.pth", "w"):
        pass
    with zipfile.ZipFile(tmp_path / "trap.pth", "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Trap(tmp_path / "sign")))
        file.writestr("../outside", "x")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Trap(tmp_path / "sign")))
    answers = Counter()
    for file in ("empty.pth", "trap.pth", "plain.pth"):
        with pytest.raises(SystemExit) as caught:
            convert([str(tmp_path / file), str(tmp_path / "out")])
        assert file in str(caught.value)
        answers["refused by name"] += 1
    assert not (tmp_path / "sign").exists()
    note_answers("archives for the converter", answers)


# Changes that there is no use in trying: where things are, and what the Hub is told.
UNTRIED = {"output_dir", "push_to_hub", "hub_strategy", "hub_private_repo", "max_train_steps", "torch_compile"}


def changed(field: dataclasses.Field, hint: object) -> list[str]:
    """Another value of a flag, as words of the command line."""
    kinds = {hint, *typing.get_args(hint)}
    if field.metadata.get("choices"):
        value = next(choice for choice in field.metadata["choices"] if choice not in (field.default, "fp16"))
    elif bool in kinds:
        value = not field.default
    elif int in kinds:
        value = (field.default or 1) + 1
    elif float in kinds:
        value = (field.default or 0.5) / 2
    else:
        return []
    return [f"--{field.name}", str(value)]


def test_each_flag_changed_on_resuming(train_mage: Script, image_folder: Path, tokenizer_folder: Path, tmp_path: Path):
    """It is done, or refused in words that name it."""
    flags = [*MODEL_FLAGS, "--dataset_name", image_folder, "--tokenizer_name_or_path", tokenizer_folder]
    flags += ["--checkpointing_steps", "1", "--resume_from_checkpoint", "latest"]
    run = lambda folder: train_mage([*flags, "--max_train_steps", "2", "--output_dir", folder])  # noqa: E731
    assert run_alone(run, tmp_path / "run") == 0, said(tmp_path / "run")
    arguments_class, answers = load_module("train_mage").MageArguments, Counter()
    hints = typing.get_type_hints(arguments_class)
    for field in dataclasses.fields(arguments_class):
        words = changed(field, hints[field.name]) if field.init and field.name not in UNTRIED else []
        if not words:
            continue
        folder = Path(shutil.copytree(tmp_path / "run", tmp_path / field.name))
        again = lambda folder, words=words: train_mage(  # noqa: E731
            [*flags, "--max_train_steps", "4", *words, "--output_dir", folder]
        )
        status = run_alone(again, folder)
        assert status == 0 or field.name in said(folder), said(folder)
        answers["accepted" if status == 0 else "refused by name"] += 1
    note_answers("flags changed on resuming", answers)
    assert sum(answers.values()) > 40
