"""scripts/generate.py: image i depends on the seed and i alone, whatever happens to the run."""

import errno
import importlib.util
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch

from tests.in_process import ROOT
from transformers_mage import MageConfig, MageForMaskedImageModeling, MagePipeline, MageScheduler
from transformers_mage.sampling import ClassPlan, ImageFolderWriter, Sampler, generator_of, write_manifest

from ..conftest import SMALL_VQ_CONFIG


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "scripts" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    config = MageConfig(
        codebook_size=16, image_size=16, patch_size=4, num_classes=3, vq_config=SMALL_VQ_CONFIG, **sizes
    )
    scheduler = MageScheduler(config.mask_token_id, num_inference_steps=3)
    folder = tmp_path_factory.mktemp("model")
    MagePipeline(MageForMaskedImageModeling(config), scheduler).save_pretrained(folder)
    return folder


@pytest.fixture
def flags(model_folder: Path) -> list[str]:
    return ["--pretrained_model_name_or_path", str(model_folder), "--num_images", "20", "--batch_size", "8"]


def images_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "images").iterdir()}


def run_as(generate: ModuleType, argv: list[str], process_index: int, num_processes: int):
    """What one process of several writes, without the others."""
    arguments = generate.parse_arguments(generate.GenerationArguments, "", argv)
    pipe = generate.load_pipeline(arguments, torch.device("cpu"))
    sampler = Sampler(pipe, ClassPlan(pipe.model.config, None, arguments.num_images))
    writer = generate.create_writer(arguments, pipe)
    writer.prepare()
    state = SimpleNamespace(process_index=process_index, num_processes=num_processes, is_local_main_process=False)
    made = sampler.write_missing(writer, arguments.batch_size, state)
    writer.close()
    return made


def test_samples_are_those_of_the_pipeline(generate, flags, model_folder, tmp_path):
    generate.main([*flags, "--output_dir", str(tmp_path), "--guidance_scale", "2"])
    lines = (tmp_path / "images" / "metadata.jsonl").read_text().splitlines()
    assert json.loads(lines[7]) == {"file_name": "000000007.png", "label": 1}
    pipe = MagePipeline.from_pretrained(model_folder)
    pipe.set_progress_bar_config(disable=True)
    again = pipe(class_labels=1, guidance_scale=2.0, generator=[generator_of(0, 7)]).images[0]
    difference = np.asarray(again, dtype=int) - np.asarray(PIL.Image.open(tmp_path / "images" / "000000007.png"))
    assert np.abs(difference).max() <= 1
    assert PIL.Image.open(tmp_path / "grid.png").size == (5 * 66 - 2, 4 * 66 - 2)  # four times as large


def test_ways_to_save_work_are_those_of_the_pipeline(generate, flags, model_folder, tmp_path):
    saving = ["--encoder_keep_share", "0.5", "--full_steps", "2", "--guidance_interval", "0.5", "1"]
    generate.main([*flags, *saving, "--guidance_scale", "2", "--output_dir", str(tmp_path)])
    pipe = MagePipeline.from_pretrained(model_folder, encoder_keep_share=0.5, full_steps=2)
    pipe.set_progress_bar_config(disable=True)
    guidance = {"guidance_scale": 2.0, "guidance_interval": (0.5, 1.0)}
    again = pipe(class_labels=1, generator=[generator_of(0, 7)], **guidance).images[0]
    difference = np.asarray(again, dtype=int) - np.asarray(PIL.Image.open(tmp_path / "images" / "000000007.png"))
    assert np.abs(difference).max() <= 1
    with pytest.raises(SystemExit, match="full_steps was 2 there and is 1 now"):
        generate.main([*flags, "--guidance_scale", "2", "--output_dir", str(tmp_path)])


def test_guidance_is_the_models_own_unless_it_is_said(generate, flags, model_folder, tmp_path):
    guided = MagePipeline.from_pretrained(model_folder, guidance_scale=2.0, guidance_interval=(0.5, 1.0))
    guided.save_pretrained(tmp_path / "guided")
    generate.main(
        [*flags, "--pretrained_model_name_or_path", str(tmp_path / "guided"), "--output_dir", str(tmp_path / "own")]
    )
    said = ["--guidance_scale", "2", "--guidance_interval", "0.5", "1"]
    generate.main([*flags, *said, "--output_dir", str(tmp_path / "said")])
    generate.main([*flags, "--output_dir", str(tmp_path / "none")])

    assert images_of(tmp_path / "own") == images_of(tmp_path / "said") != images_of(tmp_path / "none")
    manifests = [json.loads((tmp_path / name / "generation.json").read_text()) for name in ("own", "said")]
    assert manifests[0] == manifests[1]


def test_a_schedule_of_the_noise_is_part_of_the_run(generate, flags, tmp_path):
    flags = [*flags, "--output_dir", str(tmp_path)]
    generate.main([*flags, "--temperature_schedule", "constant"])
    with pytest.raises(SystemExit, match="temperature_schedule was 'constant' there and is 'linear' now"):
        generate.main(flags)


@pytest.mark.parametrize(("is_fast", "chosen"), [(True, "bfloat16"), (False, "float32")])
def test_automatic_precision_is_kept_as_what_was_chosen(is_fast, chosen, generate, flags, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "is_bfloat16_fast_for_all", lambda: is_fast)
    generate.main([*flags, "--dtype", "auto", "--output_dir", str(tmp_path / "auto")])
    generate.main([*flags, "--dtype", chosen, "--output_dir", str(tmp_path / "said")])
    assert images_of(tmp_path / "auto") == images_of(tmp_path / "said")
    generate.main([*flags, "--dtype", chosen, "--output_dir", str(tmp_path / "auto")])  # the run that is resumed


