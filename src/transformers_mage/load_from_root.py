"""How diffusers loads a model whose weights lie in the root of the folder, where transformers finds them."""

from pathlib import Path
from typing import Any

from transformers import AutoModelForMaskedImageModeling, PreTrainedModel


class MageModelFromRoot(PreTrainedModel):
    """Stands for the model in `model_index.json`: the folder `model/` holds this code and no weights."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """The model in the parent folder. That the code beside it may run was agreed to, or this would not have."""
        root = Path(pretrained_model_name_or_path).parent
        return AutoModelForMaskedImageModeling.from_pretrained(root, *model_args, trust_remote_code=True, **kwargs)


__all__ = ["MageModelFromRoot"]
