import pytest
import torch
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

from transformers_mage import MageForMaskedImageModeling
from transformers_mage.representations import RepresentationEncoder, RepresentationSource, standardize


def test_standardized_representations_have_mean_0_and_deviation_1():
    standardized = standardize(torch.tensor([[1.0, 2.0, 3.0], [-4.0, 0.0, 40.0]]))

    torch.testing.assert_close(standardized[0], torch.tensor([-1.0, 0.0, 1.0]))
    torch.testing.assert_close(standardized.std(dim=1), torch.ones(2))


def test_mages_own_are_its_pooled_features_of_pixels_or_tokens(small_model: MageForMaskedImageModeling, tmp_path):
    small_model.save_pretrained(tmp_path)
    encoder = RepresentationEncoder.from_pretrained(tmp_path)
    pixel_values = torch.rand(3, 3, 32, 32)

    outputs = small_model.mage(pixel_values)
    of_pixels, of_tokens = encoder(pixel_values), encoder(input_ids=outputs.image_tokens)

    torch.testing.assert_close(of_pixels, standardize(outputs.pooler_output))
    torch.testing.assert_close(of_tokens, of_pixels)
    assert encoder.size == 32


def test_an_earlier_layers_class_token(small_model: MageForMaskedImageModeling):
    encoder = RepresentationEncoder(small_model.mage, RepresentationSource("here", layer=1, pooling="cls"))
    pixel_values = torch.rand(3, 3, 32, 32)

    states = small_model.mage(pixel_values, output_hidden_states=True).hidden_states
    torch.testing.assert_close(encoder(pixel_values), standardize(states[1][:, 0]))


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("vit")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(**sizes, image_size=16, patch_size=8)).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


@torch.no_grad()
def test_any_image_model_of_transformers_can_give_them(vit_folder):
    encoder = RepresentationEncoder.from_pretrained(vit_folder)
    pixel_values = torch.rand(2, 3, 16, 16)

    expected = ViTModel.from_pretrained(vit_folder)((pixel_values - 0.5) / 0.5).last_hidden_state[:, 0]

    torch.testing.assert_close(encoder(pixel_values), standardize(expected))
    assert encoder(torch.rand(2, 1, 40, 40)).shape == (2, 16)
    assert encoder.source.as_dict()["image_size"] == 16


def test_a_model_of_pixels_does_not_take_tokens(vit_folder):
    encoder = RepresentationEncoder.from_pretrained(vit_folder)
    with pytest.raises(ValueError, match="reads pixels, but tokens were given"):
        encoder(input_ids=torch.zeros(1, 4, dtype=torch.long))


def test_unknown_poolings_are_refused(small_model: MageForMaskedImageModeling):
    with pytest.raises(ValueError, match='must be "mean", "cls" or "pooler", got \'max\''):
        RepresentationEncoder(small_model.mage, RepresentationSource("here", pooling="max"))
