"""Two training processes, as `accelerate launch` starts them, that read their data from the Hub and push to it."""

import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from accelerate import PartialState, debug_launcher
from torch.multiprocessing import ProcessExitedException

from tests.in_process import MODEL_FLAGS, load_script
from transformers_mage import MagePipeline
from transformers_mage.training.run import TrainingRun

from .server import HubServer
from .test_by_name import tokens
from .test_datasets_by_name import NAME, NAMES, imagenet  # noqa: F401 (a fixture)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("clean_environment")]
BATCH_SIZE, STEPS_OF_AN_EPOCH = 4, 6


def train(words: list[str], seen: Path | None = None):
    """The script in one of the processes, which notes the labels that it reads."""
    torch.set_num_threads(1)
    if seen is not None:
        note_labels(seen)
    load_script("train_mage")(words)


def note_labels(folder: Path):
    batches = TrainingRun.batches

    def noted(run: TrainingRun):
        for batch in batches(run):
            with (folder / f"{PartialState().process_index}.txt").open("a") as file:
                print(*batch.labels.tolist(), file=file)
            yield batch

    TrainingRun.batches = noted


class Streaming:
    """Trains on the streamed data set in two processes, with a loading worker each."""

    def __init__(self, folder: Path, tokenizer_folder: Path):
        self.folder = folder
        self.flags = [*MODEL_FLAGS, "--tokenizer_name_or_path", tokenizer_folder, "--dataset_name", NAME]
        self.flags += ["--streaming", "--dataloader_num_workers", "1", "--shuffle_window", "3", "--class_conditional"]
        self.flags += ["--train_batch_size", BATCH_SIZE, "--checkpointing_steps", "3", "--learning_rate", "0.01"]
        # Of the same rate whether a run is to end after three updates or after six.
        self.flags += ["--min_learning_rate", "0.01"]

    def run(self, name: str, *flags: object) -> list[list[str]]:
        """The batches of each process, as lines of labels."""
        seen = self.folder / f"{name}-{len(flags)}-labels"
        seen.mkdir()
        words = [*self.flags, "--max_train_steps", STEPS_OF_AN_EPOCH, *flags, "--output_dir", self.folder / name]
        debug_launcher(train, (words, seen), num_processes=2)
        return [(seen / f"{process}.txt").read_text().splitlines() for process in range(2)]

    def weights(self, name: str) -> bytes:
        return (self.folder / name / "model.safetensors").read_bytes()


def test_an_epoch_is_read_once_and_resumes_inside_a_shard(
    imagenet: HubServer,  # noqa: F811
    tokenizer_folder: Path,
    tmp_path: Path,
):
    streaming = Streaming(tmp_path, tokenizer_folder)

    undisturbed = streaming.run("undisturbed")
    for after in (0, 100, 500):
        imagenet.cut(r"GET .*/data/train-.*parquet", after)
    disturbed = streaming.run("disturbed", "--max_train_steps", "3")
    assert not imagenet.cuts
    resumed = streaming.run("disturbed", "--resume_from_checkpoint", "latest", "--logging_steps", "1")

    labels = [label for process in undisturbed for line in process for label in line.split()]
    assert Counter(map(int, labels)) == Counter(range(len(NAMES)))
    assert [process[:3] for process in undisturbed] == disturbed
    assert [process[3:] for process in undisturbed] == resumed
    assert streaming.weights("undisturbed") == streaming.weights("disturbed")
    model = MagePipeline.from_pretrained(tmp_path / "undisturbed").model
    assert model.config.id2label == dict(enumerate(NAMES))


def test_a_missing_token_is_told_by_both_processes(
    imagenet: HubServer,  # noqa: F811
    tokenizer_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
):
    monkeypatch.delenv("HF_TOKEN")

    with pytest.raises(ProcessExitedException, match="exit code 1"):
        Streaming(tmp_path, tokenizer_folder).run("model")

    told = [line for line in capfd.readouterr().err.splitlines() if "gated" in line]
    assert re.search(rf"{NAME} is gated: ask for access at http://.*/{NAME} and log in", told[0])
    assert not (tmp_path / "model").exists()


def test_pushing_with_each_checkpoint(
    logged_in: HubServer, image_folder: Path, tokenizer_folder: Path, tmp_path: Path
):
    """The main process pushes, once for each checkpoint and at the end; what was trained is what is pushed."""
    flags = [*MODEL_FLAGS, "--dataset_name", image_folder, "--tokenizer_name_or_path", tokenizer_folder]
    flags += ["--max_train_steps", "3", "--checkpointing_steps", "1", "--train_batch_size", "4"]
    flags += ["--push_to_hub", "--hub_model_id", "org/model", "--hub_strategy", "every_save"]

    debug_launcher(train, ([*flags, "--output_dir", tmp_path / "model"],), num_processes=2)

    repository = logged_in.hub.repositories["model", "org/model"]
    titles = [commit.title for commit in repository.commits.values()]
    assert titles.count("End of training") == 1
    assert len(titles) == len(set(titles))
    assert "Training in progress, step 1" in titles
    assert not any(name.startswith("checkpoint-") for name in repository.files)
    loaded, written = MagePipeline.from_pretrained("org/model"), MagePipeline.from_pretrained(tmp_path / "model")
    assert torch.equal(tokens(loaded), tokens(written))
