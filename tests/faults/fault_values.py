"""Wrong values for every flag of every script and every argument of the API: refused in words, and by name."""

import dataclasses
import io
import math
import typing
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import VQModel

from tests.in_process import load_module
from transformers_mage import MageForMaskedImageModeling, MagePipeline, MageScheduler, sample_masks
from transformers_mage.command_line import parse_arguments
from transformers_mage.training.pretraining import build_model, model_values

from .table import note_answers

# Of what a script needs, those flags that it has.
NEEDED = {"dataset_name": "x", "output_dir": "out"}
SCRIPTS = {
    "train_mage": ("MageArguments", ["--tokenizer_name_or_path", "x"]),
    "train_vqgan": ("VQGANArguments", []),
    "cache_tokens": ("CacheArguments", ["--tokenizer_name_or_path", "x"]),
    "finetune": ("FinetuneArguments", ["--model_name_or_path", "x"]),
    "linear_probe": ("ProbeArguments", ["--model_name_or_path", "x"]),
    "extract_features": ("ExtractionArguments", ["--model_name_or_path", "x"]),
    "generate": ("GenerationArguments", ["--pretrained_model_name_or_path", "x"]),
    "evaluate_generation": ("EvaluationArguments", ["--samples", "x", "--references", "x"]),
    "evaluate_reconstruction": ("ReconstructionArguments", ["--tokenizers", "x", "--references", "x"]),
    "train_representation_diffusion": ("RepresentationDiffusionArguments", ["--model_name_or_path", "x"]),
    "benchmark": ("BenchmarkArguments", []),
}
WRONG_NUMBERS = ["nan", "inf", "-inf", "-1", "-0.5", "1e400", "x", "", "1,5", "0x10", "None", "[]", "1e-3.5"]
REFUSED, LEGAL = "refused by name", "accepted"
NAN, INF = math.nan, math.inf
HALF = (torch.arange(16) < 8).expand(2, 16)
SIZES = {"image_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZES |= {f"decoder_{name}": value for name, value in SIZES.items() if name != "image_size"}
WRONG_VALUES = [-1, -0.5, 1.5, "x", "", NAN, INF, -INF, [], {}, [1, 2, 3], "nan"]
# What messages call an argument that several doors have.
ALIASES = {"input_ids": "okens"}
# Numbers for which less than nothing means something.
SIGNED = {"layers", "pixel_value_min", "lecam_decay", "pixel_min", "pixel_max", "representation_layer"}


def numbers_of(arguments_class: type) -> list[str]:
    hints = typing.get_type_hints(arguments_class)
    fields = [field.name for field in dataclasses.fields(arguments_class) if field.init]
    return [name for name in fields if {int, float} & {hints[name], *typing.get_args(hints[name])}]


def answer(arguments_class: type, words: list[str]) -> str:
    """What comes of a command line: nothing, when it is accepted."""
    said = io.StringIO()
    with redirect_stderr(said):
        try:
            parse_arguments(arguments_class, "", words)
        except SystemExit as end:
            return str(end.code) if isinstance(end.code, str) else said.getvalue().strip().splitlines()[-1]
    return ""


def needed_by(script: str) -> tuple[type, list[str]]:
    """A script's arguments, and flags without which it would not start."""
    name, flags = SCRIPTS[script]
    arguments_class = getattr(load_module(script), name)
    there = {field.name for field in dataclasses.fields(arguments_class)}
    return arguments_class, [
        word for key, value in NEEDED.items() if key in there for word in (f"--{key}", value)
    ] + flags


@pytest.mark.parametrize("script", SCRIPTS)
def test_wrong_numbers(script: str):
    arguments_class, needed = needed_by(script)
    assert answer(arguments_class, needed) == ""
    answers, wrong = Counter(), []
    for flag in numbers_of(arguments_class):
        for value in WRONG_NUMBERS:
            said = answer(arguments_class, [*needed, f"--{flag}={value}"])
            kind = REFUSED if flag in said else "refused without the flag" if said else LEGAL
            answers[kind] += 1
            if kind != REFUSED and flag not in SIGNED:
                wrong.append(f"--{flag}={value}: {said}")
    note_answers(f"flags of {script}, wrong numbers", answers)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("script", SCRIPTS)
def test_flags_that_do_not_exist(script: str):
    arguments_class, needed = needed_by(script)
    answers = Counter()
    for field in dataclasses.fields(arguments_class):
        flag = f"--{field.name[:-1]}"
        answers[REFUSED] += f"unrecognized argument {flag}" in answer(arguments_class, [*needed, flag, "1"])
    note_answers(f"flags of {script}, misspelt", answers)
    assert answers[REFUSED] == len(dataclasses.fields(arguments_class))


@pytest.mark.parametrize("script", SCRIPTS)
def test_choices_that_do_not_exist(script: str):
    arguments_class, needed = needed_by(script)
    answers = Counter()
    chosen = [field.name for field in dataclasses.fields(arguments_class) if field.metadata.get("choices")]
    for flag in chosen:
        for value in ("nope", "", "None"):
            answers[REFUSED] += flag in answer(arguments_class, [*needed, f"--{flag}={value}"])
    note_answers(f"flags of {script}, choices", answers)
    assert answers[REFUSED] == 3 * len(chosen)


@pytest.mark.parametrize("name", model_values())
def test_values_of_a_model(name: str, tokenizer: VQModel):
    """On the command line or in a recipe: each is refused by its name, or makes a model."""
    answers, wrong = Counter(), []
    for value in WRONG_VALUES:
        said = refusal(lambda value=value: build_model({**SIZES, name: value}, tokenizer))
        kind = LEGAL if said is None else REFUSED if name in said and not said.startswith("BUG") else "otherwise"
        answers[kind] += 1
        if kind == "otherwise":
            wrong.append(f"{name}={value!r}: {said}")
    note_answers("values of `model.`", answers)
    assert not wrong, "\n".join(wrong)


PIPELINE = {
    "num_images": [0, -1, 1.5, "x", NAN, [], None.__class__],
    "num_inference_steps": [0, -3, 1.5, "x", NAN, INF, []],
    "temperature": [-1, NAN, INF, "x", [], torch.ones(2)],
    "guidance_scale": [NAN, INF, "x", [], 2.0],
    "guidance_schedule": ["nope", "", 1, []],
    "guidance_interval": [(1, 0), (0.5,), (-1, 2), (NAN, 1), "x", 3],
    "generator": [5, "x", [], [torch.Generator()] * 3],
    "class_labels": [0, "x", [1], NAN],
    "height": [0, -8, 7, 1.5, "x", NAN],
    "width": [0, -8, 7, 1.5, "x", NAN],
    "output_type": ["nope", "", 5],
    "image": [5, "x", [], NAN, np.zeros((0, 0, 3)), np.full((8, 8, 3), NAN), np.full((8, 8, 3), 300.0)],
    "mask_image": [np.ones((8, 8), bool)],
    "padding": [3],
    "strength": [0.5],
    "feather": [2],
    "callback_on_step_end_tensor_inputs": [["nope"]],
}
EDITING = {
    "mask_image": [5, "x", [], np.full((8, 8), NAN), np.full((8, 8), 0.5j), np.full((8, 8), -1)],
    "padding": [-1, 1.5, "x", (1, 2), NAN, [None] * 4],
    "strength": [0, -1, 1.5, NAN, INF, "x", []],
    "feather": [-1, 1.5, "x", NAN, []],
    "height": [0, -8, 7, "x"],
    "num_images": [0, -1, 1.5, "x"],
}
FORWARD = {
    "input_ids": [
        torch.full((2, 16), -1),
        torch.full((2, 16), 99_999),
        torch.full((2, 16), 20),
        torch.rand(2, 16),
        torch.zeros(2, 15, dtype=torch.long),
        torch.zeros(2, 0, dtype=torch.long),
        torch.zeros(0, 16, dtype=torch.long),
        torch.zeros(16, dtype=torch.long),
        torch.zeros(2, 4, 4, 1, dtype=torch.long),
    ],
    "pixel_values": [
        torch.rand(2, 1, 8, 8),
        torch.rand(2, 3, 8, 9),
        torch.rand(3, 8, 8),
        torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        torch.rand(0, 3, 8, 8),
        torch.full((2, 3, 8, 8), NAN),
        torch.full((2, 3, 8, 8), INF),
    ],
    "bool_masked_pos": [
        torch.ones(2, 15, dtype=torch.bool),
        torch.ones(3, 16, dtype=torch.bool),
        torch.rand(2, 16),
        torch.full((2, 16), NAN),
        torch.full((2, 16), 2),
        torch.ones(16, dtype=torch.bool),
    ],
    "bool_dropped_pos": [
        torch.ones(2, 15, dtype=torch.bool),
        torch.ones(2, 16, dtype=torch.bool),
        torch.rand(2, 16),
        HALF.flip(1),
        torch.eye(2, 16, dtype=torch.bool).cumsum(1).bool(),
    ],
    "num_dropped": [-1, 3, 16, 99, 1.5, "x", NAN],
    "class_labels": [torch.tensor([0, 1]), torch.tensor([0.5, 1])],
}
STEP = {
    "timestep": [99, -1, 20, 1.5, "x", None, NAN, INF, torch.tensor([1, 2]), True],
    "model_output": [
        torch.zeros(2, 15, 16),
        torch.zeros(1, 16, 16),
        torch.zeros(2, 16),
        torch.full((2, 16, 16), NAN),
        torch.full((2, 16, 16), INF),
        torch.zeros(2, 16, 16, dtype=torch.long),
    ],
    "sample": [torch.zeros(2, 15, dtype=torch.long), torch.zeros(2, dtype=torch.long), torch.rand(2, 16)],
    "generator": [5, "x", [torch.Generator()] * 3],
}
SCHEDULER = {
    "mask_token_id": [-1, 1.5, "x", NAN, None],
    "masking_schedule": ["nope", "", 5, None],
    "temperature": [-1, NAN, INF, "x", None],
    "num_inference_steps": [0, -1, 1.5, "x", NAN, None],
    "unmasking_order": ["nope", "", 5],
    "token_temperature": [-1, NAN, INF, "x"],
    "top_k": [0, -1, 1.5, "x", NAN],
    "top_p": [0, -1, 1.5, "x", NAN],
    "temperature_schedule": ["nope", "", 5],
}
MASKS = {"batch_size": [-1, 1.5, "x", NAN, None], "sequence_length": [-1, 1.5, "x", NAN]}


def refusal(call: Callable[[], object]) -> str | None:
    """What is said to a call: nothing, where it is accepted."""
    try:
        call()
    except (ValueError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    except Exception as error:
        return f"BUG {type(error).__name__}: {error}"
    return None


def shown(value: object) -> str:
    shape = getattr(value, "shape", None)
    return repr(value) if shape is None else f"{tuple(shape)} of {value.dtype}, the first {value.reshape(-1)[:1]}"


def check_refusals(place: str, values: dict[str, list], call: Callable[..., object]):
    """Every value is refused, and the message says of which argument it is."""
    answers, wrong = Counter(), []
    for name, value in ((name, value) for name, wrong_ones in values.items() for value in wrong_ones):
        said = refusal(lambda name=name, value=value: call(**{name: value}))
        is_named = said is not None and (name in said or ALIASES.get(name, name) in said)
        kind = LEGAL if said is None else REFUSED if is_named and not said.startswith("BUG") else "otherwise"
        answers[kind] += 1
        if kind != REFUSED:
            wrong.append(f"{name}={shown(value)}: {said}")
    note_answers(place, answers)
    assert not wrong, "\n".join(wrong)


@pytest.fixture
def pipe(mage_folder: Path) -> MagePipeline:
    model = MageForMaskedImageModeling.from_pretrained(mage_folder)
    pipe = MagePipeline(model, MageScheduler(model.config.mask_token_id, num_inference_steps=2))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_arguments_of_the_pipeline(pipe: MagePipeline):
    check_refusals("pipe(...)", PIPELINE, pipe)


def test_arguments_of_editing(pipe: MagePipeline):
    photo = np.zeros((8, 8, 3), np.uint8)
    half = np.arange(64).reshape(8, 8) < 32

    def edit(**kwargs):
        usual = {} if {"padding", "strength"} & set(kwargs) else {"mask_image": half}
        pipe(image=photo, **{**usual, **kwargs})

    check_refusals("pipe(image, ...)", EDITING, edit)


def test_arguments_of_the_model(pipe: MagePipeline):
    def forward(**kwargs):
        tokens = {} if "pixel_values" in kwargs else {"input_ids": torch.zeros(2, 16, dtype=torch.long)}
        dropped = {"bool_dropped_pos": HALF} if "num_dropped" in kwargs else {}
        with torch.no_grad():
            pipe.model(**{**tokens, "bool_masked_pos": HALF, **dropped, **kwargs})

    check_refusals("model(...)", FORWARD, forward)


def test_arguments_of_a_scheduler_and_its_step():
    def step(**kwargs):
        scheduler = MageScheduler(1016)
        scheduler.set_timesteps(4)
        usual = {"model_output": torch.zeros(2, 16, 16), "timestep": 3, "sample": torch.full((2, 16), 1016)}
        scheduler.step(**{**usual, **kwargs})

    check_refusals("scheduler.step(...)", STEP, step)
    check_refusals(
        "MageScheduler(...)", SCHEDULER, lambda **kwargs: MageScheduler(**{"mask_token_id": 1016, **kwargs})
    )


def test_arguments_of_masks(pipe: MagePipeline):
    usual = {"config": pipe.model.config, "batch_size": 2}
    check_refusals("sample_masks(...)", MASKS, lambda **kwargs: sample_masks(**{**usual, **kwargs}))
