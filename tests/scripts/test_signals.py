"""Signals to a training run: what was learned is saved, or it is said that it is not; and nothing is left behind."""

import errno
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate import Accelerator

from tests.in_process import MODEL_FLAGS, in_child
from transformers_mage import MagePipeline
from transformers_mage.data import views
from transformers_mage.data.streamed import Lane
from transformers_mage.training.run import TrainingRun
from transformers_mage.training.stopping import StopSignals

Script = Callable[[list[str]], None]
LATEST = "Resume with `--resume_from_checkpoint latest`."


@pytest.fixture
def flags(image_folder: Path, tokenizer_folder: Path, tmp_path: Path) -> list[str]:
    flags = ["--dataset_name", image_folder, "--tokenizer_name_or_path", tokenizer_folder, "--max_train_steps", "9"]
    return [*MODEL_FLAGS, *flags, "--checkpointing_steps", "100", "--output_dir", tmp_path / "run"]


def checkpoints(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("checkpoint-*")]


def processes_of(session: int) -> list[int]:
    """The processes of a session that are still there."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, its_session = (path / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(its_session) == session and state != "Z":
            found.append(int(path.name))
    return found


def run_in_session(train_mage: Script, flags: list[str], folder: Path, prepare: Callable[[], None]):
    """Runs a training in a session of its own, its messages in a file."""
    os.setsid()
    (folder / "session").write_text(str(os.getpid()))
    sys.stderr = (folder / "stderr").open("w", buffering=1)
    prepare()
    train_mage(flags)


def outcome(train_mage: Script, flags: list[str], folder: Path, prepare: Callable[[], None]) -> tuple[int, str]:
    """Exit status and last line of a training, of which no process is left."""
    status = in_child(run_in_session, train_mage, flags, folder, prepare)
    time.sleep(0.2)
    assert processes_of(int((folder / "session").read_text())) == []
    said = (folder / "stderr").read_text()
    assert "Traceback" not in said
    return status, said.strip().splitlines()[-1]


def signal_group_after(update: int, number: int) -> Callable[[], None]:
    """Signals the whole group, as a terminal and most clusters do, at the end of an update."""

    def prepare():
        original = TrainingRun._note_update

        def note(run: TrainingRun):
            original(run)
            if run.progress.step == update:
                os.killpg(0, number)

        TrainingRun._note_update = note

    return prepare


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status", "name"),
    [(signal.SIGTERM, 75, "SIGTERM"), (signal.SIGUSR1, 75, "SIGUSR1"), (signal.SIGINT, 130, "Ctrl-C")],
)
@pytest.mark.parametrize("loading", [["--in_memory_limit", "0"], ["--streaming"]], ids=["indexed", "streamed"])
def test_a_signal_to_the_group_leaves_loading_workers_alone(
    train_mage: Script, flags: list[str], tmp_path: Path, number: int, status: int, name: str, loading: list[str]
):
    flags = [*flags, *loading, "--dataloader_num_workers", "2"]
    ended = outcome(train_mage, flags, tmp_path, signal_group_after(3, number))
    assert ended == (status, f"Stopped by {name} after 3 updates. {LATEST}")
    assert checkpoints(tmp_path / "run") == ["checkpoint-3"]


def fail_reading_from(window: int):
    """Reads of a stream fail from a window on, for good; then comes a signal."""
    original, calls = Lane._windows, []

    def windows(lane: Lane, reading: object):
        lane.dataset, dataset = FailingDataset(lane.dataset, calls, window), lane.dataset
        try:
            yield from original(lane, reading)
        finally:
            lane.dataset = dataset

    Lane._windows = windows


class FailingDataset:
    def __init__(self, dataset: object, calls: list, window: int):
        self.dataset, self.calls, self.window = dataset, calls, window

    def shard(self, **kwargs):
        self.calls.append(kwargs)
        if len(self.calls) == self.window:
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        if len(self.calls) >= self.window:
            raise OSError("unreachable")
        return self.dataset.shard(**kwargs)


def test_a_pause_between_attempts_does_not_hold_a_signal_up(train_mage: Script, flags: list[str], tmp_path: Path):
    began = time.monotonic()
    flags = [*flags, "--streaming", "--shuffle_window", "2"]
    status, said = outcome(train_mage, flags, tmp_path, lambda: fail_reading_from(18))
    assert (status, said) == (75, f"Stopped by SIGTERM after 2 updates. {LATEST}")
    assert time.monotonic() - began < 120  # all attempts together would take 511 seconds of pauses
    assert checkpoints(tmp_path / "run") == ["checkpoint-2"]


def signal_at_image(number: int):
    """The signal comes while an image is decoded, where anything that is raised makes it a broken one."""
    original, calls = views.opened, []

    def opened(image: object):
        calls.append(image)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(image)

    views.opened = opened


def test_an_image_that_a_signal_interrupts_is_not_a_broken_one(train_mage: Script, flags: list[str], tmp_path: Path):
    """24 images are decoded for 3 updates, of which the third is made anew when the run is resumed."""
    status, said = outcome(train_mage, [*flags, "--in_memory_limit", "0"], tmp_path, lambda: signal_at_image(20))
    assert (status, said) == (75, f"Stopped by SIGTERM after 2 updates. {LATEST}")
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["skipped_images"] == 0 for line in metrics)


def fill_the_disk():
    def save_state(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    Accelerator.save_state = save_state


def test_a_save_that_failed_is_a_failure(train_mage: Script, flags: list[str], tmp_path: Path):
    def prepare():
        fill_the_disk()
        signal_group_after(3, signal.SIGTERM)()

    status, said = outcome(train_mage, flags, tmp_path, prepare)
    assert status == 1
    assert said == "Stopped by SIGTERM after 3 updates, which could not be saved: there is no checkpoint."


def disturb_writing(number: int):
    """The signal comes when half of the model's folder is written."""
    original = MagePipeline.save_pretrained

    def save(pipe: MagePipeline, folder: Path):
        original(pipe, folder)
        (Path(folder) / "config.json").unlink()
        os.kill(os.getpid(), number)
        original(pipe, folder)

    MagePipeline.save_pretrained = save
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, force=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")], ids=["SIGTERM", "Ctrl-C"]
)
def test_a_model_that_is_being_written_is_completed(
    train_mage: Script, flags: list[str], tmp_path: Path, number: int, name: str
):
    status, _ = outcome(train_mage, flags, tmp_path, lambda: disturb_writing(number))
    assert status == 0
    said = (tmp_path / "stderr").read_text()
    assert f"{name} came at the end: the model in {tmp_path / 'run'} is complete." in said
    assert MagePipeline.from_pretrained(tmp_path / "run")(num_inference_steps=2).images


