import pytest
import torch

from transformers_mage.progress import progress_bar
from transformers_mage.quickstart import judging
from transformers_mage.quickstart.display import StageDisplay
from transformers_mage.quickstart.judge import Judge, train_judge
from transformers_mage.quickstart.judging import best_of, nearest_images


def stripes(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Grey images of noise, every other one with a bright upper half."""
    images = torch.randint(0, 100, (count, 3, 8, 8), dtype=torch.uint8)
    images[::2, :, :4] += 100
    return images, torch.arange(count) % 2


def test_a_judge_learns_classes_and_is_kept(tmp_path):
    images, labels = stripes(64)
    judge = train_judge(images, labels, num_classes=2, updates=12)
    judge.save(tmp_path / "judge.safetensors")
    features, logits = Judge.load(tmp_path / "judge.safetensors", 2)(images)

    assert torch.equal(logits, judge(images)[1])
    assert (logits.argmax(dim=1) != labels).float().mean() < 0.1
    assert features.shape == (64, 72)


def test_without_labels_it_learns_which_way_up_images_are():
    images = stripes(64)[0][::2]
    judge = train_judge(images, None, num_classes=0, updates=12)

    assert "rotations" in judge.kind
    assert (judge(images)[1].argmax(dim=1) == 0).float().mean() > 0.9
    assert (judge(images.flip(2))[1].argmax(dim=1) == 2).float().mean() > 0.9


def test_the_nearest_training_image_is_found():
    images, _ = stripes(10)
    distances, indices = nearest_images(images[[3, 5]].float().add(5).byte(), images)

    assert indices.tolist() == [3, 5]
    torch.testing.assert_close(distances, torch.full((2,), 5 / 255), atol=1e-5, rtol=0)


def test_the_least_distance_is_best():
    rows = [{"temperature": 2.0, "distance": 3.0}, {"temperature": 6.0, "distance": 1.0}]

    assert best_of(rows)["temperature"] == 6.0


def test_one_display_speaks_for_all_bars(capsys, monkeypatch):
    monkeypatch.setattr("transformers_mage.quickstart.display.SECONDS_BETWEEN_LINES", 0.0)
    display = StageDisplay({"first": 60.0, "second": 30.0})
    with display.of("first"):
        for _ in progress_bar(range(2), desc="Working", mininterval=0):
            pass
    lines = [line for line in capsys.readouterr().err.splitlines() if line]

    assert lines[0] == "[1/2] first: about 0:01:00, then 0:00:30 more"
    assert lines[-1] == "[1/2] first: done in 0:00:00"
    assert any("Working 100%; about 0:01:30 left" in line for line in lines)


@pytest.mark.parametrize(
    ("best", "tried"), [(5.5, [4, 6, 10]), (100.0, [4, 6, 10]), (0.0, [4, 6, 2, 1]), (3.9, [4, 6, 2])]
)
def test_the_sweep_follows_temperatures_to_where_they_get_no_better(monkeypatch, best: float, tried: list[float]):
    class Distances:
        """Those of samples that are their temperature, or of few steps."""

        def features(self, images: torch.Tensor) -> torch.Tensor:
            return images

        def distance(self, features: torch.Tensor, references: torch.Tensor) -> float:
            return abs(float(features) - best)

    monkeypatch.setattr(judging, "generate", lambda pipe, count, temperature, **_: torch.tensor(temperature))
    rows = judging.sweep(None, Distances(), torch.empty(0), num_images=256)

    assert [row["temperature"] for row in rows if row["num_inference_steps"] == 20] == tried
    chosen = best_of(rows)["temperature"]
    assert [row for row in rows if row["num_inference_steps"] < 20] == [
        {"temperature": chosen, "num_inference_steps": steps, "distance": abs(chosen - best)} for steps in (8, 12)
    ]
    # Of few samples chance would choose.
    of_few = judging.sweep(None, Distances(), torch.empty(0), num_images=255)
    assert of_few == [row for row in rows if row["num_inference_steps"] == 20]
