from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest
import yaml

from transformers_mage import MageConfig
from transformers_mage.command_line import as_flat_dict, group, parse_arguments, save_recipe
from transformers_mage.training.arguments import TrainingArguments
from transformers_mage.training.pretraining import model_values


@dataclass
class Arguments(TrainingArguments):
    model: dict = field(init=False, default_factory=dict, metadata=group("the model.", model_values))


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    values = {"dataset_name": "digits", "train_batch_size": 16, "model": {"hidden_size": 64, "image_size": 32}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values) + "learning_rate: 1e-3\n")
    return str(tmp_path / "recipe.yaml")


def parse(*words: str) -> Arguments:
    return parse_arguments(Arguments, "A script.", list(words))


def test_the_command_line_overrides_the_recipe(recipe: str):
    arguments = parse(
        "--config", recipe, "--train_batch_size", "8", "--model.hidden_size", "96", "--model.drop_ratio=0"
    )
    assert (arguments.dataset_name, arguments.train_batch_size, arguments.learning_rate) == ("digits", 8, 1e-3)
    assert arguments.model == {"hidden_size": 96, "image_size": 32, "drop_ratio": 0}
    assert as_flat_dict(arguments)["model.hidden_size"] == 96


@dataclass
class WithModel(Arguments):
    REPLACES: ClassVar = {"model_name": ("tokenizer_name",)}
    model_name: str | None = None
    tokenizer_name: str | None = None


@pytest.mark.parametrize(
    ("words", "tokenizer"),
    [
        ([], "of the recipe"),
        (["--model_name", "a model"], None),
        (["--model_name=a model"], None),
        (["--model_name", "a model", "--tokenizer_name", "another"], "another"),
    ],
)
def test_a_flag_takes_the_place_of_another_value_of_the_recipe(tmp_path: Path, words: list[str], tokenizer: str):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("dataset_name: digits\ntokenizer_name: of the recipe\nmodel_name: of the recipe\n")

    arguments = parse_arguments(WithModel, "A script.", ["--config", str(recipe), *words])

    assert arguments.tokenizer_name == tokenizer


def test_a_saved_recipe_gives_the_same_values(recipe: str, tmp_path: Path):
    arguments = parse("--config", recipe, "--no_horizontal_flip")
    save_recipe(arguments, tmp_path / "saved.yaml")
    assert parse("--config", str(tmp_path / "saved.yaml")) == arguments


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Say what to train on"),
        (["--dataset_name", "x", "--train_batch_sice", "3"], "Did you mean --train_batch_size?"),
        (["--dataset_name", "x", "--train_batch_size", "0"], "must be at least 1, got 0"),
        (["--dataset_name", "x", "--crop_scale_min", "2"], "must be more than 0 and at most 1, got 2.0"),
        (["--dataset_name", "x", "--mixed_precision", "fp8"], "invalid choice"),
        (["--dataset_name", "x", "--model.hidden_size"], "--model.hidden_size needs a value"),
        (["--dataset_name", "x", "--model.hidden_size", "--seed", "1"], "--model.hidden_size needs a value"),
        (["--dataset_name", "x", "--model.hidden_size", "[1"], "--model.hidden_size [1 is not a YAML value"),
        (["--dataset_name", "x", "--model.hiden_size", "8"], "Did you mean --model.hidden_size?"),
        (["--dataset_name", "x", "--model.mask_ratio_mean", ".nan"], "`--model.mask_ratio_mean` must be a finite"),
        (["--dataset_name", "x", "--max_grad_norm", "nan"], "`--max_grad_norm` must be a finite number, got nan"),
        (["--dataset_name", "x", "--learning_rate", "inf"], "`--learning_rate` must be a finite number, got inf"),
        (["--dataset_name", "x", "--learning_rate", "0"], "`--learning_rate` must be more than 0, got 0"),
        (["--dataset_name", "x", "--learning_rate", "1e-3", "--min_learning_rate", "1"], "at most `--learning_rate`"),
        (["--dataset_name", "x", "--max_train_steps", "-3"], "`--max_train_steps` must be at least 1, got -3"),
        (["--dataset_name", "x", "--max_train_samples", "0"], "`--max_train_samples` must be at least 1, got 0"),
        (["--dataset_name", "x", "--total_batch_size", "-8"], "`--total_batch_size` must be at least 1, got -8"),
        (["--dataset_name", "x", "--seed", "-1"], "`--seed` must be at least 0 and less than 4294967296, got -1"),
        (["--dataset_name", "x", "--adam_beta2", "1"], "`--adam_beta2` must be at least 0 and less than 1, got 1.0"),
        (["--dataset_name", "x", "--report_to", "nope"], "trackers that are installed, here"),
        (["--dataset_name", "x", "--train_split", "../x"], "`--train_split` must be a plain name"),
        (["--dataset_name", "x", "--output_dir", ""], "`--output_dir` must name a folder"),
    ],
)
def test_mistakes_end_with_a_message(words: list[str], message: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        parse(*words)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train_batch_sice: 3", "sets `train_batch_sice`, which does not exist. Did you mean train_batch_size?"),
        ("[1, 2]", "must be a mapping"),
        ("model: 5", "sets `model` to 5; it must be dict"),
        ("train_batch_size: many", "sets `train_batch_size` to 'many'; it must be int"),
        ("train_batch_size: 1.5", "sets `train_batch_size` to 1.5; it must be int"),
        ("train_batch_size: true", "sets `train_batch_size` to True; it must be int"),
        ("train_batch_size: null", "sets `train_batch_size` to None; it must be int"),
        ("streaming: maybe", "sets `streaming` to 'maybe'; it must be bool"),
        ("output_dir: [a]", "sets `output_dir` to ['a']; it must be str"),
        ("mixed_precision: fp8", "sets `mixed_precision` to 'fp8'; it must be among no, fp16, bf16, auto"),
        ("a: [", "cannot be read"),
    ],
)
def test_a_recipe_that_makes_no_sense(text: str, message: str, tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(SystemExit) as error:
        parse("--config", str(tmp_path / "recipe.yaml"))
    assert message in str(error.value)


@pytest.mark.parametrize("recipe", sorted(Path(__file__).parents[1].glob("configs/mage*.yaml")), ids=lambda p: p.stem)
def test_recipes_make_models(recipe: Path, train_mage_arguments: type[TrainingArguments]):
    tokenizer = ["--tokenizer_name_or_path", "x"]
    arguments = parse_arguments(train_mage_arguments, "", ["--config", str(recipe), "--dataset_name", "x", *tokenizer])
    assert set(arguments.model) <= {*MageConfig().to_dict(), "attn_implementation"}
    MageConfig(**arguments.model, **({"patch_size": 4} if recipe.stem.endswith(("digits", "fashion")) else {}))


def test_null_unsets_what_a_recipe_says(recipe: str):
    assert parse("--config", recipe, "--learning_rate", "null").learning_rate is None
    assert parse("--config", recipe, "--max_train_samples=null").max_train_samples is None


def test_a_recipe_that_is_not_text_is_refused(tmp_path: Path):
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SystemExit, match="cannot be read"):
        parse("--config", str(tmp_path / "recipe.yaml"))


def test_help_lists_the_groups(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        parse("--help")
    assert "--model.hidden_size (default: 768)" in capsys.readouterr().out
