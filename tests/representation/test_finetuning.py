import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import VQModel
from transformers import AutoModelForImageClassification, ViTImageProcessorPil

from transformers_mage import MageConfig, MageForImageClassification
from transformers_mage.data.tokenization import tokenize
from transformers_mage.representation.classifiers import classifier_of, save_classifier
from transformers_mage.representation.finetuning import BestClassifier, ClassifierInputs
from transformers_mage.representation.mixing import Mixup
from transformers_mage.representation.rand_augment import RandAugment

LABELS = torch.tensor([0, 2])


@pytest.fixture
def model(small_config: MageConfig) -> MageForImageClassification:
    return MageForImageClassification(MageConfig(**{**small_config.to_dict(), "num_labels": 3})).eval()


@pytest.fixture
def vqvae(model: MageForImageClassification) -> VQModel:
    """The model's tokenizer, taken out, with codes that tell its latents apart."""
    tokenizer, model.mage.vqvae = model.mage.vqvae, None
    latents = tokenizer.encode(torch.rand(1, 3, 32, 32)).latents
    tokenizer.quantize.embedding.weight.data.copy_(latents.flatten(2)[0].T[::4])
    return tokenizer


def test_without_augmentation_training_sees_what_evaluation_sees(vqvae, pixel_values):
    inputs = ClassifierInputs(vqvae, None, Mixup(3, 0.0, 0.0, label_smoothing=0.0), do_normalize=False)
    training = inputs.training(pixel_values, LABELS, np.random.default_rng(0))

    assert torch.equal(training["input_ids"], tokenize(vqvae, pixel_values))
    assert torch.equal(training["input_ids"], inputs.evaluation(pixel_values))
    assert torch.equal(training["labels"], torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))


def test_the_pixels_that_enter_the_tokenizer_are_normalised(vqvae, pixel_values):
    inputs = ClassifierInputs(vqvae, None, Mixup(3), do_normalize=True)

    processor = ViTImageProcessorPil(
        do_resize=False, do_rescale=False, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    )
    expected = processor(list(pixel_values), return_tensors="pt")["pixel_values"]
    assert torch.equal(inputs.evaluation(pixel_values), tokenize(vqvae, expected))
    assert not torch.equal(inputs.evaluation(pixel_values), tokenize(vqvae, pixel_values))


def test_training_images_are_augmented_and_mixed(vqvae, pixel_values):
    inputs = ClassifierInputs(vqvae, RandAugment(probability=1.0), Mixup(3), do_normalize=True)
    first, again, other = (inputs.training(pixel_values, LABELS, np.random.default_rng(seed)) for seed in (1, 1, 2))

    assert torch.equal(first["input_ids"], again["input_ids"])
    assert not torch.equal(first["input_ids"], other["input_ids"])
    assert torch.allclose(first["labels"].sum(dim=1), torch.ones(2))
    assert (first["labels"] > 0.03).all()


def test_written_classifiers_have_their_tokenizer(model, vqvae, pixel_values, tmp_path):
    expected = model(input_ids=tokenize(vqvae, pixel_values)).logits

    save_classifier(classifier_of(model.state_dict(), model.config, vqvae), ViTImageProcessorPil(), tmp_path)

    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert torch.allclose(loaded(pixel_values).logits, expected, atol=1e-6)


def test_the_best_is_kept_over_an_interruption(model, vqvae, tmp_path):
    def best() -> BestClassifier:
        return BestClassifier(tmp_path / "best", model.config, vqvae, ViTImageProcessorPil())

    def bias_there() -> float:
        return AutoModelForImageClassification.from_pretrained(tmp_path / "best").classifier.bias[0].item()

    first = best()
    for bias, scores in enumerate(({"accuracy": 0.5, "loss": 1.0}, {"accuracy": 0.7, "loss": 2.0})):
        model.classifier.bias.data.fill_(bias)
        first.offer(model, scores, Accelerator())
    second = best()
    second.load_state_dict(first.state_dict())
    model.classifier.bias.data.fill_(2)
    second.offer(model, {"accuracy": 0.7, "loss": 2.5}, Accelerator())

    assert bias_there() == 1
    second.offer(model, {"accuracy": 0.7, "loss": 1.5}, Accelerator())
    assert bias_there() == 2
