"""`make test-peers` runs these: they need files that `fetch.py` brings, and take minutes."""

import sys

import pytest

from tests.peers.fetch import PEERS

sys.path.insert(0, str(PEERS))

MARKERS = (
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "generate",
    "is_pipeline_test",
)
MARKERS += ("torch_compile_test", "torch_export_test", "training_ci", "tensor_parallel_ci", "is_training_test")


def pytest_configure(config: pytest.Config):
    for marker in (*MARKERS, "all_flash_attn_test", "flash_attn_kernels_test", "flash_attn_mps_test"):
        config.addinivalue_line("markers", f"{marker}: of transformers' own")
