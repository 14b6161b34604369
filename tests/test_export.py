"""What is exported or recorded works for batches of any size, and gives what the model gives."""

import io

import pytest
import torch
from torch import nn
from torch.export import Dim

from transformers_mage import MageConfig, MageForMaskedImageModeling, sample_masks

pytestmark = pytest.mark.slow


@pytest.fixture
def model(small_config: MageConfig) -> MageForMaskedImageModeling:
    values = {"num_hidden_layers": 1, "decoder_num_hidden_layers": 1, "num_classes": 3}
    return MageForMaskedImageModeling(MageConfig(**{**small_config.to_dict(), **values})).eval()


def features(model: MageForMaskedImageModeling, batch_size: int) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    return model.mage, {"pixel_values": torch.rand(batch_size, 3, 32, 32)}


def masked_modelling(model: MageForMaskedImageModeling, batch_size: int) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    return model, {
        "input_ids": torch.randint(16, (batch_size, 64)),
        "bool_masked_pos": torch.rand(batch_size, 64) < 0.5,
    }


def decoding_step(model: MageForMaskedImageModeling, batch_size: int) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    tokens = torch.randint(16, (batch_size, 64)).masked_fill(torch.rand(batch_size, 64) < 0.5, 1016)
    return model, {"input_ids": tokens, "class_labels": torch.randint(-1, 3, (batch_size,))}


WHAT = pytest.mark.parametrize("what", [features, masked_modelling, decoding_step])


def assert_same(outputs: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]):
    assert set(outputs) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(outputs[name], value, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("strict", [True, False])
@WHAT
def test_torch_export(model, what, strict):
    module, inputs = what(model, 3)
    batch = Dim("batch")
    exported = torch.export.export(
        module, (), inputs, dynamic_shapes={name: {0: batch} for name in inputs}, strict=strict
    )
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)

    _, others = what(model, 5)
    assert_same(torch.export.load(file).module()(**others), module(**others))


@torch.no_grad()
def test_torch_export_of_dropped_positions(model):
    masks = sample_masks(model.config, 3, generator=torch.Generator().manual_seed(0)).as_kwargs()
    del masks["num_masked"]
    inputs = {"input_ids": torch.randint(16, (3, 64)), **masks}

    exported = torch.export.export(model, (), inputs)

    assert_same(exported.module()(**inputs), model(**inputs))
    del inputs["num_dropped"]
    with pytest.raises(Exception, match="`num_dropped` is missing: compiled and exported models need it"):
        torch.export.export(model, (), inputs)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
@WHAT
def test_jit_trace(model, what):
    module, inputs = what(model, 3)

    traced = torch.jit.trace(module, example_kwarg_inputs=inputs, strict=False)

    _, others = what(model, 5)
    assert_same(traced(**others), module(**others))


@torch.no_grad()
@WHAT
def test_compiled_whole(model, what):
    torch.compiler.reset()
    module, inputs = what(model, 3)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    compiled(**inputs)

    _, others = what(model, 5)
    assert_same(compiled(**others), module(**others))


@torch.no_grad()
@WHAT
def test_onnx(model, what, tmp_path):
    """Skipped without the extra `deployment`."""
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    module, inputs = what(model, 3)
    batch = Dim("batch")
    names = list(module(**inputs))
    torch.onnx.export(
        module,
        (),
        tmp_path / "model.onnx",
        kwargs=inputs,
        output_names=names,
        dynamic_shapes={name: {0: batch} for name in inputs},
        dynamo=True,
        verbose=False,
    )

    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    _, others = what(model, 5)
    outputs = session.run(names, {name: value.numpy() for name, value in others.items()})

    assert_same({name: torch.from_numpy(value) for name, value in zip(names, outputs, strict=True)}, module(**others))
