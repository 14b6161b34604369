import pytest

from transformers_mage.hub.cards import markdown_table, percent, replace_block


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
