from huggingface_hub import ModelCard

from transformers_mage.hub.eval_results import model_card_block


def test_the_hub_reads_the_block():
    text = model_card_block(
        {"fid": 11.123456, "kid": 0.01, "kid_std": 0.002}, "mage-digits", "digits", "inception", dataset_split="test"
    )
    card = ModelCard(text)
    fid, kid = card.data.eval_results
    assert (fid.metric_type, fid.metric_name, fid.metric_value) == ("fid", "FID", 11.123)
    assert (kid.dataset_name, kid.dataset_split, kid.metric_args) == (
        "digits",
        "test",
        {"feature_network": "inception"},
    )
    assert card.data.model_name == "mage-digits"
    assert "| FID | 11.123 |" in card.text
    assert "| KID | 0.01 ± 0.002 |" in card.text
