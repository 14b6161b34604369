"""What every training run does around its steps: topology, progress, logging, checkpoints, stopping."""

import contextlib
import json
import logging
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration, set_seed
from diffusers.training_utils import EMAModel
from torch import nn
from tqdm.auto import tqdm

from ..command_line import as_flat_dict, save_recipe
from ..data.batches import Batch, DataError, Source
from .arguments import TrainingArguments
from .checkpointing import Progress, changed_settings, find_checkpoint, load_states, save_checkpoint
from .optimization import create_optimizer, create_scheduler, num_updates
from .tracking import Averages, Metric, peak_flops

logger = get_logger(__name__)

# What a cluster may requeue on: EX_TEMPFAIL of sysexits.h.
EXIT_INTERRUPTED = 75


class InterruptedRunError(RuntimeError):
    """A run that a signal stopped, after it saved a checkpoint."""

    exit_status = EXIT_INTERRUPTED


class NonFiniteLossError(RuntimeError):
    """A loss that is infinite or NaN, so that nothing after it is worth keeping."""


# Flags that may differ between a checkpoint and its continuation without a word.
UNIMPORTANT = ("output_dir", "resume_from_checkpoint", "report_to", "logging_steps", "dataloader_num_workers")
UNIMPORTANT += ("checkpointing_steps", "checkpoints_total_limit", "push_to_hub", "hub_model_id")
# Asking all processes and the device whether something is wrong makes an accelerator wait.
MICRO_BATCHES_BETWEEN_SYNCS = 10


class TrainingRun:
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
        self.arguments = arguments
        self.source = source
        self.accelerator = accelerator
        self.flops_per_image = flops_per_image
        self.progress = Progress()
        self.ema: EMAModel | None = None
        self.averages = Averages(accelerator)
        self.every: list[tuple[int, Callable[[], None]]] = []
        self.total_steps = num_updates(arguments, source.num_samples, self.batch_size)
        on_host = accelerator.device.type == "cpu"
        accumulation = accelerator.gradient_accumulation_steps
        self.updates_between_syncs = 1 if on_host else max(MICRO_BATCHES_BETWEEN_SYNCS // accumulation, 1)
        micro_batches = self.updates_between_syncs * accumulation
        self.recent: deque[tuple[int, Batch]] = deque(maxlen=micro_batches)
        self.losses: deque[torch.Tensor] = deque(maxlen=micro_batches)
        self.batch_start = 0
        self.interrupted_by: int | None = None
        self.skipped_here = 0
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._interrupt)

    @property
    def samples_per_micro_batch(self) -> int:
        """Images in one forward pass of all processes."""
        return self.arguments.train_batch_size * self.accelerator.num_processes

    @property
    def batch_size(self) -> int:
        """Images in one update."""
        return self.samples_per_micro_batch * self.accelerator.gradient_accumulation_steps

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> nn.Module:
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

    def start(self):
        """Resumes where that is asked for, saves the recipe and opens the trackers."""
        arguments = self.arguments
        if arguments.resume_from_checkpoint:
            self._resume()
        if self.accelerator.is_main_process:
            Path(arguments.output_dir).mkdir(parents=True, exist_ok=True)
            save_recipe(arguments, Path(arguments.output_dir, "recipe.yaml"))
            self._truncate_metrics()
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

    def _truncate_metrics(self):
        """Drops what a killed run logged after the checkpoint, or all of an earlier run."""
        file = Path(self.arguments.output_dir, "metrics.jsonl")
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        file.write_text("".join(line for line in lines if json.loads(line)["step"] <= self.progress.step))

    def _resume(self):
        checkpoint = find_checkpoint(self.arguments.resume_from_checkpoint, self.arguments.output_dir)
        if checkpoint is None:
            logger.warning(f"There is no checkpoint in {self.arguments.output_dir}: starting from the beginning.")
            return
        changed = changed_settings(checkpoint, self._settings())
        for name, (then, now) in changed.items():
            logger.warning(f"Resuming with another {name} than before: {then} became {now}.")
        if "num_processes" in changed:
            logger.warning("The processes share out anew what the epoch has left; dropout and crops will differ.")
        self.accelerator.load_state(str(checkpoint))
        self.accelerator.step = 0
        states = load_states(checkpoint)
        if states:
            self.source.load_state_dicts(states)
        logger.info(f"Resuming {checkpoint} after {self.progress.step} updates, {self.progress.samples_seen} images.")

    def _settings(self) -> dict[str, Any]:
        flags = {name: value for name, value in as_flat_dict(self.arguments).items() if name not in UNIMPORTANT}
        return flags | {"num_processes": self.accelerator.num_processes}

    def batches(self) -> Iterator[Batch]:
        """This process's micro-batches on its device, from where the run is to its end."""
        device, fetched = self.accelerator.device, self.progress.samples_seen
        loader = self.source.batches(fetched)
        while self.progress.step < self.total_steps:
            batch = self._next(loader)
            self.skipped_here += batch.num_skipped
            self.recent.append((self.progress.step, batch))
            self.batch_start, fetched = fetched, fetched + self.samples_per_micro_batch
            yield batch.to(device)

    def _next(self, loader: Iterator[Batch]) -> Batch:
        try:
            return next(loader)
        except DataError:
            # Saving takes all processes, and the others may be able to read on.
            if self.accelerator.num_processes == 1:
                self.save()
            raise

    def generator(self) -> torch.Generator:
        """Randomness of the micro-batch that [`batches`] gave last, of this process, whatever came before."""
        number = self.batch_start * self.accelerator.num_processes + self.accelerator.process_index
        return torch.Generator().manual_seed((self.arguments.seed * 1_000_003 + number) % 2**63)

    def update(self, loss: torch.Tensor, metrics: dict[str, Metric]):
        """
        Backward, and with an update's last micro-batch its step; then whatever is due: logging, a checkpoint.

        Raises:
            InterruptedRunError: after a signal, when a checkpoint was saved.
            NonFiniteLossError: if a loss is infinite or NaN.
            DataError: if too many images were broken.
        """
        accelerator = self.accelerator
        accelerator.backward(loss)
        metrics |= self.clip_and_step()
        self.averages.add(metrics)
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
        if must_save or must_stop:
            self.save()
        if must_stop and not is_last:
            raise InterruptedRunError(
                f"Stopped by a signal after {step} updates. Resume with `--resume_from_checkpoint latest`."
            )

    def _interrupt(self, number: int, frame: object):
        self.interrupted_by = number

    def _sync_stop_flags(self) -> bool:
        """Whether any process was told to stop. Ends the run if a loss is not finite, before that is saved."""
        is_finite = torch.stack(list(self.losses)).isfinite().all()
        troubles = torch.stack([~is_finite, is_finite.new_tensor(self.interrupted_by is not None)]).float()
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
            torch.save(found, file)
            where = f"in update {step + 1}; its batch is in {file}"
        raise NonFiniteLossError(f"The loss is not finite {where}. The checkpoints before it are untouched.")

    def save(self) -> bool:
        """Writes a checkpoint; see [`save_checkpoint`]."""
        return save_checkpoint(
            self.accelerator,
            self.arguments.output_dir,
            self.progress.step,
            self._settings(),
            self.arguments.checkpoints_total_limit,
            self.source.state_dict(),
        )

    def _log(self):
        now, (then, seen) = time.perf_counter(), self.logged_at
        metrics = self.averages.pop()
        metrics["learning_rate"] = self.scheduler.get_last_lr()[0]
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
        self.log(metrics)
        shown = {"loss": f"{metrics['loss']:.4f}", "images_s": f"{speed:.0f}"}
        self.progress_bar.set_postfix(shown | ({"mfu": f"{metrics['mfu']:.2f}"} if "mfu" in metrics else {}))

    def _count_skipped(self):
        skipped = torch.tensor(self.skipped_here, device=self.accelerator.device)
        self.progress.num_skipped += int(self.accelerator.reduce(skipped, "sum"))
        self.skipped_here = 0
        num_skipped, share = self.progress.num_skipped, self.arguments.max_skipped_share
        if num_skipped > max(share * self.progress.samples_seen, 0 if share == 0 else 10):
            self.save()
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

    def log(self, metrics: dict[str, float]):
        """Sends metrics to the trackers, and to `metrics.jsonl`, a line each time."""
        self.accelerator.log(metrics, step=self.progress.step)
        if self.accelerator.is_main_process:
            with Path(self.arguments.output_dir, "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": self.progress.step, **metrics}) + "\n")

    def finish(self) -> dict[str, torch.Tensor] | None:
        """Closes the trackers. Gives the main process the trained weights, averaged if there is an average."""
        self.progress_bar.close()
        for tracker in self.accelerator.trackers:
            tracker.finish()
        if self.ema is not None:
            self.ema.copy_to(self.trained_parameters())
        state = self.accelerator.get_state_dict(self.model)
        return state if self.accelerator.is_main_process else None


