"""What becomes of a trained model: its folder with a card and, where it is asked for, a repository on the Hub."""

import logging
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..carried_code import write_code
from ..files import filled_aside
from ..hub_folders import check_repository, push_folder, remove_other_weights

logger = logging.getLogger(__name__)

# Writes a model to a folder.
Write = Callable[[Path], None]
CARD = "README.md"
HUB_STRATEGIES = ("end", "every_save", "checkpoint", "all_checkpoints")


@dataclass(frozen=True)
class Publication:
    """
    Where a folder goes.

    Attributes:
        repo_id (`str`, *optional*): the repository, or nowhere.
        strategy (`str`): when: see `--hub_strategy`.
        token (`str`, *optional*): by default the one of `hf auth login`, or `HF_TOKEN`.
        private (`bool`, *optional*): whether a repository that is created is private.
        with_code (`bool`): let the folder carry its code even though it goes nowhere.
    """

    repo_id: str | None = None
    strategy: str = "end"
    token: str | None = None
    private: bool | None = None
    with_code: bool = False

    @property
    def follows_checkpoints(self) -> bool:
        return self.repo_id is not None and self.strategy != "end"

    @property
    def carries_code(self) -> bool:
        return self.with_code or self.repo_id is not None

    def check(self) -> "Publication":
        """
        The same with the repository's full name, once it is known that it may be written to.

        Raises:
            OSError: in one line, where the token is wrong or the name is another's.
        """
        if self.repo_id is None:
            return self
        name = check_repository(self.repo_id, self.token, self.private)
        return Publication(name, self.strategy, self.token, self.private, self.with_code)


class Publisher:
    """
    Pushes a model's folder in the background while it trains, and at its end.

    Args:
        folder (`Path`): the model's folder, the training's `output_dir`.
        publication ([`Publication`]): where it goes.
    """

    def __init__(self, folder: str | Path, publication: Publication):
        self.folder = Path(folder)
        self.publication = publication
        self._background = ThreadPoolExecutor(1)
        self._push: Future | None = None

    @classmethod
    def of(cls, arguments: Any, accelerator: Accelerator) -> "Publisher":
        """
        Where the command line says; in the main process, which is the one that pushes, with the name in full.

        Args:
            arguments: with `output_dir` and `publication`, see `TrainingArguments`.
        """
        publication = arguments.publication
        return cls(arguments.output_dir, publication.check() if accelerator.is_main_process else publication)

    @property
    def name(self) -> str:
        """The repository's name or, where there is none, the folder's."""
        return self.publication.repo_id or self.folder.resolve().name

    @property
    def is_free(self) -> bool:
        """Whether the last push is over: until then its files stay as they are."""
        return self._push is None or self._push.done()

    def publish_checkpoint(self, step: int, write: Write, checkpoint: Path | None = None):
        """Writes the folder and sends it off; what goes wrong on the way is told and does not stop the training."""
        self._tell_trouble()
        # New models draw their weights before they are given others, and the training must not notice.
        with torch.random.fork_rng(devices=[]):
            self._fill(write)
        also = self._checkpoint_files(checkpoint)
        self._push = self._background.submit(self._send, f"Training in progress, step {step}", also)

    def write(self, write: Write):
        """
        Writes the folder. It is at no time half a model's.

        Args:
            write (`Callable`): writes the model to the folder that it is given.
        """
        if self._push is not None:
            self._push.exception()
        self._fill(write)

    def push(self):
        """
        Sends the folder off if it goes anywhere.

        Raises:
            OSError: in one line, where it could not be sent. The folder is complete then.
        """
        if self.publication.repo_id is None:
            return
        try:
            address = self._send("End of training", ())
        except Exception as error:
            raise OSError(f"{self.folder} is written, but could not be pushed: {error}") from error
        logger.info("Pushed to %s.", address)

    def _fill(self, write: Write):
        with filled_aside(self.folder) as aside:
            # One that somebody wrote stays.
            if (self.folder / CARD).exists():
                shutil.copyfile(self.folder / CARD, aside / CARD)
            write(aside)
            if self.publication.carries_code:
                write_code(aside)
        remove_other_weights(self.folder)

    def _send(self, message: str, also: tuple[str, ...]) -> str:
        to = self.publication
        assert to.repo_id is not None
        return push_folder(
            self.folder, to.repo_id, private=to.private, token=to.token, commit_message=message, also=also
        )

    def _checkpoint_files(self, checkpoint: Path | None) -> tuple[str, ...]:
        if checkpoint is None or self.publication.strategy == "every_save":
            return ()
        if self.publication.strategy == "checkpoint":
            return (f"{checkpoint.name}/*",)
        # Those of now: the upload runs while the training goes on, and writes more of them.
        return tuple(f"{path.name}/*" for path in sorted(checkpoint.parent.glob("checkpoint-*")))

    def _tell_trouble(self):
        error = self._push.exception() if self._push is not None else None
        if error is not None:
            logger.warning("The last push failed, the next one follows with the next checkpoint: %s", error)


__all__ = ["HUB_STRATEGIES", "Publication", "Publisher"]
