"""A quickstart from its plan to its card: stages that are done are not done again, and each continues where it was."""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
from .choosing import Plan, as_dict, choose, fitted, plan_of, shares_of
from .display import StageDisplay
from .finishing import Finishing
from .looking import ImageSurvey, look
from .measuring import Machine, Rates, measure, measure_rates, seconds_per_way
from .preparing import prepare
from .recipes import SCRIPTS, TRAININGS, decoder_losses, recipe_text, recipes_of
from .sizes import Sizes

# Of the hours, for looking at the images.
LOOKING_SHARE = 0.02
SHOWN_IMAGES = 60
# Of a process, from the command to here: Python, torch, transformers.
START_SECONDS = 6.0
# As each of these begins, it is given what fits into the time that is really left.
FITTED = ("tokenizer", "decoder", "mage", "conditional", "judge", "sweep", "scores")

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
        self.started = time.perf_counter() - START_SECONDS

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
        elif self._spent_note.exists():
            self.started -= read_json(self._spent_note)["seconds"]
        self.state.wait_for_everyone()
        there = read_json(note)
        check_same(self.folder, "images or another plan", there["asked"], json.loads(json.dumps(self.asked)))
        self.survey = ImageSurvey(**there["survey"])
        self.machine = Machine(**there["machine"])
        self.first = self.chosen = plan_of(there["plan"])
        self._say(self._tables())

    @property
    def spent(self) -> float:
        """Seconds of the hours that are gone, those of earlier processes included."""
        return time.perf_counter() - self.started

    @property
    def _spent_note(self) -> Path:
        return self.runs / "spent.json"

    def _note_spent(self):
        if self.state.is_main_process:
            write_json(self._spent_note, {"seconds": round(self.spent, 1)})

    def _check_free(self):
        there = [name for name in ("config.json", "model_index.json", "README.md") if (self.folder / name).exists()]
        if there:
            raise FolderError(f"{self.folder} holds something else ({', '.join(there)}). Give another `--output_dir`.")

    def _make_plan(self, note: Path):
        self._say(f"Looking at {self.spec.name}.")
        seen = look(self.spec, max(3600 * LOOKING_SHARE * self.hours, 5.0))
        machine = measure(seconds_per_way(self.hours))
        plan = choose(
            seen.survey,
            machine,
            self.hours,
            lambda sizes: self._rates_of(seen.survey, machine, sizes),
            spent=lambda: self.spent,
            can_sharpen=can_sharpen(),
            image_size=self.image_size,
        )
        if not self.state.is_main_process:
            return
        pictures = [Image.fromarray(thumbnail) for thumbnail in seen.thumbnails[:SHOWN_IMAGES]]
        self._save_picture(draw_grid(pictures, num_columns=12), "images")
        for path, text in self._recipe_texts(plan, machine).items():
            write_text(path, text)
        made = {"survey": dataclasses.asdict(seen.survey), "machine": dataclasses.asdict(machine)}
        self._note_spent()
        write_json(note, {"asked": self.asked, **made, "plan": as_dict(plan), "planning": round(self.spent, 1)})

    def _rates_of(self, survey: ImageSurvey, machine: Machine, sizes: Sizes) -> Rates:
        losses = decoder_losses(sizes) if can_sharpen() else None
        return measure_rates(machine, sizes, losses, survey.is_grey, seconds_per_way(self.hours))

    def _recipe_texts(self, plan: Plan, machine: Machine) -> dict[Path, str]:
        texts = {}
        for name, values in recipes_of(plan, machine, self.folder, self.seed).items():
            path = self.folder / "recipes" / f"{name}.yaml"
            texts[path] = recipe_text(path, name, values, machine.num_threads)
        return texts

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
        finish = {name: self._finish(name) for name in finishing.stages()}
        single = {name: lambda name=name: self._run_command(name) for name in self._recipes()}
        before = ("tokenizer", "codes", "tokens_validation", "tokens", "decoder", "mage", "conditional")
        after = ("probe", "comparison")
        return {
            "data": self._prepare,
            **{name: single[name] for name in before if name in single},
            **{name: finish[name] for name in finish if name != "card"},
            **{name: single[name] for name in after if name in single},
            "card": finish["card"],
        }

    def _finish(self, name: str) -> Callable[[], None]:
        """A stage of the end, by the plan as it is by then; in one process, the others waiting."""

        def stage():
            finishing = Finishing(self.folder, self.survey, self.chosen, self.spec.name, self.publication)
            finishing.stages()[name]()

        return lambda: stage() if self.state.is_main_process else None

    def _recipes(self) -> list[str]:
        return [name for name in SCRIPTS if (self.folder / "recipes" / f"{name}.yaml").exists()]

    def run(self):
        """
        Does what is planned and not done yet.

        Raises:
            InterruptedRunError: after a signal, when what was learned is saved.
        """
        torch.set_num_threads(self.machine.num_threads)
        stages = self.stages()
        todo = [name for name in stages if not self._mark(name).exists()]
        done = [name for name in stages if name not in todo]
        if done:
            self._say(f"Done already: {', '.join(done)}.")
        planned = {name: self.chosen.seconds.get(name, 0.0) for name in todo}
        display = StageDisplay(planned, self.state.is_main_process)
        lock = locked(self.runs) if self.state.is_main_process else _nothing()
        with lock:
            for name in stages:
                self._give(name, todo)
                if name not in todo:
                    continue
                display.seconds.update({later: self.chosen.seconds.get(later, 0.0) for later in todo})
                with display.of(name):
                    self._do(name, stages[name])
        display.close()
        self._say(self._report())

    def _given(self, name: str) -> Path:
        return self.runs / "given" / f"{name}.json"

    def _give(self, name: str, todo: list[str]):
        """
        Fits the plan to what is left of the time, as a stage begins. It is written down: a stage that is continued has
        what it was given when it began.
        """
        note = self._given(name)
        if self.state.is_main_process and name in FITTED and name in todo and not note.exists():
            left = 3600 * self.hours - self.spent
            shares = shares_of(self.survey, can_sharpen=bool(self.chosen.updates["decoder"]))
            rest = todo[todo.index(name) :]
            write_json(note, as_dict(fitted(self.chosen, self.survey, left, shares, rest, self.first)))
            self._note_spent()
        self.state.wait_for_everyone()
        if note.exists():
            before, self.chosen = self.chosen, plan_of(read_json(note))
            self._follow(before)
        self.state.wait_for_everyone()

    def _follow(self, before: Plan):
        """Writes the recipes anew, those aside that somebody has edited."""
        if not self.state.is_main_process:
            return
        made = self._recipe_texts(before, self.machine)
        for path, text in self._recipe_texts(self.chosen, self.machine).items():
            if path.exists() and path.read_text(encoding="utf-8") == made[path] != text:
                write_text(path, text)

    def _mark(self, name: str) -> Path:
        return self.runs / "done" / f"{name}.json"

    def _do(self, name: str, stage: Callable[[], None]):
        start = time.perf_counter()
        try:
            stage()
        except InterruptedRunError as error:
            self._note_spent()
            said = "Stopped; what was learned is saved. Give the same command again to continue." if str(error) else ""
            raise InterruptedRunError(said, error.exit_status) from error
        self.state.wait_for_everyone()
        if self.state.is_main_process:
            write_json(self._mark(name), {"seconds": round(time.perf_counter() - start, 1)})
        self._note_spent()
        self.state.wait_for_everyone()

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
        write_text(
            self.runs / "times.md", markdown_table(("seconds", "planned", "given", "taken"), self._times()) + "\n"
        )
        pushed = f", and is at https://huggingface.co/{self.publication.repo_id}" if self.publication.repo_id else ""
        hours = self.spent / 3600
        return (
            f"\n{self.folder} is complete{pushed}. It took {hours:.2f} of {self.hours:g} hours "
            f"({hours / self.hours - 1:+.0%}); {self.runs / 'times.md'} says what for.\n"
            f"Read {self.folder / 'README.md'}, look at {self.folder / 'pictures'}, and play with it:\n"
            f"    MAGE_MODEL={self.folder} python examples/space/app.py"
        )

    def _times(self) -> list[tuple[str, str, str, str]]:
        """Of each stage: as planned in the beginning, as given when it began, and as it was."""
        there = read_json(self.runs / "plan.json")
        planned = self.first.seconds
        rows = [("looking and measuring", "", "", f"{there['planning']:.0f}")]
        for name in self.stages():
            note = self._given(name)
            given = plan_of(read_json(note)).seconds if note.exists() else planned
            taken = read_json(self._mark(name))["seconds"]
            rows.append((name, f"{planned.get(name, 0):.0f}", f"{given.get(name, 0):.0f}", f"{taken:.0f}"))
        return rows


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
