"""A machine that is as fast as a test wants it, so that plans are the same everywhere."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as PilImage

from tests.in_process import forget_accelerate, load_module
from transformers_mage.data.loading import DatasetSpec
from transformers_mage.quickstart import Quickstart, choosing, judging, recipes, running
from transformers_mage.quickstart.measuring import Machine, Rates
from transformers_mage.quickstart.sizes import ModelSize

MACHINE = Machine(
    device="cpu",
    num_processes=1,
    num_threads=1,
    tokenizer_precision="no",
    model_precision="no",
    attention="sdpa",
    tokenizer_flops=1e10,
    model_flops=1e10,
    measured={"tokenizer": {"float32, 1 thread": 100.0}, "model": {"float32, sdpa, 1 thread": 200.0}},
)
RATES = Rates(
    tokenizer=100.0, decoder=0.0, model=200.0, encoding=1000.0, sampling=100.0, judge=1000.0, features=3000.0
)


@pytest.fixture
def steady_machine(monkeypatch):
    """Measures nothing, and has no network for a perceptual loss."""
    monkeypatch.setattr(running, "measure", lambda *_: MACHINE)
    monkeypatch.setattr(running, "measure_rates", lambda *_: RATES)
    monkeypatch.setattr(running, "can_sharpen", lambda: False)
    # As little as there can be of everything.
    monkeypatch.setattr(choosing, "FEWEST_AT_ALL", 8)
    monkeypatch.setattr(choosing, "FEWEST_JUDGED", 12)
    monkeypatch.setattr(choosing, "MODEL_SIZES", (ModelSize(32, 1, 32, 1),))
    monkeypatch.setattr(choosing, "TOKENIZER_WIDTHS", (8,))
    monkeypatch.setattr(judging, "STEPS", 2)
    monkeypatch.setattr(recipes, "LOOKS", 2)


@pytest.fixture
def start(steady_machine) -> Callable[..., Quickstart]:
    """A quickstart of a folder, for so few hours that every stage is as short as it can be."""

    def start(images: Path, output_dir: Path, hours: float = 1e-4) -> Quickstart:
        forget_accelerate()
        return Quickstart(DatasetSpec(str(images)), hours, output_dir, lambda name: load_module(name).main.__wrapped__)

    return start


@pytest.fixture(scope="session")
def arrows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 grey images of 16 x 16 pixels with a bright wedge that points to the right, of two classes."""
    random = np.random.default_rng(0)
    images, labels = [], []
    for number in range(60):
        pixels = np.zeros((16, 16), np.uint8)
        row, column = random.integers(3, 9, 2)
        for width in range(4 + number % 2 * 2):
            pixels[row - 3 + width // 2 : row + 3 - width // 2, column + width - 2] = 255 - 20 * width - number
        images.append(PilImage.fromarray(pixels))
        labels.append(number % 2)
    features = Features({"image": Image(), "label": ClassLabel(names=["short", "long"])})
    dataset = Dataset.from_dict({"image": images, "label": labels}, features=features)
    folder = tmp_path_factory.mktemp("arrows")
    DatasetDict({"train": dataset}).save_to_disk(folder)
    return folder
