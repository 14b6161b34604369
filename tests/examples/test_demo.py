"""The demo shows what it says, whatever the models; here untrained ones."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessorPil

from examples import demo
from tests.in_process import load_script
from transformers_mage import MageConfig, MageForMaskedImageModeling, MagePipeline, MageScheduler


@pytest.fixture
def cards(small_config: MageConfig, tmp_path: Path) -> dict[str, Path]:
    processor = ViTImageProcessorPil(size={"height": 28, "width": 28}, do_normalize=False)
    folders = {}
    for name, num_classes in (("mage", 0), ("conditional", 10)):
        config = MageConfig(**{**small_config.to_dict(), "image_size": 28, "num_classes": num_classes})
        model = MageForMaskedImageModeling(config).eval()
        folders[name] = tmp_path / name
        pipe = MagePipeline(model, MageScheduler(config.mask_token_id, num_inference_steps=2), processor)
        pipe.save_pretrained(folders[name])
    return folders


@pytest.mark.slow
def test_every_part_is_shown(cards, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "CARDS", cards)
    monkeypatch.setattr(demo, "run_script", lambda name, *flags: load_script(name)([*flags]))

    demo.main(["--output_dir", str(tmp_path / "out"), "--training_steps", "2"])

    sizes = {path.name: Image.open(path).size for path in (tmp_path / "out").glob("*.*")}
    assert set(sizes) == {
        *("generated.png", "steps.png", "steps.gif", "inpainted.png", "classes.png", "neighbours.png", "loss.png"),
    }
    row, column = 58, 58
    assert sizes["inpainted.png"] == (25 * column - 2, 9 * row - 2)
    assert sizes["classes.png"] == (12 * column - 2, 10 * row - 2)
    assert sizes["neighbours.png"] == (10 * column - 2, 20 * row - 2)
    shown = capsys.readouterr().out
    assert all(f"\n{part}. " in shown for part in range(1, 7))
    assert all(f"{half} half: " in shown for half in ("upper", "lower", "left", "right"))
    assert "of 120 a classifier sees" in shown
    assert "raw pixels, the most similar of 299 others is of the same kind in 76%" in shown
    assert "guessing costs 2.77" in shown


def test_nothing_is_its_own_neighbour():
    features = torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.1, 0.0], [0.0, 0.0, 1.0], [0.0, 0.1, 0.9]])

    assert demo.nearest_others(features, count=1).tolist() == [[1], [0], [3], [2]]


def test_a_probe_is_judged_by_the_images_that_it_has_not_seen():
    labels = torch.arange(10).repeat(4)
    features = torch.nn.functional.one_hot(labels, 10).float()
    random = torch.rand(40, 10, generator=torch.Generator().manual_seed(0))

    assert demo.probe_accuracy(features, labels, shots=2, seed=0) == 1
    assert demo.probe_accuracy(random, labels, shots=2, seed=0) < 0.5
