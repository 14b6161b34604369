"""A Hub of the tests' own, for this process and for others."""

from collections.abc import Iterator
from pathlib import Path

import datasets
import huggingface_hub
import pytest
from huggingface_hub import constants

from transformers_mage import MagePipeline

from .server import HubServer

CARDS = Path(__file__).parents[2] / "model_cards"


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def hub(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """An empty Hub, to which this process goes with an empty cache and without a token."""
    server.hub.repositories.clear()
    server.hub.large_files.clear()
    server.requests.clear()
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    # Shared by the functions of the library's top, and made when it was imported.
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.endpoint)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.endpoint)
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return server


@pytest.fixture
def logged_in(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    return hub


@pytest.fixture
def saved(small_pipeline: MagePipeline, tmp_path: Path) -> Path:
    """The folder of a small pipeline."""
    small_pipeline.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"
