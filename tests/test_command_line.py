from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from transformers_mage import MageConfig
from transformers_mage.command_line import as_flat_dict, parse_arguments, save_recipe
from transformers_mage.training.arguments import TrainingArguments


@dataclass
class Arguments(TrainingArguments):
    model: dict = field(init=False, default_factory=dict)


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


def test_a_saved_recipe_gives_the_same_values(recipe: str, tmp_path: Path):
    arguments = parse("--config", recipe, "--no_horizontal_flip")
    save_recipe(arguments, tmp_path / "saved.yaml")
    assert parse("--config", str(tmp_path / "saved.yaml")) == arguments


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Say what to train on"),
        (["--dataset_name", "x", "--train_batch_sice", "3"], "Did you mean --train_batch_size?"),
        (["--dataset_name", "x", "--train_batch_size", "0"], "must be more than 0, got 0"),
        (["--dataset_name", "x", "--crop_scale_min", "2"], "must lie in (0, 1], got 2.0"),
        (["--dataset_name", "x", "--mixed_precision", "fp8"], "invalid choice"),
        (["--dataset_name", "x", "--model.hidden_size"], "--model.hidden_size needs a value"),
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
