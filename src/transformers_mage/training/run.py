"""What every training run does around its steps: topology, progress, logging, checkpoints, stopping."""

import contextlib
import datetime
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration, broadcast_object_list, set_seed
from torch import nn

from ..command_line import as_flat_dict, save_recipe
from ..data.batches import Batch, DataError, Source
from ..files import FolderError, locked
from ..hub.publishing import Publisher
from ..precision import bfloat16_slowdown, chosen_precision
from ..progress import terminal_bar
from .arguments import TrainingArguments
from .checkpointing import (
    PREFIX,
    Progress,
    changed_settings,
    checkpoints,
    find_checkpoint,
    load_checkpoint,
    remove_leftovers,
    save_checkpoint,
)
from .optimization import MovingAverage, create_optimizer, create_scheduler, num_updates
from .resuming import UNIMPORTANT, check_changes, check_output_dir, kept_hyperparameters
from .stopping import InterruptedRunError, LostWorkers, NonFiniteLossError, StopSignals, WaitBrokenOffError
from .tracking import Averages, Metric, MetricsFile, peak_flops

logger = get_logger(__name__)

# Asking all processes and the device whether something is wrong makes an accelerator wait.
MICRO_BATCHES_BETWEEN_SYNCS = 10

Model = TypeVar("Model", bound=nn.Module)


