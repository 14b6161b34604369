"""A quickstart from its plan to its card: stages that are done are not done again, and each continues where it was."""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from PIL import Image

from ..data.loading import DatasetSpec
from ..files import FolderError, check_same, locked, read_json, write_json, write_text, written_aside
from ..hub.cards import markdown_table
from ..hub.publishing import Publication
from ..training.stopping import InterruptedRunError
from ..visualization import draw_grid
from .choosing import Plan, Sizes, as_dict, choose, plan_of
from .display import StageDisplay
from .finishing import Finishing
from .looking import ImageSurvey, look
from .measuring import Machine, Rates, measure, measure_rates
from .preparing import prepare
from .recipes import SCRIPTS, TRAININGS, decoder_losses, recipes_of, write_recipe

# Of the hours, for looking at the images.
LOOKING_SHARE = 0.02
SHOWN_IMAGES = 60

NOWHERE = Publication()

Command = Callable[[list[str]], None]


class Quickstart:
    """
    Args:
        spec ([`DatasetSpec`]): the training split of the images.
        hours (`float`): that everything may take.
        output_dir (`str` or `Path`): where everything goes: the repository, and in its `runs` what leads to it.
        command (`Callable`): from the name of a single command to what runs its command line.
        seed (`int`): of everything.
        image_size (`int`, *optional*): side of the images, in pixels; chosen by default.
        publication ([`Publication`]): where the repository goes.
    """

    def __init__(
        self,
        spec: DatasetSpec,
        hours: float,
        output_dir: str | Path,
        command: Callable[[str], Command],
        seed: int = 0,
        image_size: int | None = None,
        publication: Publication = NOWHERE,
    ):
        self.spec = spec
        self.hours = hours
        self.folder = Path(output_dir)
        self.runs = self.folder / "runs"
        self.command = command
        self.seed = seed
        self.image_size = image_size
        self.publication = publication
        self.state = PartialState()
        self.started = time.perf_counter()

    @property
    def asked(self) -> dict[str, Any]:
        """What a folder is made for."""
        spec = dataclasses.asdict(self.spec)
        return {"hours": self.hours, "image_size": self.image_size, "seed": self.seed, "data": spec}

    def plan(self):
        """
        Looks, measures and chooses, unless that has been done, and says what was chosen.

        Raises:
            DataError: in one line, where nothing can be learned from the images.
            FolderError: if the folder was made for something else.
        """
        note = self.runs / "plan.json"
        if not note.exists():
            self._check_free()
            self._make_plan(note)
        self.state.wait_for_everyone()
        there = read_json(note)
        check_same(self.folder, "images or another plan", there["asked"], json.loads(json.dumps(self.asked)))
        self.survey = ImageSurvey(**there["survey"])
        self.machine = Machine(**there["machine"])
        self.chosen = plan_of(there["plan"])
        self._say(self._tables())

    def _check_free(self):
        there = [name for name in ("config.json", "model_index.json", "README.md") if (self.folder / name).exists()]
        if there:
            raise FolderError(f"{self.folder} holds something else ({', '.join(there)}). Give another `--output_dir`.")

    def _make_plan(self, note: Path):
        self._say(f"Looking at {self.spec.name}.")
        seen = look(self.spec, max(3600 * LOOKING_SHARE * self.hours, 5.0))
        machine = measure()
        plan = choose(
            seen.survey,
            machine,
            self.hours,
            lambda sizes: self._rates_of(machine, sizes),
            seconds_spent=time.perf_counter() - self.started,
            can_sharpen=can_sharpen(),
            image_size=self.image_size,
        )
        if not self.state.is_main_process:
            return
        pictures = [Image.fromarray(thumbnail) for thumbnail in seen.thumbnails[:SHOWN_IMAGES]]
        self._save_picture(draw_grid(pictures, num_columns=12), "images")
        for name, values in recipes_of(plan, machine, self.folder, self.seed).items():
            write_recipe(self.folder / "recipes" / f"{name}.yaml", name, values, machine.num_threads)
        made = {"survey": dataclasses.asdict(seen.survey), "machine": dataclasses.asdict(machine)}
        spent = {"planning": time.perf_counter() - self.started}
        write_json(note, {"asked": self.asked, **made, "plan": as_dict(plan), "spent": spent})

    def _rates_of(self, machine: Machine, sizes: Sizes) -> Rates:
        losses = decoder_losses(sizes) if can_sharpen() else None
        batches = (sizes.tokenizer_batch, sizes.model_batch)
        return measure_rates(machine, sizes.tokenizer, sizes.model, sizes.num_codes, batches, losses)

    def _tables(self) -> str:
        parts = {
            "The images": self.survey.rows(),
            "The machine": self.machine.rows(),
            "The plan": self.chosen.rows(),
        }
        texts = [markdown_table((title, ""), rows) for title, rows in parts.items()]
        return "\n\n" + "\n\n".join(texts) + f"\n\nThe images are in {self.folder / 'pictures' / 'images.png'}.\n"

    def _say(self, text: str):
        if self.state.is_main_process:
            print(text, flush=True)

    def _save_picture(self, picture: Image.Image, name: str):
        (self.folder / "pictures").mkdir(parents=True, exist_ok=True)
        with written_aside(self.folder / "pictures" / f"{name}.png") as aside:
            picture.save(aside, format="PNG")

    def stages(self) -> dict[str, Callable[[], None]]:
        """What is to be done, in this order."""
        finishing = Finishing(self.folder, self.survey, self.chosen, self.spec.name, self.publication)
        single = {name: lambda name=name: self._run_command(name) for name in self._recipes()}
        before = ("tokenizer", "codes", "tokens_validation", "tokens", "decoder", "mage", "conditional")
        after = ("probe", "comparison")
        return {
            "data": self._prepare,
            **{name: single[name] for name in before if name in single},
            **{name: self._alone(function) for name, function in finishing.judging().items()},
            **{name: single[name] for name in after if name in single},
            "card": self._alone(finishing.write_card),
        }

    def _recipes(self) -> list[str]:
        return [name for name in SCRIPTS if (self.folder / "recipes" / f"{name}.yaml").exists()]

    def run(self):
        """
        Does what is planned and not done yet.

        Raises:
            InterruptedRunError: after a signal, when what was learned is saved.
        """
        torch.set_num_threads(self.machine.num_threads)
        # There is one display for everything.
        datasets.disable_progress_bars()
        stages = self.stages()
        todo = [name for name in stages if not self._mark(name).exists()]
        done = [name for name in stages if name not in todo]
        if done:
            self._say(f"Done already: {', '.join(done)}.")
        planned = {name: self.chosen.seconds.get(name, 0.0) for name in todo}
        display = StageDisplay(planned, self.state.is_main_process)
        lock = locked(self.runs) if self.state.is_main_process else _nothing()
        with lock:
            for name in todo:
                with display.of(name):
                    self._do(name, stages[name])
        display.close()
        self._say(self._report())

    def _mark(self, name: str) -> Path:
        return self.runs / "done" / f"{name}.json"

    def _do(self, name: str, stage: Callable[[], None]):
        start = time.perf_counter()
        try:
            stage()
        except InterruptedRunError as error:
            said = "Stopped; what was learned is saved. Give the same command again to continue." if str(error) else ""
            raise InterruptedRunError(said, error.exit_status) from error
        self.state.wait_for_everyone()
        if self.state.is_main_process:
            write_json(self._mark(name), {"seconds": round(time.perf_counter() - start, 1)})
        self.state.wait_for_everyone()

    def _alone(self, function: Callable[[], None]) -> Callable[[], None]:
        """In one process, the others waiting."""
        return lambda: function() if self.state.is_main_process else None

    def _prepare(self):
        if self.state.is_main_process:
            side, limit = self.chosen.sizes.tokenizer.image_size, self.chosen.num_images
            prepare(self.spec, self.survey, side, limit, self.runs / "data", self.seed)

    def _run_command(self, name: str):
        """A single command with its recipe; a training continues from its last checkpoint."""
        words = ["--config", str(self.folder / "recipes" / f"{name}.yaml")]
        if name in TRAININGS:
            if self.state.is_main_process:
                self._link_pictures(name)
            self.state.wait_for_everyone()
            if any((self.runs / name).glob("checkpoint-*")) or (self.runs / name / "metrics.jsonl").exists():
                words += ["--resume_from_checkpoint", "latest"]
            self.state.wait_for_everyone()
        # Each stage has a precision of its own, and Accelerate keeps the first one that it was told.
        AcceleratorState._reset_state()
        GradientState._reset_state()
        self.command(SCRIPTS[name])(words)

    def _link_pictures(self, name: str):
        """Lets the pictures that a training draws be seen where all pictures are."""
        shown, drawn = self.folder / "pictures" / name, self.runs / name / "samples"
        shown.mkdir(parents=True, exist_ok=True)
        drawn.parent.mkdir(parents=True, exist_ok=True)
        if not drawn.exists():
            drawn.symlink_to(shown.resolve(), target_is_directory=True)

    def _report(self) -> str:
        """What is there now, how long it took, and what can be done with it."""
        spent = {name: read_json(self._mark(name))["seconds"] for name in self.stages()}
        before = read_json(self.runs / "plan.json")["spent"]["planning"]
        total, planned = sum(spent.values()), self.chosen.total_seconds
        whole = (total + before) / 3600
        rows = [(name, f"{self.chosen.seconds.get(name, 0):.0f}", f"{seconds:.0f}") for name, seconds in spent.items()]
        write_text(self.runs / "times.md", markdown_table(("stage", "seconds planned", "seconds taken"), rows) + "\n")
        pushed = f", and is at https://huggingface.co/{self.publication.repo_id}" if self.publication.repo_id else ""
        return (
            f"\n{self.folder} is complete{pushed}. It took {whole:.2f} hours of the {self.hours:g}; the stages took "
            f"{total / 60:.1f} minutes where {planned / 60:.1f} were planned ({total / planned - 1:+.0%}).\n"
            f"Read {self.folder / 'README.md'}, look at {self.folder / 'pictures'}, and play with it:\n"
            f"    MAGE_MODEL={self.folder} python examples/space/app.py"
        )


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def can_sharpen() -> bool:
    """Whether the network of the decoder's perceptual loss is installed."""
    from ..image_networks import load_image_network

    try:
        load_image_network("efficientnet-lite0")
    except ImportError:
        return False
    return True


__all__ = ["Plan", "Quickstart", "can_sharpen"]
