"""What this repository made with its own commands. Run from its root, as in `python -m examples.digits.make`."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run_script(name: str, *flags: object):
    """
    Runs scripts/NAME.py.

    Raises:
        subprocess.CalledProcessError: if it fails.
    """
    subprocess.run([sys.executable, ROOT / "scripts" / f"{name}.py", *map(str, flags)], check=True)


def run_module(name: str, *flags: object):
    """Runs a module of the examples as a command, and raises as `run_script` does."""
    subprocess.run([sys.executable, "-m", name, *map(str, flags)], cwd=ROOT, check=True)
