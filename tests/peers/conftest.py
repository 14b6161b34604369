"""What other libraries' own suites expect of pytest. `make test-peers` runs them."""

import re
import sys

import pytest

from tests.peers.diffusers_tests import CHECKOUT
from tests.peers.fetch import PEERS

sys.path.insert(0, str(PEERS))

MARKERS = (
    "accelerate_tests",
    "all_flash_attn_test",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "flash_attn_kernels_test",
    "flash_attn_mps_test",
    "generate",
    "is_pipeline_test",
    "is_training_test",
    "tensor_parallel_ci",
    "torch_compile_test",
    "torch_export_test",
    "training_ci",
)


def pytest_configure(config: pytest.Config):
    """Makes the marks of transformers' and diffusers' tests known."""
    helpers = CHECKOUT / "tests" / "testing_utils.py"
    of_diffusers = set(re.findall(r"pytest\.mark\.(\w+)", helpers.read_text())) if helpers.is_file() else set()
    for marker in (*MARKERS, *sorted(of_diffusers)):
        config.addinivalue_line("markers", f"{marker}: of another library's own tests")
