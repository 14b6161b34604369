"""What every training script can be told."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

from ..command_line import argument, as_flat_dict, check_numbers
from ..configuration_mage import MageConfig
from ..data.arguments import DataArguments
from ..data.batches import Loading, Share
from ..hub.model_card import CardFacts, Sample, Task
from ..hub.publishing import HUB_STRATEGIES, Publication

# What a recipe has to do with this machine rather than with the model.
_LOCAL = (
    *("output_dir", "resume_from_checkpoint", "report_to", "push_to_hub", "hub_model_id", "hub_strategy"),
    *("hub_private_repo", "with_code", "token_cache", "dataloader_num_workers", "dataloader_timeout"),
)


@dataclass
class TrainingArguments(DataArguments):
    """What every training script can be told."""

    in_memory_limit: float = argument(2.0, "Decode a dataset of equally large images once, up to this many GB.")
    shuffle_window: int = argument(1000, "Images that a loading process shuffles together when streaming.")
    data_retries: int = argument(8, "Times that a failing read is tried again, after 1, 2, 4... seconds.")
    dataloader_timeout: float = argument(600.0, "Seconds that a loading process may take for a batch.")

    train_batch_size: int = argument(64, "Images in one forward pass of one process.")
    gradient_accumulation_steps: int = argument(1, "Forward passes for one update.")
    total_batch_size: int | None = argument(
        None, "Images for one update over all processes; sets `gradient_accumulation_steps`."
    )
    max_train_steps: int | None = argument(None, "Updates to make; overrides `num_train_epochs`.")
    num_train_epochs: float = argument(1.0, "Passes over the data.")
    num_train_samples: int | None = argument(None, "Images in the data, where streaming does not say.")

    learning_rate: float | None = argument(None, "Peak learning rate; overrides `base_learning_rate`.")
    base_learning_rate: float = argument(1.5e-4, "Peak learning rate for 256 images an update: it scales with them.")
    min_learning_rate: float = argument(0.0, "Learning rate at the end.")
    warmup_epochs: float = argument(0.0, "Passes over the data in which the learning rate rises.")
    warmup_steps: int | None = argument(None, "Updates in which the learning rate rises; overrides `warmup_epochs`.")
    adam_beta1: float = argument(0.9, "First moment's decay of AdamW.")
    adam_beta2: float = argument(0.95, "Second moment's decay of AdamW.")
    weight_decay: float = argument(0.05, "Weight decay, on parameters of more than one dimension.")
    max_grad_norm: float = argument(3.0, "Clip gradients to this norm; 0 does not clip.")
    use_ema: bool = argument(False, "Keep a moving average of the weights, and write that as the model.")
    ema_decay: float = argument(0.9999, "Decay of the moving average.")

    mixed_precision: str | None = argument(
        None,
        "The default is what `accelerate config` says; `auto` is bf16 where that is fast, and otherwise no.",
        choices=["no", "fp16", "bf16", "auto"],
    )
    torch_compile: bool = argument(False, "Compile the model.")

    checkpointing_steps: int = argument(1000, "Updates between checkpoints; 0 writes none.")
    checkpoints_total_limit: int = argument(3, "Checkpoints to keep.")
    resume_from_checkpoint: str | None = argument(None, 'A checkpoint\'s folder, or "latest" of `output_dir`.')
    logging_steps: int = argument(20, "Updates between logged metrics.")
    report_to: str = argument("tensorboard", 'Trackers, with commas between them, or "none".')
    push_to_hub: bool = argument(False, "Push the trained model, with its card and its code.")
    hub_model_id: str | None = argument(None, "Repository to push to; by default the name of `output_dir`.")
    hub_strategy: str = argument(
        "end",
        "Push at the `end` only, or with `every_save` of a checkpoint the model so far; `checkpoint` and "
        "`all_checkpoints` push the last or all of them too, to resume from elsewhere.",
        choices=list(HUB_STRATEGIES),
    )
    hub_private_repo: bool | None = argument(None, "Whether a repository that is created is private.")
    with_code: bool = argument(False, "Let the folder carry the code that loads it without this package.")

    def check(self):
        super().check()
        batches = "train_batch_size gradient_accumulation_steps total_batch_size shuffle_window"
        check_numbers(self, f"{batches} max_train_steps num_train_samples", at_least=1)
        check_numbers(self, "logging_steps checkpoints_total_limit", at_least=1)
        check_numbers(self, "num_train_epochs learning_rate base_learning_rate", more_than=0)
        check_numbers(self, "min_learning_rate warmup_epochs warmup_steps weight_decay max_grad_norm", at_least=0)
        check_numbers(self, "checkpointing_steps data_retries dataloader_timeout in_memory_limit", at_least=0)
        check_numbers(self, "adam_beta1 adam_beta2", at_least=0, less_than=1)
        check_numbers(self, "ema_decay", at_least=0, at_most=1)
        if self.learning_rate is not None and self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"`--min_learning_rate` must be at most `--learning_rate` {self.learning_rate:g}, got "
                f"{self.min_learning_rate:g}."
            )
        self._check_trackers()

    def _check_trackers(self):
        if self.report_to in ("none", "all"):
            return
        there = [str(tracker) for tracker in get_available_trackers()]
        for name in self.report_to.split(","):
            if name not in there:
                raise ValueError(
                    f'`--report_to` takes "none", "all", or trackers that are installed, here {", ".join(there)}; '
                    f"got {name!r}."
                )

    @property
    def publication(self) -> Publication:
        """Where the trained model goes."""
        name = self.hub_model_id or os.path.basename(os.path.realpath(self.output_dir))
        return Publication(
            name if self.push_to_hub else None,
            self.hub_strategy,
            private=self.hub_private_repo,
            with_code=self.with_code,
        )

    def card_facts(
        self, name: str, task: Task, config: MageConfig | None = None, samples: Sequence[Sample] = ()
    ) -> CardFacts:
        """What the card of the trained model tells; `name` is its repository's or its folder's."""
        recipe = {key: value for key, value in as_flat_dict(self).items() if key not in _LOCAL and value is not None}
        started_from = getattr(self, "pretrained_model_name_or_path", getattr(self, "model_name_or_path", None))
        return CardFacts(
            name=name,
            task=task,
            config=config,
            dataset_name=self.dataset_name,
            base_model=started_from,
            recipe=recipe,
            metrics_file=Path(self.output_dir, "metrics.jsonl"),
            samples=samples,
            carries_code=self.publication.carries_code,
        )

    def loading(self, accelerator: Accelerator) -> Loading:
        """How a process loads its batches."""
        return Loading(
            batch_size=self.train_batch_size,
            seed=self.seed,
            share=Share.of(accelerator),
            num_workers=self.dataloader_num_workers,
            timeout=self.dataloader_timeout,
            pin_memory=accelerator.device.type == "cuda",
            in_memory_limit=self.in_memory_limit,
            max_skipped_share=self.max_skipped_share,
            window_size=self.shuffle_window,
            num_retries=self.data_retries,
        )
