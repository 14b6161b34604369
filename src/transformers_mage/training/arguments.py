"""What every training script can be told."""

from dataclasses import dataclass

from accelerate import Accelerator

from ..command_line import argument
from ..data.arguments import DataArguments
from ..data.batches import Loading, Share


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
        None, "The default is what `accelerate config` says.", choices=["no", "fp16", "bf16"]
    )
    torch_compile: bool = argument(False, "Compile the model.")

    checkpointing_steps: int = argument(1000, "Updates between checkpoints; 0 writes none.")
    checkpoints_total_limit: int = argument(3, "Checkpoints to keep.")
    resume_from_checkpoint: str | None = argument(None, 'A checkpoint\'s folder, or "latest" of `output_dir`.')
    logging_steps: int = argument(20, "Updates between logged metrics.")
    report_to: str = argument("tensorboard", 'Trackers, with commas between them, or "none".')
    push_to_hub: bool = argument(False, "Push the trained model.")
    hub_model_id: str | None = argument(None, "Repository to push to; by default the name of `output_dir`.")

    def check(self):
        super().check()
        positive = ("train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "logging_steps")
        positive += ("checkpoints_total_limit", "shuffle_window")
        for name in positive:
            if getattr(self, name) <= 0:
                raise ValueError(f"`--{name}` must be more than 0, got {getattr(self, name)}.")

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
