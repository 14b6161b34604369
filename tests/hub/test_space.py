"""What the Space does behind its page, and what its repository holds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import SpaceCard
from PIL import Image

from examples.space.make_space import main as make_space
from examples.space.studio import Studio, StudioError, enlarge, painted, shrink
from tests.test_pipeline_representations import led_model
from transformers_mage import (
    MageConfig,
    MageForImageClassification,
    MageForMaskedImageModeling,
    MageModel,
    MagePipeline,
    MageScheduler,
)

from .conftest import CARDS
from .server import HubServer

MODEL = CARDS / "mage-digits-conditional"


@pytest.fixture(scope="module")
def studio() -> Studio:
    return Studio.load(str(MODEL), sorted((MODEL / "pictures").glob("sample-*.png")))


@pytest.mark.slow
def test_an_image_comes_about(studio: Studio):
    settings = {"class_labels": "three", "guidance_scale": 1.0, "num_inference_steps": 5, "temperature": 6.0}

    pictures = list(studio.make(seed=7, **settings))

    pipe = MagePipeline.from_pretrained(MODEL)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(generator=torch.Generator().manual_seed(7), **settings).images[0]
    assert [done for _, done in pictures] == [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]
    assert pictures[-1][0].tobytes() == enlarge(expected).tobytes()
    assert all(picture.size == (384, 384) for picture, _ in pictures)


def test_what_goes_wrong_arrives(studio: Studio):
    with pytest.raises(ValueError, match="No class is called"):
        list(studio.make(seed=0, class_labels="eleven"))


def test_unconditional_model_needs_no_class():
    studio = Studio.load(str(CARDS / "mage-digits"), [])

    *_, (image, done) = studio.make(seed=0, class_labels=None, guidance_scale=1.0, num_inference_steps=2)

    assert done == 1.0
    assert image.size == (384, 384)
    with pytest.raises(StudioError, match="no examples"):
        studio.neighbours(image)


def test_images_like_one(small_config: MageConfig, small_model: MageForMaskedImageModeling):
    model = led_model(small_config)
    model.mage.vqvae.load_state_dict(small_model.mage.vqvae.state_dict())
    encoder = MageModel(MageConfig(**{**small_config.to_dict(), "vq_config": None})).eval()
    scheduler = MageScheduler(model.config.mask_token_id, num_inference_steps=3, temperature=2.0)
    pipe = MagePipeline(model, scheduler, representation_encoder=encoder)
    pipe.set_progress_bar_config(disable=True)
    studio, photo = Studio(pipe, None, []), Image.effect_noise((40, 60), 50).convert("RGB")

    *_, (image, _) = studio.make(seed=0, like=photo, class_labels=None, guidance_scale=1.0)

    expected = pipe(like=photo, guidance_scale=1.0, generator=torch.Generator().manual_seed(0)).images[0]
    assert image.tobytes() == enlarge(expected).tobytes()
    assert studio.is_led
    assert studio.can_guide
    assert studio.defaults == {"steps": 3, "temperature": 2.0, "guidance": 1.0}


def test_an_example_is_its_own_neighbour(studio: Studio):
    found = studio.neighbours(studio.read(enlarge(studio.examples[3])))

    assert found[0][0].tobytes() == enlarge(studio.examples[3]).tobytes()
    assert found[0][1] == "1.00"
    assert len(studio.examples) == 10


def test_classifier(tmp_path: Path):
    MageForImageClassification.from_pretrained(CARDS / "mage-digits", num_labels=10).save_pretrained(tmp_path)
    studio = Studio.load(str(MODEL), [], str(tmp_path))

    scores = studio.classes(Image.new("RGB", (32, 32)))

    assert sum(scores.values()) == pytest.approx(1)
    assert len(scores) == 10


def test_masks():
    layer = Image.new("RGBA", (32, 32))
    layer.paste((255, 0, 0, 255), (4, 4, 8, 8))

    mask = painted({"layers": [layer]})

    assert np.asarray(mask).sum() == 255 * 16
    for nothing in (None, {}, {"layers": [Image.new("RGBA", (8, 8))]}):
        with pytest.raises(StudioError, match="Paint over"):
            painted(nothing)


def test_enlarging_is_undone(studio: Studio):
    image = studio.examples[0]

    assert shrink(enlarge(image), studio.side).tobytes() == image.tobytes()
    photo = Image.effect_noise((96, 96), 50)
    assert shrink(photo, 32) is photo
    with pytest.raises(StudioError, match="Choose an example"):
        studio.read(None)


def test_repository(logged_in: HubServer, tmp_path: Path):
    logged_in.hub.create("org/digits", MODEL)

    make_space(
        ["--model_name_or_path", "org/digits", "--output_dir", str(tmp_path / "space"), "--push_to_hub", "org/demo"]
    )

    files = logged_in.hub.repositories["space", "org/demo"].files
    assert {"app.py", "studio.py", "requirements.txt", "README.md", "examples/sample-7.png"} <= set(files)
    assert not [name for name in files if "guidance" in name]
    card = SpaceCard.load(tmp_path / "space" / "README.md")
    assert card.data.sdk == "gradio"
    assert card.data.models == ["org/digits"]
    assert b"transformers_mage" not in files["app.py"]


def test_no_such_model(hub: HubServer, tmp_path: Path):
    with pytest.raises(SystemExit, match="neither a folder here nor a model on the Hub"):
        make_space(["--model_name_or_path", "org/nothing", "--output_dir", str(tmp_path)])
