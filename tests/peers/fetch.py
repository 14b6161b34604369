"""
Fetches the tests that transformers and diffusers publish for models, which are in their source distributions only.

    python tests/peers/fetch.py

They come from the installed versions, into `build/peers/transformers_tests` and `build/peers/diffusers_tests`. The
distributions hold the files at the top of `tests/` alone: what these import from folders below it is not there, and
gets stand-ins that test nothing (generation of text, export to other runtimes).
"""

import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path, PurePosixPath

PEERS = Path(__file__).parents[2] / "build" / "peers"

STAND_INS = {
    "transformers": {
        "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
        "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
        # Values that every configuration takes, all of them other than the defaults.
        "utils/test_configuration_utils.py": (
            "config_common_kwargs = {\n"
            '    "return_dict": False,\n    "output_hidden_states": True,\n    "output_attentions": True,\n'
            '    "dtype": "float16",\n    "chunk_size_feed_forward": 5,\n    "architectures": ["BertModel"],\n'
            '    "id2label": {0: "label"},\n    "label2id": {"label": 0},\n    "problem_type": "regression",\n}\n'
        ),
    },
    "diffusers": {},
}


def fetch(package: str):
    """Writes the tests in `package`'s source distribution into `build/peers`, unless they are there."""
    folder = PEERS / f"{package}_tests"
    stamp = folder / "VERSION"
    if stamp.is_file() and stamp.read_text() == version(package):
        return
    with tempfile.TemporaryDirectory() as download:
        command = ["pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest", download]
        subprocess.run([sys.executable, "-m", *command, f"{package}=={version(package)}"], check=True)
        (archive,) = Path(download).glob("*.tar.gz")
        _extract_tests(archive, folder)
    for name, source in STAND_INS[package].items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(source)
    (folder / "__init__.py").touch()
    stamp.write_text(version(package))


def _extract_tests(archive: Path, folder: Path):
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts
            if member.isfile() and len(parts) == 3 and parts[1] == "tests" and parts[2].endswith(".py"):
                (folder / parts[2]).write_bytes(tar.extractfile(member).read())


if __name__ == "__main__":
    for package in STAND_INS:
        fetch(package)
