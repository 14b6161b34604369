import pytest

from transformers_mage import precision
from transformers_mage.training import run
from transformers_mage.training.arguments import TrainingArguments
from transformers_mage.training.run import create_accelerator


@pytest.mark.parametrize("said_by_accelerate", [None, "1", "auto"])
def test_the_recipe_decides_how_many_micro_batches_make_an_update(said_by_accelerate, monkeypatch, tmp_path):
    """A file of `accelerate config` for DeepSpeed says a number too, or "auto", which reaches the script like this."""
    if said_by_accelerate is not None:
        monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", said_by_accelerate)
    recipe = {"output_dir": str(tmp_path), "report_to": "none"}

    accelerator = create_accelerator(TrainingArguments(gradient_accumulation_steps=3, **recipe))
    assert accelerator.gradient_accumulation_steps == 3

    accelerator = create_accelerator(TrainingArguments(train_batch_size=4, total_batch_size=20, **recipe))
    assert accelerator.gradient_accumulation_steps == 5


@pytest.mark.parametrize(("is_fast", "chosen"), [(True, "bf16"), (False, "no")])
def test_automatic_precision_is_what_is_fast_and_kept_as_that(is_fast: bool, chosen: str, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "has_fast_bfloat16", lambda device: is_fast)
    monkeypatch.setattr(run, "bfloat16_slowdown", lambda device: 0.5)
    recipe = TrainingArguments(mixed_precision="auto", output_dir=str(tmp_path), report_to="none")

    assert create_accelerator(recipe).mixed_precision == chosen
    assert recipe.mixed_precision == chosen


def test_a_total_that_does_not_divide_is_refused(tmp_path):
    recipe = TrainingArguments(train_batch_size=4, total_batch_size=10, output_dir=str(tmp_path), report_to="none")

    with pytest.raises(ValueError, match=r"`--total_batch_size` 10 is not a multiple of the 4 images"):
        create_accelerator(recipe)


def test_half_precision_that_would_not_happen_is_refused(tmp_path):
    recipe = TrainingArguments(mixed_precision="fp16", output_dir=str(tmp_path), report_to="none")

    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        create_accelerator(recipe)


@pytest.mark.parametrize(("slowdown", "is_said"), [(13.1, True), (0.4, False)])
def test_slow_half_precision_is_said(slowdown: float, is_said: bool, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(run, "bfloat16_slowdown", lambda device: slowdown)
    recipe = {"output_dir": str(tmp_path), "report_to": "none"}
    create_accelerator(TrainingArguments(mixed_precision="bf16", **recipe))
    assert ("bfloat16 takes 13.1 times as long as float32" in caplog.text) == is_said
