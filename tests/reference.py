"""The recorded numbers of the original implementation, and models with the weights they were recorded with."""

import importlib.util
import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file

from transformers_mage import MageConfig, MageForImageClassification, MageForMaskedImageModeling
from transformers_mage.convert_original_checkpoint import convert_model, convert_tokenizer, tokenizer_config
from transformers_mage.vq_shortcuts import skip_noop_layers

FIXTURES = Path(__file__).parent / "fixtures"
FULL_SIZE = Path(__file__).parents[2] / "shared" / "reference"


@dataclass(frozen=True)
class ReferenceCase:
    """One recorded case: `recorded[name]` is an array, `weights(kind)` the original's `state_dict`."""

    folder: Path
    name: str

    @cached_property
    def manifest(self) -> dict:
        return json.loads((self.folder / f"{self.name}.manifest.json").read_text())

    @cached_property
    def recorded(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / f"{self.name}.safetensors")

    @cached_property
    def pixel_values(self) -> torch.Tensor:
        """The photographs, in the memory order in which the numbers were recorded."""
        return self.recorded["pixel_values"].to(memory_format=torch.channels_last)

    @lru_cache  # noqa: B019 (the cases live as long as the tests)
    def weights(self, kind: str = "model") -> dict[str, torch.Tensor]:
        build = _seeded_weights().build
        return {k: torch.from_numpy(v) for k, v in build(self.manifest[kind], self.manifest["seed"]).items()}

    @cached_property
    def tokenizer_weights(self) -> dict[str, torch.Tensor]:
        return {k.removeprefix("vqgan."): v for k, v in self.weights().items() if k.startswith("vqgan.")}

    def config(self, **kwargs) -> MageConfig:
        sizes = self.manifest["config"]
        return MageConfig(
            codebook_size=sizes["n_embed"],
            hidden_size=sizes["embed_dim"],
            num_hidden_layers=sizes["depth"],
            num_attention_heads=sizes["heads"],
            decoder_hidden_size=sizes["dec_dim"],
            decoder_num_hidden_layers=sizes["dec_depth"],
            decoder_num_attention_heads=sizes["dec_heads"],
            representation_size=sizes.get("rep_dim"),
            vq_config=tokenizer_config(self.tokenizer_weights),
            **kwargs,
        )

    @cached_property
    def converted_tokenizer(self) -> dict[str, torch.Tensor]:
        return convert_tokenizer(self.tokenizer_weights)

    def model(self) -> MageForMaskedImageModeling:
        return self._load(MageForMaskedImageModeling(self.config()), "model")

    def classifier(self, kind: str) -> MageForImageClassification:
        id2label = {label: str(label) for label in range(10)}
        config = self.config(id2label=id2label, classifier_batch_norm=kind == "probe")
        return self._load(MageForImageClassification(config), kind)

    def _load(self, model, kind: str):
        tokenizer = {f"mage.vqvae.{name}": weight for name, weight in self.converted_tokenizer.items()}
        model.load_state_dict(convert_model(self.weights(kind)) | tokenizer)
        skip_noop_layers(model.mage.vqvae)
        return model.eval()


def relative_error(actual: torch.Tensor, recorded: torch.Tensor) -> float:
    """Frobenius norm of the difference over that of the recorded array."""
    return ((actual.double() - recorded.double()).norm() / recorded.double().norm()).item()


@lru_cache
def _seeded_weights():
    spec = importlib.util.spec_from_file_location("seeded_weights", FIXTURES / "seeded_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TINY = ReferenceCase(FIXTURES, "tiny")
BASE = ReferenceCase(FULL_SIZE, "base")
RCG = ReferenceCase(FIXTURES, "rcg_tiny")
