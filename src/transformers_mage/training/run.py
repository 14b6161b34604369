"""What every training run does around its steps: topology, progress, logging, checkpoints, stopping."""

import json
import logging
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import ProjectConfiguration, set_seed
from diffusers.training_utils import EMAModel
from torch import nn
from tqdm.auto import tqdm

from .arguments import TrainingArguments, as_flat_dict, save_recipe
from .checkpointing import Progress, changed_settings, find_checkpoint, save_checkpoint
from .data import Batch, EndlessBatches, create_loader
from .optimization import create_optimizer, create_scheduler, num_updates

logger = get_logger(__name__)

# What a scheduler may requeue on: EX_TEMPFAIL of sysexits.h.
EXIT_INTERRUPTED = 75
# Flags that may differ between a checkpoint and its continuation without a word.
UNIMPORTANT = ("output_dir", "resume_from_checkpoint", "report_to", "logging_steps", "dataloader_num_workers")


class TrainingRun:
    """
    One run of a training script.

    Args:
        arguments ([`TrainingArguments`]): the command line.
        dataset (`torch.utils.data.Dataset`): of known length, indexed by draws (see [`EndlessBatches`]).
        accelerator (`Accelerator`): the topology, from [`create_accelerator`].
    """

    def __init__(self, arguments: TrainingArguments, dataset: torch.utils.data.Dataset, accelerator: Accelerator):
        self.arguments = arguments
        self.dataset = dataset
        self.accelerator = accelerator
        self.progress = Progress()
        self.ema: EMAModel | None = None
        self.averages = Averages(accelerator)
        self.total_steps = num_updates(arguments, len(dataset), self.batch_size)
        self.interrupted_by: int | None = None
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._interrupt)

    @property
    def samples_per_pass(self) -> int:
        """Images in one forward pass of all processes."""
        return self.arguments.train_batch_size * self.accelerator.num_processes

    @property
    def batch_size(self) -> int:
        """Images in one update."""
        return self.samples_per_pass * self.accelerator.gradient_accumulation_steps

    def prepare(self, model: nn.Module) -> nn.Module:
        """Wraps the model for the topology, and makes its optimizer, schedule and moving average."""
        arguments = self.arguments
        self.model, self.optimizer = self.accelerator.prepare(
            model, create_optimizer(model, arguments, self.batch_size)
        )
        self.scheduler = create_scheduler(self.optimizer.optimizer, arguments, len(self.dataset), self.batch_size)
        self.accelerator.register_for_checkpointing(self.progress, self.scheduler)
        if arguments.use_ema:
            self.ema = EMAModel(
                self.trained_parameters(), decay=arguments.ema_decay, use_ema_warmup=True, foreach=True
            )
            self.accelerator.register_for_checkpointing(self.ema)
        return self.model

    def trained_parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def start(self):
        """Resumes where that is asked for, saves the recipe and opens the trackers."""
        arguments = self.arguments
        if arguments.resume_from_checkpoint:
            self._resume()
        if self.accelerator.is_main_process:
            Path(arguments.output_dir).mkdir(parents=True, exist_ok=True)
            save_recipe(arguments, Path(arguments.output_dir, "recipe.yaml"))
        simple = (int, float, str, bool)
        config = {k: v if isinstance(v, simple) else str(v) for k, v in as_flat_dict(arguments).items()}
        self.accelerator.init_trackers(Path(arguments.output_dir).name, config)
        self.progress_bar = tqdm(
            total=self.total_steps,
            initial=self.progress.step,
            desc="Training",
            disable=not self.accelerator.is_local_main_process,
        )
        self.logged_at = (time.perf_counter(), self.progress.samples_seen)
        self.model.train()

    def _resume(self):
        checkpoint = find_checkpoint(self.arguments.resume_from_checkpoint, self.arguments.output_dir)
        if checkpoint is None:
            logger.warning(f"There is no checkpoint in {self.arguments.output_dir}: starting from the beginning.")
            return
        for name, (then, now) in changed_settings(checkpoint, self._settings()).items():
            logger.warning(f"Resuming with another {name} than before: {then} became {now}.")
        self.accelerator.load_state(str(checkpoint))
        self.accelerator.step = 0
        logger.info(f"Resuming {checkpoint} after {self.progress.step} updates.")

    def _settings(self) -> dict:
        flags = {name: value for name, value in as_flat_dict(self.arguments).items() if name not in UNIMPORTANT}
        return flags | {"num_processes": self.accelerator.num_processes}

    def batches(self) -> Iterator[Batch]:
        """This process's batches on its device, from where the run is to its end."""
        accelerator, arguments = self.accelerator, self.arguments
        order = EndlessBatches(
            len(self.dataset),
            arguments.train_batch_size,
            arguments.seed,
            accelerator.process_index,
            accelerator.num_processes,
            self.progress.samples_seen,
        )
        on_gpu = accelerator.device.type == "cuda"
        loader = iter(create_loader(self.dataset, order, arguments.dataloader_num_workers, pin_memory=on_gpu))
        while self.progress.step < self.total_steps:
            batch = next(loader)
            yield {name: value.to(accelerator.device, non_blocking=True) for name, value in batch.items()}

    def generator(self) -> torch.Generator:
        """Randomness of this step of this process, whatever came before."""
        number = self.progress.samples_seen * self.accelerator.num_processes + self.accelerator.process_index
        return torch.Generator().manual_seed((self.arguments.seed * 1_000_003 + number) % 2**63)

    def update(self, loss: torch.Tensor, metrics: dict[str, torch.Tensor]):
        """Backward, and with the last pass of an update its step; then whatever is due: logging, a checkpoint."""
        accelerator = self.accelerator
        accelerator.backward(loss)
        if accelerator.sync_gradients and self.arguments.max_grad_norm > 0:
            metrics["grad_norm"] = accelerator.clip_grad_norm_(self.trained_parameters(), self.arguments.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.averages.add(metrics)
        self.progress.samples_seen += self.samples_per_pass
        if accelerator.sync_gradients:
            self._end_update()

    def _end_update(self):
        self.progress.step += 1
        if not self.accelerator.optimizer_step_was_skipped:
            self.scheduler.step()
        if self.ema is not None:
            self.ema.step(self.trained_parameters())
        self.progress_bar.update()
        step, arguments = self.progress.step, self.arguments
        is_last = step == self.total_steps
        if step % arguments.logging_steps == 0 or is_last:
            self._log()
        every = arguments.checkpointing_steps
        if (every and (step % every == 0 or is_last)) or self.interrupted_by is not None:
            self.save()
        if self.interrupted_by is not None and not is_last:
            name = signal.Signals(self.interrupted_by).name
            logger.warning(f"{name} came: stopped after {step} updates. Go on with `--resume_from_checkpoint latest`.")
            raise SystemExit(EXIT_INTERRUPTED)

    def _interrupt(self, number: int, frame: object):
        self.interrupted_by = number

    def save(self) -> bool:
        """Writes a checkpoint; see [`save_checkpoint`]."""
        arguments = self.arguments
        return save_checkpoint(
            self.accelerator,
            arguments.output_dir,
            self.progress.step,
            self._settings(),
            arguments.checkpoints_total_limit,
        )

    def _log(self):
        now, (then, seen) = time.perf_counter(), self.logged_at
        figures = self.averages.pop()
        figures["learning_rate"] = self.scheduler.get_last_lr()[0]
        figures["images_per_second"] = (self.progress.samples_seen - seen) / (now - then)
        self.logged_at = (now, self.progress.samples_seen)
        self.log(figures)
        self.progress_bar.set_postfix(loss=f"{figures['loss']:.4f}", images_s=f"{figures['images_per_second']:.0f}")

    def log(self, figures: dict[str, float]):
        """Sends figures to the trackers, and to `metrics.jsonl`, a line each time."""
        self.accelerator.log(figures, step=self.progress.step)
        if self.accelerator.is_main_process:
            with Path(self.arguments.output_dir, "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": self.progress.step, **figures}) + "\n")

    def finish(self) -> nn.Module:
        """Closes the trackers and gives back the trained model, with the averaged weights if there are any."""
        self.progress_bar.close()
        self.accelerator.end_training()
        if self.ema is not None:
            self.ema.copy_to(self.trained_parameters())
        return self.accelerator.unwrap_model(self.model).eval()


