"""
Trains transformers' own ViT-MAE, of the size of the models of clothes, on the same images: what MAGE's representations
are compared with.

    python -m examples.fashion.train_vit_mae --config configs/vit_mae_fashion.yaml --dataset_name outputs/fashion/data
"""

import inspect
from dataclasses import dataclass, field
from typing import Any

from accelerate.utils import set_seed
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from transformers_mage.command_line import group, parse_arguments, reports_errors
from transformers_mage.data.sources import create_source
from transformers_mage.data.views import ImageViews
from transformers_mage.files import filled_aside
from transformers_mage.training.arguments import TrainingArguments
from transformers_mage.training.run import TrainingRun, create_accelerator


def model_values() -> dict[str, Any]:
    """The fields of `ViTMAEConfig` that a recipe can set, with their defaults."""
    fields = inspect.signature(ViTMAEConfig).parameters
    values = {name: field.default for name, field in fields.items() if name not in ("args", "kwargs")}
    return {**values, "attn_implementation": None}


@dataclass
class ViTMAEArguments(TrainingArguments):
    model: dict = field(init=False, default_factory=dict, metadata=group("fields of ViTMAEConfig.", model_values))


@reports_errors
def main(argv: list[str] | None = None):
    arguments = parse_arguments(ViTMAEArguments, __doc__, argv)
    accelerator = create_accelerator(arguments)
    mae = ViTMAEForPreTraining(ViTMAEConfig(**arguments.model))
    size = (mae.config.image_size, mae.config.image_size)
    views = ImageViews(size, mae.config.num_channels, 1, arguments.crops)
    source = create_source(arguments.train_data, views, arguments.loading(accelerator))
    run = TrainingRun(arguments, source, accelerator)
    model = run.prepare(mae)
    set_seed(arguments.seed, device_specific=True)
    run.start()
    augmentation = views.on_device()
    for batch in run.batches():
        with accelerator.accumulate(model):
            loss = model(pixel_values=augmentation.of(batch)).loss
            run.update(loss, {"loss": loss.detach()})

    with run.finished() as state:
        if state is not None:
            trained = ViTMAEForPreTraining(mae.config)
            trained.load_state_dict(state)
            with filled_aside(arguments.output_dir) as folder:
                trained.save_pretrained(folder)


if __name__ == "__main__":
    main()
