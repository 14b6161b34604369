"""How diffusers loads a model whose weights or code lie in the root of the folder, where transformers finds them."""

from pathlib import Path
from typing import Any

from diffusers import ModelMixin
from transformers import AutoModelForMaskedImageModeling, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module

# That the code beside them may run was agreed to, or the code here would not have.


class MageModelFromRoot(PreTrainedModel):
    """Stands for the model in `model_index.json`: the folder `model/` holds this code and no weights."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """The model in the parent folder."""
        root = Path(pretrained_model_name_or_path).parent
        return AutoModelForMaskedImageModeling.from_pretrained(root, *model_args, trust_remote_code=True, **kwargs)


class MageModelCodeFromRoot(PreTrainedModel):
    """Stands for an encoder, `MageModel`, whose weights lie in its own folder."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """The model in the folder, by the code in the parent folder."""
        model_class = _class_in_root("modeling_mage.MageModel", pretrained_model_name_or_path)
        return model_class.from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)


class ViTWithProjectionCodeFromRoot(PreTrainedModel):
    """The same for a `ViTWithProjection`."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """The model in the folder, by the code in the parent folder."""
        model_class = _class_in_root("representation_encoders.ViTWithProjection", pretrained_model_name_or_path)
        return model_class.from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)


class RepresentationDiffusionModelCodeFromRoot(ModelMixin):
    """The same for a `RepresentationDiffusionModel`."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """The model in the folder, by the code in the parent folder."""
        name = "representation_diffusion.RepresentationDiffusionModel"
        return _class_in_root(name, pretrained_model_name_or_path).from_pretrained(
            pretrained_model_name_or_path, **kwargs
        )


def _class_in_root(name: str, folder: Any) -> Any:
    return get_class_from_dynamic_module(name, str(Path(folder).parent))


__all__ = [
    "MageModelCodeFromRoot",
    "MageModelFromRoot",
    "RepresentationDiffusionModelCodeFromRoot",
    "ViTWithProjectionCodeFromRoot",
]
