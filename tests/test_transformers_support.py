"""What transformers does with any model works with these: its pipelines, and its `Trainer`."""

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from diffusers import VQModel
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    Trainer,
    TrainingArguments,
    ViTImageProcessorPil,
    pipeline,
)

from transformers_mage import MageConfig, MageForImageClassification, MageForMaskedImageModeling, MagePipeline


@pytest.fixture
def images() -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 255, (40, 40, 3), dtype=np.uint8)) for _ in range(3)]


@pytest.fixture
def folder(small_pipeline: MagePipeline, tmp_path: Path) -> Path:
    small_pipeline.save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 32, "width": 32}, do_normalize=False).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def classifier_folder(folder: Path, tmp_path: Path) -> Path:
    """A classifier on that model's encoder, beside the same image processor."""
    model = AutoModelForImageClassification.from_pretrained(folder, id2label={0: "cat", 1: "dog", 2: "fox"})
    model.save_pretrained(tmp_path / "classifier")
    AutoImageProcessor.from_pretrained(folder).save_pretrained(tmp_path / "classifier")
    return tmp_path / "classifier"


@torch.no_grad()
def test_feature_extraction_pipeline_gives_the_features_of_auto_model(folder, images):
    extractor = pipeline("image-feature-extraction", model=str(folder))
    features = [extractor(image, return_tensors=True) for image in images]
    pooled = extractor(images, pool=True, return_tensors=True)

    processor, model = AutoImageProcessor.from_pretrained(folder), AutoModel.from_pretrained(folder)
    expected = model(**processor(images, return_tensors="pt"))
    assert torch.allclose(torch.cat(features), expected.last_hidden_state, atol=1e-5)
    assert torch.allclose(torch.cat(pooled), expected.pooler_output, atol=1e-5)


@torch.no_grad()
def test_classification_pipeline_names_the_likeliest_classes(classifier_folder, images):
    classifier = pipeline("image-classification", model=str(classifier_folder))
    predictions = classifier(images, top_k=2)

    processor = AutoImageProcessor.from_pretrained(classifier_folder)
    model = AutoModelForImageClassification.from_pretrained(classifier_folder)
    probabilities = model(**processor(images, return_tensors="pt")).logits.softmax(dim=1)
    values, ids = probabilities.topk(2)
    for i, prediction in enumerate(predictions):
        assert [item["label"] for item in prediction] == [model.config.id2label[j] for j in ids[i].tolist()]
        assert [item["score"] for item in prediction] == pytest.approx(values[i].tolist(), abs=1e-5)


class LeftOrRight(torch.utils.data.Dataset):
    """Images that are bright on the left are of class 0, those bright on the right of class 1."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict:
        noise = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(index))
        bright = torch.arange(32) // 16 == index % 2
        return {"pixel_values": noise / 2 + bright / 2, "labels": index % 2}


@torch.no_grad()
def tell_apart(vqvae: VQModel, images: torch.Tensor):
    """Makes codes of an untrained tokenizer's own latents."""
    latents = vqvae.encode(images).latents.permute(0, 2, 3, 1).flatten(0, 2)
    codebook = vqvae.quantize.embedding.weight
    codebook.copy_(latents[torch.linspace(0, len(latents) - 1, len(codebook)).long()])


def train(config: MageConfig, folder: Path, **kwargs) -> Trainer:
    torch.manual_seed(0)
    model = MageForImageClassification(MageConfig(**{**config.to_dict(), "id2label": {0: "left", 1: "right"}}))
    tell_apart(model.mage.vqvae, torch.stack([LeftOrRight()[i]["pixel_values"] for i in range(4)]))
    arguments = TrainingArguments(
        str(folder),
        learning_rate=3e-3,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        **kwargs,
    )

    def accuracy(prediction) -> dict[str, float]:
        return {"accuracy": float((prediction.predictions.argmax(axis=1) == prediction.label_ids).mean())}

    data = LeftOrRight()
    trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data, compute_metrics=accuracy)
    trainer.train()
    return trainer


def test_trainer_learns_from_a_plain_dataset(small_config, tmp_path):
    trainer = train(small_config, tmp_path, max_steps=30, per_device_train_batch_size=16)

    assert trainer.evaluate()["eval_accuracy"] > 0.9
    trainer.save_model(tmp_path)
    assert isinstance(AutoModelForImageClassification.from_pretrained(tmp_path), MageForImageClassification)


@pytest.mark.slow
def test_trainer_averages_over_accumulated_batches(small_config, tmp_path):
    small_config.hidden_dropout_prob = small_config.attention_probs_dropout_prob = 0.0
    once = train(small_config, tmp_path, max_steps=1, per_device_train_batch_size=16, max_grad_norm=0)
    twice = train(
        small_config,
        tmp_path,
        max_steps=1,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        max_grad_norm=0,
    )

    losses = [trainer.state.log_history[-1]["train_loss"] for trainer in (once, twice)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


class MaskedTokens(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = torch.arange(64) % 16
        return {
            "input_ids": tokens,
            "bool_masked_pos": tokens % 2 == index % 2,
            "class_labels": torch.tensor(index % 3),
        }


@pytest.mark.parametrize("num_classes", [0, 3])
def test_trainer_evaluates_masked_modelling_unasked(small_config, tmp_path, num_classes):
    model = MageForMaskedImageModeling(MageConfig(**{**small_config.to_dict(), "num_classes": num_classes}))
    data = MaskedTokens()
    columns = ["input_ids", "bool_masked_pos"] + (["class_labels"] if num_classes else [])
    batch = {name: torch.stack([data[i][name] for i in range(4)]) for name in columns}
    data = Dataset.from_list([{name: data[i][name].tolist() for name in columns} for i in range(4)])
    arguments = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, disable_tqdm=True)
    trainer = Trainer(model, arguments, eval_dataset=data.with_format("torch"))

    metrics = trainer.evaluate()

    assert trainer.label_names == ["bool_masked_pos"]
    assert metrics["eval_loss"] == pytest.approx(model.eval()(**batch).loss.item(), rel=1e-5)
