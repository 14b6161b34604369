"""MAGE, the masked generative encoder, for transformers and diffusers. Importing it registers the Auto classes."""

import diffusers
from diffusers import ModelMixin, SchedulerMixin
from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    PreTrainedModel,
)

from .configuration_mage import MageConfig
from .masking import MageMasks, sample_mask_ratio, sample_masks
from .modeling_mage import (
    MageForImageClassification,
    MageForMaskedImageModeling,
    MageModel,
    MagePreTrainedModel,
)
from .pipeline_mage import MagePipeline, MagePipelineOutput
from .representation_diffusion import RepresentationDiffusionModel
from .representation_encoders import ViTWithProjection
from .representations import RepresentationEncoder, RepresentationSource, standardize
from .scheduling_mage import MageScheduler

__version__ = "0.2.0.dev0"

AutoConfig.register("mage", MageConfig)
AutoModel.register(MageConfig, MageModel)
AutoModelForMaskedImageModeling.register(MageConfig, MageForMaskedImageModeling)
AutoModelForImageClassification.register(MageConfig, MageForImageClassification)

# Where `DiffusionPipeline.from_pretrained` looks the names in `model_index.json` up, of today and of older folders.
diffusers.MagePipeline = MagePipeline
for _library in ("transformers_mage", "transformers_mage.scheduling_mage"):
    LOADABLE_CLASSES[_library] = {
        "ModelMixin": ["save_pretrained", "from_pretrained"],
        "PreTrainedModel": ["save_pretrained", "from_pretrained"],
        "SchedulerMixin": ["save_pretrained", "from_pretrained"],
    }

__all__ = [
    "MageConfig",
    "MageForImageClassification",
    "MageForMaskedImageModeling",
    "MageMasks",
    "MageModel",
    "MagePipeline",
    "MagePipelineOutput",
    "MagePreTrainedModel",
    "MageScheduler",
    # diffusers looks the base classes of a pipeline's components up in the components' library.
    "ModelMixin",
    "PreTrainedModel",
    "RepresentationDiffusionModel",
    "RepresentationEncoder",
    "RepresentationSource",
    "SchedulerMixin",
    "ViTWithProjection",
    "sample_mask_ratio",
    "sample_masks",
    "standardize",
]
