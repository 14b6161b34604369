"""What Inference Endpoints answer."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessorPil

from transformers_mage import MageForImageClassification, MagePipeline, MageScheduler
from transformers_mage.handler import MAX_PIXELS, EndpointHandler, write_image

from .conftest import CARDS


@pytest.fixture(scope="module")
def endpoint() -> EndpointHandler:
    return EndpointHandler(str(CARDS / "mage-digits"))


@pytest.fixture(scope="module")
def conditional() -> EndpointHandler:
    return EndpointHandler(str(CARDS / "mage-digits-conditional"))


@pytest.fixture
def photo(endpoint: EndpointHandler) -> Image.Image:
    return endpoint.pipe(generator=torch.Generator().manual_seed(3)).images[0]


def read(answer: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer))))


def test_images_of_a_seed(endpoint: EndpointHandler):
    answer = endpoint({"inputs": 2, "parameters": {"seed": 7, "num_inference_steps": 4}})

    expected = endpoint.pipe(num_images=2, num_inference_steps=4, generator=torch.Generator().manual_seed(7)).images
    assert answer["seed"] == 7
    for got, image in zip(answer["images"], expected, strict=True):
        assert (read(got) == np.asarray(image)).all()


def test_a_seed_is_drawn_and_told(endpoint: EndpointHandler):
    answer = endpoint({"parameters": {"num_inference_steps": 4}})

    again = endpoint({"parameters": {"num_inference_steps": 4, "seed": answer["seed"]}})
    assert again == answer


def test_classes(conditional: EndpointHandler):
    names = conditional.pipe.model.config.id2label
    settings = {"seed": 0, "guidance_scale": 2.0, "guidance_interval": [0.5, 1.0], "num_inference_steps": 4}

    by_name = conditional({"inputs": [names[3], names[5]], "parameters": settings})
    by_id = conditional({"inputs": [3, 5], "parameters": settings})

    assert len(by_name["images"]) == 2
    assert by_name == by_id
    assert by_id["images"] != conditional({"inputs": 2, "parameters": settings})["images"]


def test_images_like_others_need_a_model_that_is_led_by_them(endpoint: EndpointHandler, photo: Image.Image):
    answer = endpoint({"inputs": 2, "parameters": {"like": write_image(photo)}})

    assert "`like` was passed, but this model is not led by representations" in answer["error"]


def test_inpainting_keeps_what_the_mask_keeps(endpoint: EndpointHandler, photo: Image.Image):
    mask = Image.new("L", photo.size)
    mask.paste(255, (0, 16, 32, 32))
    parameters = {"mask_image": write_image(mask), "seed": 0, "feather": 0}

    answer = endpoint({"inputs": "data:image/png;base64," + write_image(photo), "parameters": parameters})

    assert (read(answer["images"][0])[:16] == np.asarray(photo)[:16]).all()


def test_features(endpoint: EndpointHandler, photo: Image.Image):
    answer = endpoint({"inputs": [write_image(photo), photo], "parameters": {"task": "features"}})

    pixels = endpoint.processor(photo, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = endpoint.pipe.model.mage(pixels).pooler_output
    torch.testing.assert_close(torch.tensor(answer["features"]), expected.expand(2, -1))
    one = endpoint({"inputs": photo, "parameters": {"task": "features", "pool": "cls"}})
    assert len(one["features"][0]) == expected.shape[1]


def test_classification(tmp_path: Path, photo: Image.Image):
    classifier = MageForImageClassification.from_pretrained(CARDS / "mage-digits", num_labels=10)
    classifier.save_pretrained(tmp_path)
    ViTImageProcessorPil.from_pretrained(CARDS / "mage-digits").save_pretrained(tmp_path)
    endpoint = EndpointHandler(str(tmp_path))

    answer = endpoint({"inputs": photo, "parameters": {"top_k": 10}})

    assert sum(label["score"] for label in answer) == pytest.approx(1)
    assert [label["score"] for label in answer] == sorted((label["score"] for label in answer), reverse=True)
    several = endpoint({"inputs": [photo, photo]})
    assert [label["label"] for label in several[1]] == [label["label"] for label in answer[:5]]
    assert "features" in endpoint({"inputs": photo, "parameters": {"task": "features"}})
    assert "must be one of" in endpoint({"parameters": {"task": "generation"}})["error"]


BIG = "data:image/png;base64," + write_image(Image.new("1", (MAX_PIXELS // 1000 + 1, 1000)))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ("three", "A request"),
        ({"parameters": 3}, "`parameters` must be a mapping"),
        ({"parameters": {"task": "translation"}}, "`task` must be one of ['features', 'generation']"),
        ({"parameters": {"stepps": 3}}, "has no 'stepps'"),
        ({"parameters": {"num_images": 10_000}}, "`num_images` must be a whole number between 1 and 64"),
        ({"parameters": {"height": 10**6}}, "`height` must be"),
        ({"parameters": {"num_inference_steps": "many"}}, "`num_inference_steps` must be"),
        ({"parameters": {"padding": 10**6}}, "`padding` must be"),
        ({"parameters": {"seed": -1}}, "`seed` must be"),
        ({"parameters": {"temperature": "hot"}}, "`temperature` must be a number"),
        ({"inputs": "three"}, "unconditional"),
        ({"inputs": 10_000}, "At most 64 images can be made at once, got 10000"),
        ({"inputs": "x!", "parameters": {"mask_image": "x"}}, "must be an image in base64"),
        ({"inputs": "aGVsbG8=", "parameters": {"strength": 0.5}}, "holds no image that can be read"),
        ({"inputs": BIG, "parameters": {"strength": 0.5}}, "must have at most"),
        ({"inputs": None, "parameters": {"task": "features"}}, "`inputs` must be an image in base64, got NoneType"),
        ({"inputs": [], "parameters": {"task": "features"}}, "between 1 and 64 images, got 0"),
        ({"inputs": "", "parameters": {"task": "features", "pool": "max"}}, '`pool` must be "mean" or "cls"'),
    ],
)
def test_bad_requests_get_a_message(endpoint: EndpointHandler, request_: object, message: str):
    assert message in endpoint(request_)["error"]


def test_unknown_class(conditional: EndpointHandler):
    assert "No class is called" in conditional({"inputs": "eleven"})["error"]
    assert "At most 64 images" in conditional({"inputs": [1] * 40, "parameters": {"num_images": 2}})["error"]


def test_model_without_a_processor(small_model, tmp_path: Path):
    MagePipeline(small_model, MageScheduler(small_model.config.mask_token_id)).save_pretrained(tmp_path)

    answer = EndpointHandler(str(tmp_path))({"inputs": Image.new("RGB", (8, 8)), "parameters": {"task": "features"}})

    assert "has no image processor" in answer["error"]