class MovingAverage(EMAModel):
    """diffusers' moving average, whose checkpoints hold whole tensors where the model is sharded."""

    def state_dict(self) -> dict[str, Any]:
        whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in self.shadow_params]
        return super().state_dict() | {"shadow_params": whole}

    def load_state_dict(self, state_dict: dict[str, Any]):
        sharded = self.shadow_params
        super().load_state_dict(state_dict)
        self.shadow_params = [_like(new, old) for new, old in zip(self.shadow_params, sharded, strict=True)]


def _like(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """`tensor` where `other` is, and sharded as it is."""
    tensor = tensor.to(other.device)
    if not hasattr(other, "full_tensor"):
        return tensor
    return torch.distributed.tensor.distribute_tensor(tensor, other.device_mesh, other.placements)


def create_accelerator(arguments: TrainingArguments) -> Accelerator:
    """
    The topology that `accelerate launch` or the environment says.

    Raises:
        ValueError: if `--total_batch_size` cannot be split over the processes, or for fp16 on the CPU.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    for name in ("accelerate.accelerator", "accelerate.checkpointing", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)
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
    micro_batch = arguments.train_batch_size * accelerator.num_processes
    if arguments.total_batch_size:
        if arguments.total_batch_size % micro_batch:
            raise ValueError(
                f"`--total_batch_size` {arguments.total_batch_size} is not a multiple of the {micro_batch} images of "
                f"{accelerator.num_processes} processes with `--train_batch_size` {arguments.train_batch_size}."
            )
        accelerator.gradient_accumulation_steps = arguments.total_batch_size // micro_batch
    # The same initial weights everywhere; then different dropout in each process.
    set_seed(arguments.seed)
    return accelerator