@pytest.mark.parametrize("saving", [[], ["--encoder_keep_share", "0.5", "--full_steps", "2"]])
def test_files_do_not_depend_on_the_number_of_processes(generate, flags, tmp_path, saving: list[str]):
    flags = [*flags, *saving]
    generate.main([*flags, "--output_dir", str(tmp_path / "one")])
    shared = [*flags, "--output_dir", str(tmp_path / "two")]
    assert [run_as(generate, shared, process_index=index, num_processes=2) for index in (1, 0)] == [8, 12]
    whole = images_of(tmp_path / "one")
    del whole["metadata.jsonl"]  # written once all processes are done
    assert images_of(tmp_path / "two") == whole


def test_files_hardly_depend_on_the_batch_size(generate, flags, tmp_path):
    generate.main([*flags, "--output_dir", str(tmp_path / "eight")])
    generate.main([*flags, "--output_dir", str(tmp_path / "seven"), "--batch_size", "7"])
    eight, seven = images_of(tmp_path / "eight"), images_of(tmp_path / "seven")
    assert sum(eight[name] == seven[name] for name in eight) >= 20  # of 21, the classes among them


@pytest.mark.parametrize("output_format", ["webp", "tar", "npz"])
def test_a_run_that_ran_out_of_disk_is_resumed(generate, flags, tmp_path, monkeypatch, output_format: str):
    flags = [*flags, "--output_format", output_format, "--shard_size", "10"]
    generate.main([*flags, "--output_dir", str(tmp_path / "whole")])
    made = []
    draw = Sampler.__call__

    def make_images(sampler, indices):
        if len(made) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        made.append(indices)
        return draw(sampler, indices)

    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "__call__", make_images)
        with pytest.raises(SystemExit, match=r"no room left in .*run the same command again"):
            generate.main([*flags, "--output_dir", str(tmp_path / "resumed")])
    generate.main([*flags, "--output_dir", str(tmp_path / "resumed")])
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    names = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    assert sorted(path.relative_to(resumed) for path in resumed.rglob("*") if path.is_file()) == names
    assert all((whole / name).read_bytes() == (resumed / name).read_bytes() for name in names)


def test_nothing_is_drawn_twice(generate, flags, tmp_path, monkeypatch, capsys):
    generate.main([*flags, "--output_dir", str(tmp_path)])
    for index in (17, 18):
        (tmp_path / "images" / f"{index:09d}.png").unlink()
    drawn = []
    draw = Sampler.__call__
    monkeypatch.setattr(Sampler, "__call__", lambda *args: drawn.append(args[1]) or draw(*args))
    capsys.readouterr()
    generate.main([*flags, "--output_dir", str(tmp_path)])
    assert drawn == [list(range(16, 24))]
    assert "Resuming 20 images" in capsys.readouterr().out
    assert len(images_of(tmp_path)) == 21


def test_a_full_disk_while_writing_leaves_no_half_file(generate, flags, tmp_path, monkeypatch):
    def refuse(self, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse, raising=True)
    writer = ImageFolderWriter(tmp_path, 4, 4)
    with pytest.raises(OSError, match="No space left"):
        writer.write([0], np.zeros((1, 4, 4, 3), np.uint8), None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--seed", "1"], "holds other samples .seed was 0 there and is 1 now"),
        (["--num_images", "21"], "num_images was 20 there and is 21 now"),
        (["--num_inference_steps", "2"], "num_inference_steps was 3 there and is 2 now"),
        (["--unmasking_order", "halton"], "unmasking_order was 'confidence' there and is 'halton' now"),
        (["--class_labels", "none"], "class_labels was 'balanced' there and is None now"),
    ],
)
def test_a_folder_of_another_run_is_refused(generate, flags, tmp_path, more: list[str], message: str):
    write_manifest(tmp_path, manifest(generate, flags))
    with pytest.raises(SystemExit, match=message):
        generate.main([*flags, "--output_dir", str(tmp_path), *more])


def manifest(generate: ModuleType, argv: list[str]) -> dict:
    arguments = generate.parse_arguments(generate.GenerationArguments, "", argv)
    pipe = generate.load_pipeline(arguments, torch.device("cpu"))
    classes = ClassPlan(pipe.model.config, arguments.class_labels, arguments.num_images)
    return generate.describe(arguments, pipe, classes)


def test_what_decides_nothing_may_change(generate, flags, tmp_path):
    explicit = [*flags, "--batch_size", "3", "--num_inference_steps", "3", "--temperature", "6.0"]
    assert manifest(generate, explicit) == manifest(generate, flags)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--class_labels", "no_such_file.txt"], "`balanced`, `none` or a file"),
        (["--pretrained_model_name_or_path", "/no/such/folder"], "/no/such/folder cannot be loaded"),
    ],
)
def test_mistakes_end_with_a_message_and_no_folder(generate, flags, tmp_path, more: list[str], message: str):
    with pytest.raises(SystemExit, match=message):
        generate.main([*flags, "--output_dir", str(tmp_path / "samples"), *more])
    assert not (tmp_path / "samples").exists()


def test_wrong_flags_are_refused(generate, flags, capsys):
    refused = {
        "num_images": ("0", "at least 1, got 0"),
        "seed": ("-1", "at least 0, got -1"),
        "guidance_scale": ("-1", "at least 0, got -1"),
        "top_p": ("2", "at most 1, got 2"),
        "encoder_keep_share": ("0", "more than 0 and at most 1, got 0.0"),
        "full_steps": ("0", "at least 1, got 0"),
        "guidance_interval": ("0.5", "two shares of the steps, got [0.5]"),
    }
    for name, (value, message) in refused.items():
        with pytest.raises(SystemExit):
            generate.main([*flags, f"--{name}", value])
        assert message in capsys.readouterr().err
