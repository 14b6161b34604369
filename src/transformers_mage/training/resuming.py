"""What a run may change when it is resumed, and which folder it may use."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..files import FolderError
from .checkpointing import PREFIX

# Flags that do not change what is learned.
UNIMPORTANT = (
    "output_dir",
    "resume_from_checkpoint",
    "report_to",
    "logging_steps",
    "dataloader_num_workers",
    "dataloader_timeout",
    "data_retries",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "push_to_hub",
    "hub_model_id",
    "hub_strategy",
    "hub_private_repo",
    "with_code",
)
# Flags that decide whether there is something to train, or to keep in a checkpoint.
SWITCHES = (
    *("use_ema", "contrastive_weight", "adversarial_weight", "class_conditional", "freeze_encoder"),
    "representation_model_name_or_path",
)
# Groups of values that make the model, and those of them that a trained model can do with differently.
MODELS = ("model.", "vq_config.", "representation_model.")
CHANGEABLE = (
    "model.hidden_dropout_prob",
    "model.attention_probs_dropout_prob",
    "model.drop_path_rate",
    "model.mask_ratio_mean",
    "model.mask_ratio_std",
    "model.mask_ratio_min",
    "model.mask_ratio_max",
    "model.drop_ratio",
    "model.label_smoothing",
)
# What a run leaves in its folder.
MADE_BY_A_RUN = ("config.json", "model_index.json", "model.safetensors", "metrics.jsonl")


def check_changes(checkpoint: Path, changed: Mapping[str, tuple[Any, Any]]):
    """
    Refuses changes that would make another model of the one in a checkpoint.

    Args:
        checkpoint (`Path`): its folder.
        changed (`Mapping`): what was there and what is now, by the flags' names.

    Raises:
        FolderError: naming the changes and what would have to be given.
    """
    refused = {name: values for name, values in changed.items() if _is_fixed(name, *values)}
    if refused:
        said = ", ".join(f"{name} was {then!r} and is {now!r} now" for name, (then, now) in refused.items())
        flags = " ".join(f"--{name} {then}" for name, (then, _) in refused.items() if then is not None)
        remedy = f"Give `{flags}`" if flags else f"Leave out {', '.join(f'`--{name}`' for name in refused)}"
        raise FolderError(
            f"{checkpoint} cannot be resumed with these changes: {said}. {remedy}, or train anew in another "
            "`--output_dir`."
        )


def _is_fixed(name: str, then: Any, now: Any) -> bool:
    if name in SWITCHES:
        return bool(then) != bool(now)
    return name.startswith(MODELS) and name not in CHANGEABLE


@contextmanager
def kept_hyperparameters(
    optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LambdaLR
) -> Iterator[None]:
    """
    While states are loaded. They bring back the learning rate, weight decay, betas and the like of then; those that
    the command line says now are put in their place, the learning rate where the schedule says it is by now.
    """
    said = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    base_rates = list(scheduler.base_lrs)
    yield
    scheduler.base_lrs = base_rates
    rates = [
        rate * schedule(scheduler.last_epoch) for rate, schedule in zip(base_rates, scheduler.lr_lambdas, strict=True)
    ]
    scheduler._last_lr = rates
    for group, values, rate in zip(optimizer.param_groups, said, rates, strict=True):
        group.update(values, lr=rate)


def check_output_dir(output_dir: str | Path, resume_from_checkpoint: str | None):
    """
    Sees to it that a run neither overwrites what another one made nor mixes with it.

    Raises:
        FolderError: naming what there is, and the ways out.
    """
    folder = Path(output_dir)
    steps = sorted(int(path.name.removeprefix(PREFIX)) for path in folder.glob(f"{PREFIX}[0-9]*") if path.is_dir())
    newest = [f"{PREFIX}{step}" for step in steps[-1:]]
    made = newest + [name for name in MADE_BY_A_RUN if _holds(folder / name)]
    conflict = _conflict(folder, made, newest, resume_from_checkpoint)
    if conflict:
        raise FolderError(f"{folder} holds {conflict}")


def _conflict(folder: Path, made: list[str], newest: list[str], resume_from_checkpoint: str | None) -> str:
    """What a folder holds that is in the way, and the way out."""
    if resume_from_checkpoint is None:
        ways = "Continue it with `--resume_from_checkpoint latest`, or give another `--output_dir`."
        return f"a run already ({', '.join(made)}). {ways}" if made else ""
    if resume_from_checkpoint == "latest":
        is_finished = not newest and "config.json" in made
        return "a finished model, and no checkpoint. Give another `--output_dir`." if is_finished else ""
    asked = Path(resume_from_checkpoint)
    if asked.resolve().parent != folder.resolve():
        return f"another run ({', '.join(made)}). Give another `--output_dir`." if made else ""
    if newest and newest != [asked.name]:
        return f"{newest[0]}, newer than {asked.name}. Move it away first, or give another `--output_dir`."
    return ""


def _holds(file: Path) -> bool:
    return file.exists() and file.stat().st_size > 0
