import subprocess
import sys

import pytest

import transformers_mage

OPTIONAL = ["accelerate", "datasets", "evaluate", "kornia", "matplotlib", "sklearn", "scipy", "tensorboard"]


@pytest.mark.slow
def test_import_needs_no_more_than_transformers_and_diffusers():
    """In an interpreter in which the optional packages cannot be imported."""
    script = f"""
import sys

import pytest
for name in {OPTIONAL}:
    sys.modules[name] = None
import transformers_mage

import pytest
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stderr


def test_public_names_exist():
    assert all(hasattr(transformers_mage, name) for name in transformers_mage.__all__)
