"""Wrong values for every flag of every script: refused in words before anything is loaded, never a traceback."""

import dataclasses
import io
import typing
from collections import Counter
from contextlib import redirect_stderr

import pytest

from tests.in_process import load_module
from transformers_mage.command_line import parse_arguments

NEEDED = ["--dataset_name", "x", "--output_dir", "out"]
SCRIPTS = {
    "train_mage": ("MageArguments", ["--tokenizer_name_or_path", "x"]),
    "train_vqgan": ("VQGANArguments", []),
    "cache_tokens": ("CacheArguments", ["--tokenizer_name_or_path", "x"]),
    "finetune": ("FinetuneArguments", ["--model_name_or_path", "x"]),
    "linear_probe": ("ProbeArguments", ["--model_name_or_path", "x"]),
    "extract_features": ("ExtractionArguments", ["--model_name_or_path", "x"]),
}
WRONG_NUMBERS = ["nan", "inf", "-inf", "-1", "-0.5", "1e400", "x", "", "1,5", "0x10", "None", "[]", "1e-3.5"]
# Numbers for which less than nothing means something.
SIGNED = {"layers", "pixel_value_min", "lecam_decay"}


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


@pytest.mark.parametrize("script", SCRIPTS)
def test_wrong_numbers(script: str):
    name, needed = SCRIPTS[script]
    arguments_class = getattr(load_module(script), name)
    answers, accepted = Counter(), []
    for flag in numbers_of(arguments_class):
        for value in WRONG_NUMBERS:
            said = answer(arguments_class, [*NEEDED, *needed, f"--{flag}={value}"])
            answers["refused" if flag in said else "refused without the flag" if said else "accepted"] += 1
            if flag not in said and flag not in SIGNED:
                accepted.append(f"--{flag}={value}: {said}")
    print(script, dict(answers))
    assert accepted == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_flags_that_do_not_exist(script: str):
    name, needed = SCRIPTS[script]
    arguments_class = getattr(load_module(script), name)
    for field in dataclasses.fields(arguments_class):
        flag = f"--{field.name[:-1]}"
        assert f"unrecognized argument {flag}" in answer(arguments_class, [*NEEDED, *needed, flag, "1"])