class TrainingRun(Generic[Model]):
    """
    One run of a training script.

    Args:
        arguments ([`TrainingArguments`]): the command line.
        source ([`Source`]): this process's data.
        accelerator (`Accelerator`): the topology, from [`create_accelerator`].
        flops_per_image (`float`, *optional*): operations of a step, for the share of the peak that is reached.
    """

    def __init__(
        self,
        arguments: TrainingArguments,
        source: Source,
        accelerator: Accelerator,
        flops_per_image: float | None = None,
    ):
        check_output_dir(arguments.output_dir, arguments.resume_from_checkpoint)
        self.arguments = arguments
        self.source = source
        self.accelerator = accelerator
        self.flops_per_image = flops_per_image
        self.progress = Progress()
        self.ema: MovingAverage | None = None
        self.averages = Averages(accelerator)
        self.metrics_file = MetricsFile(Path(arguments.output_dir, "metrics.jsonl"))
        self.every: list[tuple[int, Callable[[], None]]] = []
        self.after_saving: list[Callable[[], None]] = []
        self.total_steps = num_updates(arguments, source.num_samples, self.batch_size)
        on_host = accelerator.device.type == "cpu"
        accumulation = accelerator.gradient_accumulation_steps
        self.updates_between_syncs = 1 if on_host else max(MICRO_BATCHES_BETWEEN_SYNCS // accumulation, 1)
        micro_batches = self.updates_between_syncs * accumulation
        self.recent: deque[tuple[int, Batch]] = deque(maxlen=micro_batches)
        self.losses: deque[torch.Tensor] = deque(maxlen=micro_batches)
        self.batch_start = 0
        self.folder_lock = contextlib.ExitStack()
        self.signals = StopSignals()
        self.lost_workers = LostWorkers()
        self.skipped_here = 0
        self.last_update: tuple[int, Any] = (0, None)

    @property
    def samples_per_micro_batch(self) -> int:
        """Images in one forward pass of all processes."""
        return self.arguments.train_batch_size * self.accelerator.num_processes

    @property
    def batch_size(self) -> int:
        """Images in one update."""
        return self.samples_per_micro_batch * self.accelerator.gradient_accumulation_steps

    def prepare(self, model: Model, optimizer: torch.optim.Optimizer | None = None) -> nn.Module:
        """Wraps the model for the topology, and makes its optimizer, unless given, schedule and moving average."""
        accelerator, arguments = self.accelerator, self.arguments
        if accelerator.state.deepspeed_plugin is not None:
            configuration = accelerator.state.deepspeed_plugin.deepspeed_config
            configuration["train_micro_batch_size_per_gpu"] = arguments.train_batch_size
            configuration["gradient_accumulation_steps"] = accelerator.gradient_accumulation_steps
            # DeepSpeed clips by itself; 0 does not clip there either.
            configuration["gradient_clipping"] = arguments.max_grad_norm
        optimizer = optimizer or create_optimizer(model, arguments, self.batch_size)
        self.scheduler = create_scheduler(optimizer, arguments, self.source.num_samples, self.batch_size)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        accelerator.register_for_checkpointing(self.progress, self.scheduler)
        if arguments.use_ema:
            warmup = {"use_ema_warmup": True, "foreach": True}
            self.ema = MovingAverage(self.trained_parameters(), decay=arguments.ema_decay, **warmup)
            accelerator.register_for_checkpointing(self.ema)
        return self.model

    def trained_parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def call_every(self, steps: int, function: Callable[[], None]):
        """Calls `function` in all processes every so many updates, and after the last one; never if `steps` is 0."""
        if steps:
            self.every.append((steps, function))

    def end_early(self):
        """Makes the update that was made last the run's last one. All processes call it, from a [`call_every`]."""
        self.progress.has_ended = True
        self.total_steps = self.progress.step

    def publish_checkpoints(self, publisher: Publisher, write: Callable[..., None]):
        """
        Lets the model so far follow each checkpoint to the Hub, where `--hub_strategy` says so. All processes call it.

        Args:
            write (`Callable`): takes a folder and `state`, the weights, and writes the model with them to it.
        """

        def publish():
            # Uploads end in the main process, and gathering a sharded model takes all of them.
            [is_free] = broadcast_object_list([publisher.is_free])
            if not is_free or self.progress.step == self.total_steps:
                return
            with self.evaluation_weights():
                state = self.accelerator.get_state_dict(self.model)
            if self.accelerator.is_main_process:
                checkpoint = Path(self.arguments.output_dir, f"{PREFIX}{self.progress.step}")
                publisher.publish_checkpoint(self.progress.step, partial(write, state=state), checkpoint)

        if publisher.publication.follows_checkpoints:
            self.after_saving.append(publish)

    def start(self):
        """
        Resumes where that is asked for, saves the recipe and opens the trackers.

        Raises:
            FolderError: if the folder is in use, or the checkpoint cannot be resumed from.
        """
        arguments = self.arguments
        if self.accelerator.is_main_process:
            self.folder_lock.enter_context(locked(Path(arguments.output_dir)))
            remove_leftovers(arguments.output_dir)
        if arguments.resume_from_checkpoint:
            self._resume(arguments.resume_from_checkpoint)
        if self.accelerator.is_main_process:
            Path(arguments.output_dir).mkdir(parents=True, exist_ok=True)
            save_recipe(arguments, Path(arguments.output_dir, "recipe.yaml"))
            self.metrics_file.truncate(self.progress.step)
        simple = (int, float, str, bool)
        config = {k: v if isinstance(v, simple) else str(v) for k, v in as_flat_dict(arguments).items()}
        self.accelerator.init_trackers(Path(arguments.output_dir).name, config)
        self.progress_bar = terminal_bar(
            total=self.total_steps,
            initial=self.progress.step,
            desc="Training",
            # None shows it in a terminal only: a file gets plain lines.
            disable=None if self.accelerator.is_local_main_process else True,
        )
        self.logged_at = (time.perf_counter(), self.progress.samples_seen)
        self.model.train()

    def _resume(self, name: str):
        checkpoint = self._find_checkpoint(name)
        if checkpoint is None:
            logger.warning(f"There is no checkpoint in {self.arguments.output_dir}: starting from the beginning.")
            return
        changed = changed_settings(checkpoint, self._settings())
        changed = {name: values for name, values in changed.items() if name not in UNIMPORTANT}
        check_changes(checkpoint, changed)
        for name, (then, now) in changed.items():
            logger.warning(f"Resuming with another {name} than before: {then} became {now}.")
        if "num_processes" in changed:
            logger.warning("The processes share out anew what the epoch has left; dropout and crops will differ.")
        with kept_hyperparameters(self.optimizer, self.scheduler):
            states = load_checkpoint(self.accelerator, checkpoint)
        self.accelerator.step = 0
        if self.ema is not None:
            self.ema.decay = self.arguments.ema_decay
        if states:
            self.source.load_state_dicts(states)
        # What was good enough may not be by other settings.
        self.progress.has_ended &= not changed
        if self.progress.has_ended:
            self.total_steps = self.progress.step
        logger.info(f"Resuming {checkpoint} after {self.progress.step} updates, {self.progress.samples_seen} images.")

    def _find_checkpoint(self, name: str) -> Path | None:
        """[`find_checkpoint`] of the main process, which alone reads all files, told to the others."""
        found: list[Path | FolderError | None] = [None]
        if self.accelerator.is_main_process:
            try:
                found = [find_checkpoint(name, self.arguments.output_dir)]
            except FolderError as error:
                found = [error]
        (checkpoint,) = broadcast_object_list(found)
        if isinstance(checkpoint, FolderError):
            raise checkpoint
        return checkpoint

    def _settings(self) -> dict[str, Any]:
        flags = {name: value for name, value in as_flat_dict(self.arguments).items() if name not in UNIMPORTANT}
        return flags | {"num_processes": self.accelerator.num_processes}

    def batches(self) -> Iterator[Batch]:
        """
        This process's micro-batches on its device, from where the run is to its end.

        Raises:
            InterruptedRunError: after a signal, when what was learned is saved.
            DataError: where the data cannot be read any further, when what was learned is saved.
        """
        device, fetched = self.accelerator.device, self.progress.samples_seen
        self._note_update()
        loader = self.source.batches(fetched)
        with self.signals.noted(), contextlib.closing(self.lost_workers):
            while self.progress.step < self.total_steps:
                batch = self._next(loader)
                self.skipped_here += batch.num_skipped
                self.recent.append((self.progress.step, batch))
                self.batch_start, fetched = fetched, fetched + self.samples_per_micro_batch
                yield batch.to(device)

    def _next(self, loader: Iterator[Batch]) -> Batch:
        # Saving takes all processes, and only where there is one can it be done while waiting for data.
        is_alone = self.accelerator.num_processes == 1
        try:
            with self.signals.waiting(may_break_off=is_alone), self.lost_workers.raised():
                return next(loader)
        except WaitBrokenOffError:
            self._return_to_last_update()
            self._stop(is_saved=self.save())
            raise
        except (DataError, RuntimeError) as error:
            if not isinstance(error, DataError) and "DataLoader" not in str(error):
                raise
            if is_alone:
                self._return_to_last_update()
                self.save()
            self.progress_bar.close()
            raise DataError(_of_worker(error)) from error

    def _note_update(self):
        """Remembers where the data are, since micro-batches after it may not become an update any more."""
        self.last_update = (self.progress.samples_seen, self.source.state_dict())

    def _return_to_last_update(self):
        self.progress.samples_seen = self.last_update[0]

    def generator(self) -> torch.Generator:
        """Randomness of the micro-batch that [`batches`] gave last, of this process, whatever came before."""
        number = self.batch_start * self.accelerator.num_processes + self.accelerator.process_index
        return torch.Generator().manual_seed((self.arguments.seed * 1_000_003 + number) % 2**63)

    def update(self, loss: torch.Tensor, metrics: Mapping[str, Metric]):
        """
        Backward, and with an update's last micro-batch its step; then whatever is due: logging, a checkpoint.

        Raises:
            InterruptedRunError: after a signal, when what was learned is saved.
            NonFiniteLossError: if a loss is infinite or NaN.
            DataError: if too many images were broken.
        """
        accelerator = self.accelerator
        accelerator.backward(loss)
        self.averages.add({**metrics, **self.clip_and_step()})
        self.losses.append(loss.detach())
        self.progress.samples_seen += self.samples_per_micro_batch
        if accelerator.sync_gradients:
            self._end_update()

    def clip_and_step(self) -> dict[str, Metric]:
        """The optimizer's step, where the update's last micro-batch is done. Gives the gradients' norm."""
        norm = self._clip(self.trained_parameters()) if self.accelerator.sync_gradients else None
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {} if norm is None else {"grad_norm": norm}

    def _clip(self, parameters: list[nn.Parameter]) -> torch.Tensor | None:
        if self.arguments.max_grad_norm <= 0:
            return None
        return self.accelerator.clip_grad_norm_(parameters, self.arguments.max_grad_norm)

    def _end_update(self):
        self.progress.step += 1
        if not self.accelerator.optimizer_step_was_skipped:
            self.scheduler.step()
        if self.ema is not None:
            self.ema.step(self.trained_parameters())
        self._note_update()
        self.progress_bar.update()
        step, every = self.progress.step, self.arguments.checkpointing_steps
        is_last = step == self.total_steps
        must_save = bool(every) and (step % every == 0 or is_last)
        must_stop = False
        if must_save or is_last or step % self.updates_between_syncs == 0:
            must_stop = self._sync_stop_flags()
        if step % self.arguments.logging_steps == 0 or is_last:
            self._log()
        for steps, function in self.every:
            if step % steps == 0 or is_last:
                function()
        is_saved = self.save() if must_save or must_stop else False
        if must_stop and not is_last:
            self._stop(is_saved)

    def _stop(self, is_saved: bool):
        """Ends the run after a signal."""
        steps, name = self.progress.step, self.signals.name
        if is_saved:
            message = f"Stopped by {name} after {steps} updates. Resume with `--resume_from_checkpoint latest`."
        else:
            whole = checkpoints(self.arguments.output_dir)
            kept = f"the newest checkpoint is {whole[-1]}" if whole else "there is no checkpoint"
            message = f"Stopped by {name} after {steps} updates, which could not be saved: {kept}."
        self.progress_bar.close()
        # All processes end; one line is enough.
        said = message if self.accelerator.is_main_process else ""
        raise InterruptedRunError(said, self.signals.exit_status if is_saved else 1)

    def _sync_stop_flags(self) -> bool:
        """Whether any process was told to stop. Ends the run if a loss is not finite, before that is saved."""
        is_finite = torch.stack(list(self.losses)).isfinite().all()
        troubles = torch.stack([~is_finite, is_finite.new_tensor(self.signals.received is not None)]).float()
        not_finite, interrupted = self.accelerator.reduce(troubles, "sum").tolist()
        if not_finite:
            self._give_up()
        return interrupted > 0

    def _give_up(self):
        losses = [loss.item() for loss in self.losses]
        bad = next((i for i, loss in enumerate(losses) if loss - loss != 0), None)
        where = "in another process"
        if bad is not None:
            step, batch = self.recent[bad]
            rank = self.accelerator.process_index
            file = Path(self.arguments.output_dir, f"nonfinite-loss-step-{step + 1}-process-{rank}.pt")
            found = {"step": step + 1, "loss": losses[bad], "progress": vars(self.progress), "batch": batch.tensors()}
            where = f"in update {step + 1}"
            with contextlib.suppress(OSError):
                torch.save(found, file)
                where += f"; its batch is in {file}"
        self.progress_bar.close()
        raise NonFiniteLossError(f"The loss is not finite {where}. The checkpoints before it are untouched.")

    def save(self) -> bool:
        """Writes a checkpoint, see [`save_checkpoint`], and does what follows each of them."""
        is_saved = save_checkpoint(
            self.accelerator,
            self.arguments.output_dir,
            self.progress.step,
            self._settings(),
            self.arguments.checkpoints_total_limit,
            self.last_update[1],
        )
        if is_saved:
            self._say("checkpoint saved")
        for function in self.after_saving if is_saved else ():
            function()
        return is_saved

    def _log(self):
        now, (then, seen) = time.perf_counter(), self.logged_at
        metrics = self.averages.pop()
        metrics["learning_rate"] = float(self.scheduler.get_last_lr()[0])
        speed = (self.progress.samples_seen - seen) / (now - then)
        metrics["images_per_second"] = speed
        peak = peak_flops(self.accelerator.device)
        if self.flops_per_image and peak:
            metrics["mfu"] = speed * self.flops_per_image / (peak * self.accelerator.num_processes)
        self._count_skipped()
        metrics["skipped_images"] = self.progress.num_skipped
        num_samples = self.source.num_samples or self.arguments.num_train_samples
        if num_samples:
            metrics["epoch"] = self.progress.samples_seen / num_samples
        self.logged_at = (now, self.progress.samples_seen)
        self._write(metrics)
        shown = {"loss": f"{metrics['loss']:.4f}", "images_s": f"{speed:.0f}"}
        self.progress_bar.set_postfix(shown | ({"mfu": f"{metrics['mfu']:.2f}"} if "mfu" in metrics else {}))
        seconds_left = (self.total_steps - self.progress.step) * self.batch_size / speed
        left = datetime.timedelta(seconds=round(seconds_left))
        self._say(f"loss {metrics['loss']:.4f}, {speed:.0f} images a second, {left} left")

    def _count_skipped(self):
        skipped = torch.tensor(self.skipped_here, device=self.accelerator.device)
        self.progress.num_skipped += int(self.accelerator.reduce(skipped, "sum"))
        self.skipped_here = 0
        num_skipped, share = self.progress.num_skipped, self.arguments.max_skipped_share
        if num_skipped > max(share * self.progress.samples_seen, 0 if share == 0 else 10):
            self.save()
            self.progress_bar.close()
            raise DataError(
                f"{num_skipped} of {self.progress.samples_seen} images were broken, more than `--max_skipped_share` "
                f"{share}. Look at the data, or allow more."
            )

    @contextlib.contextmanager
    def evaluation_weights(self) -> Iterator[nn.Module]:
        """The model as it would be written now: with averaged weights, if there are any, and without dropout."""
        parameters = self.trained_parameters()
        if self.ema is not None:
            self.ema.store(parameters)
            self.ema.copy_to(parameters)
        self.model.eval()
        try:
            yield self.accelerator.unwrap_model(self.model)
        finally:
            self.model.train()
            if self.ema is not None:
                self.ema.restore(parameters)

    def logged(self, name: str) -> list[float]:
        """All values of a metric so far, those of before a kill too. All processes call it."""
        is_main = self.accelerator.is_main_process
        (values,) = broadcast_object_list([self.metrics_file.values(name) if is_main else None])
        return values

    def log(self, metrics: dict[str, float]):
        """Sends metrics to the trackers, to `metrics.jsonl`, a line each time, and to a log that is not a terminal."""
        self._write(metrics)
        self._say(", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))

    def _write(self, metrics: dict[str, float]):
        self.accelerator.log(metrics, step=self.progress.step)
        if self.accelerator.is_main_process:
            self.metrics_file.append({"step": self.progress.step, **metrics})

    def _say(self, text: str):
        """A line in the log, where there is no progress bar."""
        if self.accelerator.is_main_process and self.progress_bar.disable:
            logger.info(f"Update {self.progress.step} of {self.total_steps}: {text}")

    @contextlib.contextmanager
    def finished(self) -> Iterator[dict[str, torch.Tensor] | None]:
        """
        Closes the trackers. Gives the main process the trained weights, averaged if there is an average, and keeps
        the folder, and signals waiting, while the model is written.

        Raises:
            InterruptedRunError: when it is written, if a signal came and the model should go to the Hub next.
        """
        self.progress_bar.close()
        for tracker in self.accelerator.trackers:
            tracker.finish()
        with self.signals.noted():
            if self.ema is not None:
                self.ema.copy_to(self.trained_parameters())
            state = self.accelerator.get_state_dict(self.model)
            yield state if self.accelerator.is_main_process else None
        self.folder_lock.close()
        if self.signals.received is not None and self.accelerator.is_main_process:
            self._end_late()

    def _end_late(self):
        """After a signal that came when the training was over."""
        what = f"{self.signals.name} came at the end: the model in {self.arguments.output_dir} is complete"
        if self.arguments.push_to_hub:
            raise InterruptedRunError(f"{what}, but was not pushed.", self.signals.exit_status)
        logger.info(f"{what}.")


def _of_worker(error: Exception) -> str:
    """An error's message, without the traceback that a loading process puts before it."""
    text = str(error).strip()
    if "Original Traceback" not in text:
        return text.splitlines()[0]
    return text.splitlines()[-1].partition("Error: ")[2] or text.splitlines()[-1]


def create_accelerator(arguments: TrainingArguments) -> Accelerator:
    """
    The topology that `accelerate launch` or the environment says.

    Raises:
        ValueError: if `--total_batch_size` cannot be split over the processes, or for fp16 on the CPU.
        OSError: if the model is to be pushed and that cannot be.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    for name in ("accelerate.accelerator", "accelerate.checkpointing", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Kept in the recipe and in checkpoints as what it is here.
    arguments.mixed_precision = chosen_precision(arguments.mixed_precision)
    trackers = [] if arguments.report_to == "none" else arguments.report_to.split(",")
    accelerator = Accelerator(
        mixed_precision=arguments.mixed_precision,
        # As a number it would lose against what a file of `accelerate config` says of DeepSpeed.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=arguments.gradient_accumulation_steps),
        log_with=trackers or None,
        project_config=ProjectConfiguration(arguments.output_dir, logging_dir=str(Path(arguments.output_dir, "logs"))),
    )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError(
            "fp16 needs a GPU: Accelerate would compute in float32. Say `--mixed_precision bf16` or `no`."
        )
    _warn_of_slow_bfloat16(accelerator)
    micro_batch = arguments.train_batch_size * accelerator.num_processes
    if arguments.total_batch_size:
        if arguments.total_batch_size % micro_batch:
            raise ValueError(
                f"`--total_batch_size` {arguments.total_batch_size} is not a multiple of the {micro_batch} images of "
                f"{accelerator.num_processes} processes with `--train_batch_size` {arguments.train_batch_size}."
            )
        accelerator.gradient_accumulation_steps = arguments.total_batch_size // micro_batch
    if accelerator.is_main_process:
        # Before a month of training rather than after it.
        arguments.publication.check()
    # The same initial weights everywhere; then different dropout in each process.
    set_seed(arguments.seed)
    return accelerator


def _warn_of_slow_bfloat16(accelerator: Accelerator):
    if accelerator.mixed_precision != "bf16" or accelerator.device.type != "cpu":
        return
    slowdown = bfloat16_slowdown(accelerator.device)
    if slowdown > 1.5:
        logger.warning(
            f"bfloat16 takes {slowdown:.1f} times as long as float32 on this processor, measured just now: "
            "`--mixed_precision no` is faster."
        )