class Averages:
    """Means of what is measured in each pass, without waiting for the device before they are read."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, metrics: dict[str, torch.Tensor]):
        for name, value in metrics.items():
            value = torch.as_tensor(value).detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def pop(self) -> dict[str, float]:
        """The means over all passes since the last time and over all processes."""
        names = sorted(self.sums)
        if not names:
            return {}
        means = torch.stack([self.sums[name] / self.counts[name] for name in names])
        means = self.accelerator.reduce(means, "mean").tolist()
        self.sums, self.counts = {}, {}
        return dict(zip(names, means, strict=True))


def create_accelerator(arguments: TrainingArguments) -> Accelerator:
    """
    The topology that `accelerate launch` or the environment says.

    Raises:
        SystemExit: with a message, if `--total_batch_size` cannot be split over the processes.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    logging.getLogger("accelerate.accelerator").setLevel(logging.WARNING)
    logging.getLogger("accelerate.checkpointing").setLevel(logging.WARNING)
    trackers = [] if arguments.report_to == "none" else arguments.report_to.split(",")
    accelerator = Accelerator(
        mixed_precision=arguments.mixed_precision,
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        log_with=trackers or None,
        project_config=ProjectConfiguration(arguments.output_dir, logging_dir=str(Path(arguments.output_dir, "logs"))),
    )
    one_pass = arguments.train_batch_size * accelerator.num_processes
    if arguments.total_batch_size:
        if arguments.total_batch_size % one_pass:
            raise SystemExit(
                f"`--total_batch_size` {arguments.total_batch_size} is no multiple of the {one_pass} images of one "
                f"pass ({accelerator.num_processes} processes x `--train_batch_size` {arguments.train_batch_size})."
            )
        accelerator.gradient_accumulation_steps = arguments.total_batch_size // one_pass
    # The same initial weights everywhere; then different dropout in each process.
    set_seed(arguments.seed)
    return accelerator
