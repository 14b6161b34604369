import evaluate
import pytest
import torch


@pytest.fixture(autouse=True)
def _metrics_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "metrics"))


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
