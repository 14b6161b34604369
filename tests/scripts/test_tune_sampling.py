"""Finding out how to sample a model within a budget of work."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.in_process import load_script
from transformers_mage import MageConfig, MageForMaskedImageModeling, MagePipeline, MageScheduler
from transformers_mage.benchmarking.tuning import (
    Tries,
    best_within,
    combinations,
    count_gflops,
    frontier,
    method_of,
    without_weights,
)

MODEL = ["--model_name_or_path", "a", "--references", "b"]
ROWS = [{"gflops": g, "fid": f} for g, f in ((1, 9.0), (2, 5.0), (3, 6.0), (4, 4.0), (4, 7.0))]


@pytest.fixture
def folder(small_pipeline, tmp_path):
    """A model's folder beside another's, which serves as the feature network, and real images."""
    for name in ("model", "network"):
        small_pipeline.save_pretrained(tmp_path / name)
    (tmp_path / "network" / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}})
    )
    (tmp_path / "real").mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "real" / f"{number}.png")
    return tmp_path


@pytest.fixture
def conditional_folder(folder, small_config):
    """That model, of three classes, whose scheduler has a way of its own."""
    config = MageConfig(**small_config.to_dict() | {"num_classes": 3})
    scheduler = MageScheduler(config.mask_token_id, masking_schedule="square", token_temperature=0.9)
    MagePipeline(MageForMaskedImageModeling(config).eval(), scheduler).save_pretrained(folder / "model")
    return folder


def tune(folder, *more: str):
    load_script("tune_sampling")(
        [
            *(
                "--model_name_or_path",
                folder / "model",
                "--references",
                folder / "real",
                "--output_dir",
                folder / "out",
            ),
            *("--feature_network", folder / "network", "--num_images", "4", "--batch_size", "4"),
            *("--num_inference_steps", "2", "4", "--temperature", "6", "--full_steps", "1", "2", *more),
        ]
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fewer samples")
def test_tries_are_kept_and_the_best_is_written_into_the_folder(folder, capsys):
    tune(folder)
    table = (folder / "out" / "tries.jsonl").read_text()
    rows = [json.loads(line) for line in table.splitlines()]
    assert len({(r["num_inference_steps"], r["encoder_keep_share"], r["full_steps"]) for r in rows}) == 8
    work = {(r["num_inference_steps"], r["encoder_keep_share"], r["full_steps"]): r["gflops"] for r in rows}
    assert work[4, 0.5, 2] < work[4, 0.5, 1] < work[4, None, 1]
    assert Image.open(folder / "out" / "frontier.png").size[0] > 400

    tune(folder, "--budget", "1000", "--save")

    assert (folder / "out" / "tries.jsonl").read_text() == table
    best = min(rows, key=lambda row: row["fid"])
    pipe = MagePipeline.from_pretrained(folder / "model")
    assert pipe.scheduler.config.num_inference_steps == best["num_inference_steps"]
    assert (pipe.config.encoder_keep_share, pipe.config.full_steps) == (best["encoder_keep_share"], best["full_steps"])
    assert f"{best['fid']:.4g}" in (folder / "model" / "README.md").read_text()
    assert "The best of at most 1000 GFLOP an image" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fewer samples")
def test_guidance_is_tried_where_it_is_worth_its_work(conditional_folder, capsys):
    intervals = ["--guidance_interval", "0", "1", "0.5", "1"]
    tune(conditional_folder, "--guidance_scale", "0", "2", *intervals, "--budget", "1000", "--save")

    rows = [json.loads(line) for line in (conditional_folder / "out" / "tries.jsonl").read_text().splitlines()]
    of = {
        (row["guidance_scale"], str(row["guidance_interval"])): row
        for row in rows
        if (row["num_inference_steps"], row["encoder_keep_share"], row["full_steps"]) == (4, None, 1)
    }
    assert of.keys() == {(0.0, "None"), (2.0, "[0.0, 1.0]"), (2.0, "[0.5, 1.0]")}
    assert of[0.0, "None"]["gflops"] < of[2.0, "[0.5, 1.0]"]["gflops"] < of[2.0, "[0.0, 1.0]"]["gflops"]
    assert {(row["masking_schedule"], row["token_temperature"]) for row in rows} == {("square", 0.9)}
    best = min(rows, key=lambda row: row["fid"])
    own = MagePipeline.from_pretrained(conditional_folder / "model").config
    assert (own.guidance_scale, own.guidance_interval) == (
        best["guidance_scale"],
        best["guidance_interval"] or [0.0, 1.0],
    )
    assert "| guidance_scale | guidance_interval |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--guidance_scale", "2"], "this model is unconditional"),
        (["--masking_schedule", "sine"], "masking_schedule"),
        (["--guidance_interval", "0", "1"], "add `--guidance_scale`"),
    ],
)
def test_what_the_model_cannot_is_found_before_anything_is_tried(folder, words, message):
    with pytest.raises(SystemExit, match=message):
        tune(folder, "--references_split", "none of these", *words)
    assert not (folder / "out" / "tries.jsonl").exists()


def test_what_a_pipeline_does_by_itself_is_counted(small_config):
    model = MageForMaskedImageModeling(MageConfig(**small_config.to_dict() | {"num_classes": 3}))
    plain, guided = (
        MagePipeline(model, MageScheduler(model.config.mask_token_id), guidance_scale=scale) for scale in (0.0, 2.0)
    )
    work = [count_gflops(without_weights(pipe), class_labels=[0]) for pipe in (plain, guided)]
    assert work[1] > 1.5 * work[0]


def test_ways_to_save_work_have_names():
    assert method_of({"encoder_keep_share": 0.5, "full_steps": 2}) == "keep 0.5, full steps 2"
    assert method_of({"guidance_interval": [0.5, 1.0]}) == "guided from 0.5 to 1"
    assert method_of({"guidance_interval": None}) == "plain"


def test_the_frontier_is_what_nothing_cheaper_equals():
    assert frontier(ROWS, "fid") == [ROWS[0], ROWS[1], ROWS[3]]


def test_the_best_within_a_budget():
    assert best_within(ROWS, "fid", 3.5) == ROWS[1]
    with pytest.raises(ValueError, match=r"The budget is 0\.5 GFLOP an image, and the cheapest try takes 1"):
        best_within(ROWS, "fid", 0.5)


def test_noise_on_confidence_is_tried_only_where_it_is_used():
    choices = {"unmasking_order": ["confidence", "halton"], "temperature": [3.0, 6.0]}
    assert [row["temperature"] for row in combinations(choices)] == [3.0, 6.0, None]


def test_intervals_are_tried_only_with_guidance():
    choices = {"guidance_scale": [0.0, 2.0], "guidance_interval": [[0.0, 1.0], [0.5, 1.0]]}
    assert [row["guidance_interval"] for row in combinations(choices)] == [None, [0.0, 1.0], [0.5, 1.0]]


def test_each_setting_is_tried_once(tmp_path):
    settings = combinations({"num_inference_steps": [4, 8], "temperature": [6.0]})
    Tries(tmp_path / "tries.jsonl").add(settings[0] | {"fid": 1.0})
    assert Tries(tmp_path / "tries.jsonl").untried(settings) == settings[1:]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Say which model to tune"),
        ([*MODEL, "--save", "true"], "add `--budget GFLOP`"),
        (
            [*MODEL, "--encoder_keep_share", "1", "0"],
            "`--encoder_keep_share` must be more than 0 and at most 1, got 0",
        ),
        ([*MODEL, "--guidance_scale", "2", "--guidance_interval", "0.5"], "two shares for each interval, got [0.5]"),
    ],
)
def test_what_cannot_be_tuned(words, message, capsys):
    with pytest.raises(SystemExit):
        load_script("tune_sampling")(words)
    assert message in capsys.readouterr().err