def test_a_model_that_could_not_be_written_whole_is_not_there_at_all(
    train_mage: Script, flags: list[str], tmp_path: Path
):
    def train(prepare: Callable[[], None]) -> int:
        return in_child(run_in_session, train_mage, [*flags, "--resume_from_checkpoint", "latest"], tmp_path, prepare)

    assert train(lambda: disturb_writing(signal.SIGKILL)) == -signal.SIGKILL
    assert not list((tmp_path / "run").glob("*.safetensors"))
    assert checkpoints(tmp_path / "run") == ["checkpoint-9"]
    assert train(lambda: None) == 0
    assert MagePipeline.from_pretrained(tmp_path / "run")(num_inference_steps=2).images
    assert not list((tmp_path / "run").glob(".*.partial"))


def test_an_agent_passes_on_what_the_terminal_has_sent_already(monkeypatch: pytest.MonkeyPatch):
    """Ctrl-C under `torchrun` or `accelerate launch` reaches a process twice, which is no second Ctrl-C."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    signals = StopSignals()
    with signals.noted():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        assert signals.name == "Ctrl-C"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_second_ctrl_c_does_not_wait(train_mage: Script, flags: list[str], tmp_path: Path):
    def prepare():
        original = TrainingRun.clip_and_step

        def step(run: TrainingRun):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            return original(run)

        TrainingRun.clip_and_step = step

    assert outcome(train_mage, flags, tmp_path, prepare) == (130, "Interrupted.")
    assert checkpoints(tmp_path / "run") == []
