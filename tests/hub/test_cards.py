import pytest
from huggingface_hub import ModelCard

from transformers_mage.hub.cards import markdown_table, percent, replace_block, set_results


def test_a_block_is_replaced_and_the_rest_stays(tmp_path):
    card = tmp_path / "README.md"
    card.write_text("above\n<!-- table -->\nold\n<!-- /table -->\nbelow <!-- other --> <!-- /other -->\n")

    replace_block(card, "table", markdown_table(["a", "b"], [[1, percent(0.987, 0.01)]]))

    assert card.read_text() == (
        "above\n<!-- table -->\n| a | b |\n| --- | --- |\n| 1 | 98.7 ± 1.0 |\n<!-- /table -->\n"
        "below <!-- other --> <!-- /other -->\n"
    )


def test_a_card_without_the_block_is_refused(tmp_path):
    card = tmp_path / "README.md"
    card.write_text("nothing here")

    with pytest.raises(ValueError, match="has no block `<!-- table -->`"):
        replace_block(card, "table", "")


def test_results_stand_in_the_header(tmp_path):
    card = tmp_path / "model" / "README.md"
    card.parent.mkdir()
    card.write_text("---\nlicense: mit\n---\n\n# Mine\n")
    digits = {"dataset_type": "digits", "dataset_name": "Digits", "dataset_split": "test"}

    set_results(card, "image-classification", digits, {"accuracy": ("Top-1", 0.98765)})
    set_results(card, "image-classification", digits, {"accuracy": ("Top-1", 0.12345)})

    data = ModelCard.load(card).data
    assert data.model_name == "model"
    assert [(result.metric_type, result.metric_name, result.metric_value) for result in data.eval_results] == [
        ("accuracy", "Top-1", 0.1235)
    ]
    assert "# Mine" in card.read_text()
