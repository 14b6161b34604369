"""What becomes of a model while it trains and when it is trained: its folder, its card and its pushes."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from diffusers import VQModel

from ..command_line import as_flat_dict
from ..configuration_mage import MageConfig
from ..hub.gallery import sample_gallery
from ..hub.model_card import CardFacts, Sample, Task, write_card
from ..hub.publishing import Publisher
from .arguments import TrainingArguments
from .checkpointing import PREFIX
from .pretraining import save_model
from .run import TrainingRun

State = dict[str, torch.Tensor]
# What a recipe has to do with this machine rather than with the model.
_LOCAL = (
    "output_dir",
    "resume_from_checkpoint",
    "report_to",
    "push_to_hub",
    "hub_model_id",
    "hub_strategy",
    "hub_private_repo",
    "with_code",
    "token_cache",
    "dataloader_num_workers",
    "dataloader_timeout",
)


def publish_checkpoints(run: TrainingRun, publisher: Publisher, write: Callable[[State], None]):
    """
    Lets the model so far follow each checkpoint to the Hub, where `--hub_strategy` says so. All processes call it.

    Args:
        write (`Callable`): writes the folder of the model with these weights.
    """

    def publish():
        accelerator, step = run.accelerator, run.progress.step
        # Uploads end in the main process, and gathering a sharded model takes all of them.
        [is_free] = broadcast_object_list([publisher.is_free])
        if not is_free or step == run.total_steps:
            return
        with run.evaluation_weights():
            state = accelerator.get_state_dict(run.model)
        if accelerator.is_main_process:
            checkpoint = Path(run.arguments.output_dir, f"{PREFIX}{step}")
            publisher.publish_checkpoint(step, partial(write, state), checkpoint)

    if publisher.publication.follows_checkpoints:
        run.after_saving.append(publish)


def write_generator(state: State, config: MageConfig, tokenizer: VQModel, arguments: TrainingArguments, name: str):
    """Writes the folder of a pre-trained model, with a card that shows what it makes."""
    pipe = save_model(state, config, tokenizer, arguments.output_dir)
    write_card(arguments.output_dir, card_facts(arguments, name, "generation", config, sample_gallery(pipe)))


def card_facts(
    arguments: TrainingArguments,
    name: str,
    task: Task,
    config: MageConfig | None = None,
    samples: Sequence[Sample] = (),
) -> CardFacts:
    """What the command line tells about a model."""
    recipe = {key: value for key, value in as_flat_dict(arguments).items() if key not in _LOCAL and value is not None}
    return CardFacts(
        name=name,
        task=task,
        config=config,
        dataset_name=arguments.dataset_name,
        base_model=getattr(arguments, "pretrained_model_name_or_path", getattr(arguments, "model_name_or_path", None)),
        recipe=recipe,
        metrics_file=Path(arguments.output_dir, "metrics.jsonl"),
        samples=samples,
        carries_code=arguments.publication.carries_code,
    )
