"""
Fetches the tests that transformers and diffusers have for models and pipelines, of the installed versions.

    python -m tests.peers.fetch

transformers' source distribution holds the files at the top of its `tests/` (its wheel holds none), which come into
`build/peers/transformers_tests`. What these import from folders below is not there, and gets stand-ins without tests
(generation of text, export to other runtimes). diffusers' distributions hold none: its repository is cloned.
"""

import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path, PurePosixPath

from tests.peers.diffusers_tests import CHECKOUT

PEERS = Path(__file__).parents[2] / "build" / "peers"

STAND_INS = {
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    # Values that every configuration takes, all of them other than the defaults.
    "utils/test_configuration_utils.py": (
        "config_common_kwargs = {\n"
        '    "return_dict": False,\n    "output_hidden_states": True,\n    "output_attentions": True,\n'
        '    "dtype": "float16",\n    "chunk_size_feed_forward": 5,\n    "architectures": ["BertModel"],\n'
        '    "id2label": {0: "label"},\n    "label2id": {"label": 0},\n    "problem_type": "regression",\n}\n'
    ),
}


def fetch_transformers():
    """Writes the tests in the source distribution into `build/peers`, unless they are there."""
    folder = PEERS / "transformers_tests"
    stamp = folder / "VERSION"
    if stamp.is_file() and stamp.read_text() == version("transformers"):
        return
    with tempfile.TemporaryDirectory() as download:
        command = ["pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest", download]
        subprocess.run([sys.executable, "-m", *command, f"transformers=={version('transformers')}"], check=True)
        (archive,) = Path(download).glob("*.tar.gz")
        _extract_tests(archive, folder)
    for name, source in STAND_INS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(source)
    (folder / "__init__.py").touch()
    stamp.write_text(version("transformers"))


def fetch_diffusers():
    """Clones the repository at the installed version's tag, unless it is there."""
    if CHECKOUT.is_dir():
        return
    repository, tag = "https://github.com/huggingface/diffusers", f"v{version('diffusers')}"
    command = ["git", "clone", "--quiet", "--depth", "1", "--branch", tag, repository, str(CHECKOUT)]
    subprocess.run(command, check=True)


def _extract_tests(archive: Path, folder: Path):
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts
            if member.isfile() and len(parts) == 3 and parts[1] == "tests" and parts[2].endswith(".py"):
                (folder / parts[2]).write_bytes(tar.extractfile(member).read())


if __name__ == "__main__":
    fetch_transformers()
    fetch_diffusers()
