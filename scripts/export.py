"""
Exports a model to ONNX, for runtimes without PyTorch: its encoder, for features, and one step of decoding.

    pip install "transformers-mage[deployment]"
    python scripts/export.py --model_name_or_path model_cards/mage-digits --output_dir exported

transformers' own exporter does it. Batches may have any size; images have the model's. Each graph is compared with the
model before anything is written.
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

import torch
from torch.export import Dim
from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

from transformers_mage import MageConfig, MageForMaskedImageModeling, MageModel, MagePreTrainedModel
from transformers_mage.command_line import reports_errors
from transformers_mage.hub_folders import model_folder

# Largest difference from the model's outputs, relative to their largest value.
TOLERANCE = 1e-3


@reports_errors
def main(argv: list[str] | None = None):
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True, help="a MAGE model's folder or Hub name")
    parser.add_argument("--output_dir", type=Path, required=True, help="the folder to write")
    arguments = parser.parse_args(argv)

    folder = model_folder(arguments.model_name_or_path)
    model = MageForMaskedImageModeling.from_pretrained(folder, dtype=torch.float32).eval()
    graphs = {"features": feature_inputs(model.mage), "decoding_step": step_inputs(model.config)}
    tables = []
    for name, inputs in graphs.items():
        module = model.mage if name == "features" else model
        exported = export(module, inputs)
        difference = compare(exported, module, inputs)
        if difference > TOLERANCE:
            raise ValueError(f"{name}: the exported graph differs from the model by {difference:.1e}.")
        exported.save_pretrained(arguments.output_dir / name)
        tables.append(describe(name, exported.program.graph, difference))
        print(f"{arguments.output_dir / name}: differs from the model by {difference:.1e}")
    (arguments.output_dir / "README.md").write_text(card(arguments.model_name_or_path, model.config, tables))


def feature_inputs(encoder: MageModel) -> dict[str, torch.Tensor]:
    config = encoder.config
    if encoder.vqvae is None:
        return {"input_ids": torch.randint(config.codebook_size, (3, config.sequence_length))}
    return {"pixel_values": torch.rand(3, config.num_channels, *config.image_height_width)}


def step_inputs(config: MageConfig) -> dict[str, torch.Tensor]:
    tokens = torch.randint(config.codebook_size, (3, config.sequence_length))
    tokens[:, ::2] = config.mask_token_id
    return {"input_ids": tokens} | ({"class_labels": torch.tensor([0, -1, 0])} if config.num_classes else {})


def export(model: MagePreTrainedModel, inputs: dict[str, torch.Tensor]):
    shapes = {name: {0: Dim("batch")} for name in inputs}
    with torch.no_grad():
        return OnnxExporter().export(model, inputs, OnnxConfig(dynamic_shapes=shapes))


@torch.no_grad()
def compare(exported, model: MagePreTrainedModel, inputs: dict[str, torch.Tensor]) -> float:
    """The largest relative difference, for a batch of another size."""
    inputs = {name: torch.cat([value, value[:2]]) for name, value in inputs.items()}
    outputs, expected = exported(**inputs), model(**inputs)
    floats = [name for name, value in expected.items() if torch.is_floating_point(value)]
    return max(float((outputs[name] - expected[name]).abs().max() / expected[name].abs().max()) for name in floats)


def describe(name: str, graph, difference: float) -> str:
    rows = [f"| {kind} | `{value.name}` | {value.dtype.name.lower()} | {_shape(value)} |"
            for kind, values in (("input", graph.inputs), ("output", graph.outputs)) for value in values]  # fmt: skip
    head = f"## {name}/model.onnx\n\nDiffers from the model by {difference:.0e} of its largest output.\n\n"
    return head + "| | name | type | shape |\n| --- | --- | --- | --- |\n" + "\n".join(rows)


def _shape(value) -> str:
    return "(" + ", ".join(str(side) if isinstance(side, int) else "batch" for side in value.shape) + ")"


def card(name: str, config: MageConfig, tables: list[str]) -> str:
    height, width = config.image_height_width
    facts = f"""# {Path(name).name}, exported to ONNX

Pixels are in [0, 1], {height} x {width}. Tokens are codes from 0 to {config.codebook_size - 1}, or the mask token
{config.mask_token_id} where unknown; class labels, if any, are -1 for no class. A decoding step gives the scores of
the codes at every position: sample the masked ones, keep the surest, and call it again.

```python
from transformers.exporters.base import ExportedModel

features = ExportedModel.from_pretrained("features")(pixel_values=pixel_values).pooler_output
```
"""
    return "\n\n".join([facts.strip(), *tables]) + "\n"


if __name__ == "__main__":
    main()
