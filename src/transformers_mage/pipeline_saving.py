"""How a pipeline comes from a folder or the Hub, and goes there."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines import pipeline_utils
from transformers.utils import logging

from .carried_code import IS_INSTALLED, class_of_stand_in, remove_code, write_code
from .hub_folders import FETCHING, REPRESENTATION_PARTS, check_repository, holds_weights, model_folder, push_folder
from .modeling_mage import MageForMaskedImageModeling, MageModel
from .representation_diffusion import RepresentationDiffusionModel
from .representation_encoders import ViTWithProjection
from .scheduling_mage import MageScheduler

logger = logging.get_logger(__name__)

# The package's own classes among those that give or draw representations.
_OWN_PARTS: dict[str, Any] = {
    each.__name__: each for each in (MageModel, RepresentationDiffusionModel, ViTWithProjection)
}
# What decides how a model's weights are loaded.
_LOADING = ("variant", "device_map", "max_memory", "offload_folder", "use_safetensors")

# What a saved pipeline does not say, so that earlier versions of this package know all that it says.
PIPELINE_DEFAULTS = {
    **{"encoder_keep_share": None, "full_steps": 1},
    **{"guidance_scale": 0.0, "guidance_schedule": "linear", "guidance_interval": [0.0, 1.0]},
}

# Not at runtime: diffusers expects one pipeline, no more, in the code that a folder carries.
if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as _Pipeline
else:
    _Pipeline = object


class PipelineSavingMixin(_Pipeline):
    """
    Loading and saving of one folder that serves transformers and diffusers alike: the weights lie in its root, where
    diffusers does not look for a component's.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> DiffusionPipeline:
        r"""
        Loads a pipeline. A name on the Hub works exactly as a folder does.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): a folder, or `org/name` on the Hub.
            dtype (`torch.dtype` or `dict`, *optional*): what to load the model in; its tokenizer stays in float32.
            variant (`str`, *optional*): which weights, as `"fp16"`.
            revision, token, cache_dir, local_files_only, force_download (*optional*): see [`~MagePipeline.download`].
            device_map, max_memory, offload_folder, use_safetensors (*optional*): see
                `PreTrainedModel.from_pretrained`.
            kwargs: what else `DiffusionPipeline.from_pretrained` takes, components as `scheduler=...` among them.

        Raises:
            OSError: in one line, where there is no such folder or repository, or it cannot be reached.
            ValueError: where there are no weights of that variant.
        """
        fetching = {name: kwargs.pop(name) for name in FETCHING if name in kwargs}
        folder = cls.download(str(pretrained_model_name_or_path), kwargs.get("variant"), **fetching)
        if not Path(folder, cls.config_name).is_file():
            raise OSError(f"{pretrained_model_name_or_path} holds no pipeline: it has no {cls.config_name}.")
        loading = {name: kwargs.pop(name) for name in _LOADING if kwargs.get(name) is not None}
        dtype = kwargs.pop("dtype", None) or kwargs.pop("torch_dtype", None)
        device_map = None
        if "model" not in kwargs:
            _check_variant(pretrained_model_name_or_path, folder, loading.get("variant"))
            quantization = _quantization_of(kwargs.get("quantization_config"))
            kwargs["model"] = cls._load_model(folder, _dtype_of(dtype), **loading, **quantization)
            # transformers notes where the parts of a model are, unless it is in one piece.
            device_map = getattr(kwargs["model"], "hf_device_map", loading.get("device_map"))
            _log_loaded("model", kwargs["model"], pretrained_model_name_or_path)
        if "scheduler" not in kwargs:
            kwargs["scheduler"] = MageScheduler.from_pretrained(folder, subfolder="scheduler")
            _log_loaded("scheduler", kwargs["scheduler"], pretrained_model_name_or_path)
        loading_parts = {name: loading[name] for name in ("variant", "use_safetensors") if name in loading}
        for name, part_class in cls._own_parts(folder):
            if name not in kwargs:
                part_dtype = _dtype_of(dtype, name)
                kwargs[name] = part_class.from_pretrained(Path(folder, name), dtype=part_dtype, **loading_parts)
                _log_loaded(name, kwargs[name], pretrained_model_name_or_path)
        pipe = super().from_pretrained(folder, **kwargs)
        pipe.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        pipe.hf_device_map = device_map
        return pipe

    @classmethod
    def _own_parts(cls, folder: str) -> Iterator[tuple[str, Any]]:
        """Names and classes of what gives and draws representations, where these are classes of this package."""
        index = json.loads(Path(folder, cls.config_name).read_text())
        for name in REPRESENTATION_PARTS:
            _, class_name = index.get(name) or (None, None)
            if class_of_stand_in(class_name) in _OWN_PARTS:
                yield name, _OWN_PARTS[class_of_stand_in(class_name)]

    @staticmethod
    def _load_model(folder: str, dtype: torch.dtype | None, **loading: Any) -> MageForMaskedImageModeling:
        return MageForMaskedImageModeling.from_pretrained(folder, dtype=dtype, **loading)

    @classmethod
    def download(cls, pretrained_model_name: str, variant: str | None = None, **fetching: Any) -> str:
        r"""
        Fetches what a pipeline needs from the Hub, unless the cache has it.

        Args:
            pretrained_model_name (`str`): `org/name`, or a folder, which is what is returned then.
            variant (`str`, *optional*): which weights, as `"fp16"`.
            revision (`str`, *optional*): a branch, tag or commit.
            token (`str` or `bool`, *optional*): for private and gated repositories; by default the one of
                `hf auth login`, or `HF_TOKEN`.
            cache_dir (`str` or `os.PathLike`, *optional*): by default `HF_HUB_CACHE`.
            local_files_only (`bool`, *optional*): take it from the cache, as with `HF_HUB_OFFLINE=1`.
            force_download (`bool`, *optional*): fetch it even though the cache has it.

        Returns:
            `str`: the folder in the cache.

        Raises:
            OSError: in one line, where there is no such repository, or it cannot be reached.
            TypeError: for anything else that is passed.
        """
        unknown = sorted(set(fetching) - set(FETCHING))
        if unknown:
            raise TypeError(f"`download` takes {list(FETCHING)}, got `{unknown[0]}`.")
        return model_folder(pretrained_model_name, variant, REPRESENTATION_PARTS, **fetching)

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> dict | tuple:
        """The folder's `model_index.json`, with where its classes are today, or are here, in place of what it says."""
        loaded = super().load_config(pretrained_model_name_or_path, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        config["_class_name"] = cls.__name__
        for name, component in (("model", MageForMaskedImageModeling), ("scheduler", MageScheduler)):
            if name in config:
                config[name] = [component.__module__, component.__name__]
        for name in REPRESENTATION_PARTS:
            part = _OWN_PARTS.get(class_of_stand_in((config.get(name) or [None, None])[1]))
            if part is not None:
                config[name] = [part.__module__, part.__name__]
        return loaded

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "5GB",
        push_to_hub: bool = False,
        with_code: bool | None = None,
        *,
        repo_id: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ):
        r"""
        Saves one folder that serves `AutoModel`, `AutoImageProcessor` and [`MagePipeline`], each weight stored once.
        What an earlier save left there of the same variant is replaced, other variants and the card are kept.

        Args:
            save_directory (`str` or `os.PathLike`): the folder, created if need be.
            safe_serialization (`bool`): for diffusers' sake. Weights are safetensors in any case.
            variant (`str`, *optional*): put it into the names of the weights' files, as `"fp16"`.
            max_shard_size (`int` or `str`, *optional*, defaults to `"5GB"`): largest size of one file of weights.
            push_to_hub (`bool`, *optional*): upload the folder afterwards.
            with_code (`bool`, *optional*): add the code that loads the folder without this package. By default, if
                the folder is pushed.
            repo_id (`str`, *optional*): where to push; by default the folder's name, in the account of the token.
            private (`bool`, *optional*): whether a repository that is created is private.
            token (`str` or `bool`, *optional*): by default the one of `hf auth login`, or `HF_TOKEN`.
            commit_message (`str`, *optional*): of the push.
            revision (`str`, *optional*): the branch to push to, created if need be.
            create_pr (`bool`): open a pull request rather than change the branch.

        Raises:
            OSError: in one line and before anything is saved, where the folder cannot be pushed.
        """
        if os.path.isfile(save_directory):
            raise NotADirectoryError(f"`save_directory` must be a folder, and {save_directory} is a file.")
        name = repo_id or Path(save_directory).resolve().name
        target = check_repository(name, token, private) if push_to_hub else None
        if not safe_serialization:
            logger.warning("`safe_serialization=False` is not done: a MagePipeline's weights are always safetensors.")
        carries_code = (push_to_hub or not IS_INSTALLED) if with_code is None else with_code
        self._save_parts(Path(save_directory), variant, max_shard_size)
        (write_code if carries_code else remove_code)(save_directory)
        if target is not None:
            push_folder(
                save_directory,
                target,
                private=private,
                token=token,
                commit_message=commit_message or "Upload MagePipeline",
                revision=revision,
                create_pr=create_pr,
                variant=variant,
            )

    def _save_parts(self, folder: Path, variant: str | None, max_shard_size: int | str):
        self.model.save_pretrained(folder, variant=variant, max_shard_size=max_shard_size)
        self.scheduler.save_pretrained(folder / "scheduler")
        if self.image_processor is None:
            (folder / "preprocessor_config.json").unlink(missing_ok=True)
        else:
            self.image_processor.save_pretrained(folder)
        for name in REPRESENTATION_PARTS:
            self._save_representation_part(folder / name, variant, max_shard_size)
        (folder / self.config_name).write_text(json.dumps(self._index(), indent=2, sort_keys=True) + "\n")

    def _save_representation_part(self, folder: Path, variant: str | None, max_shard_size: int | str):
        part: Any = getattr(self, folder.name)
        if folder.is_dir():
            # Another one, or its code, is not to be published with this one.
            shutil.rmtree(folder)
        if isinstance(part, torch.nn.Module):
            part.save_pretrained(folder, variant=variant, max_shard_size=max_shard_size)  # type: ignore[operator]
            remove_code(folder)
        elif part is not None:
            part.save_pretrained(folder)

    def _index(self) -> dict[str, Any]:
        """What `model_index.json` says."""
        # Where the pipeline was loaded from is nobody's business but this machine's.
        index = {name: value for name, value in json.loads(self.to_json_string()).items() if name != "_name_or_path"}
        index["_class_name"] = type(self).__name__
        for name, default in PIPELINE_DEFAULTS.items():
            if index[name] == default:
                del index[name]
        for name, component in self.components.items():
            library = None if component is None else type(component).__module__
            if component is None and name in REPRESENTATION_PARTS:
                # As folders were before there were such parts.
                del index[name]
            elif type(component).__name__ in _OWN_PARTS:
                index[name] = ["transformers_mage", type(component).__name__]
            elif library is not None and library.rpartition(".")[0] == __package__:
                # The package rather than its files, so that saved folders outlive a change of layout.
                index[name] = ["transformers_mage", type(component).__name__]
            elif library is not None and library.startswith("transformers."):
                index[name] = ["transformers", type(component).__name__]
        return index

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        *,
        revision: str | None = None,
        max_shard_size: int | str = "5GB",
    ) -> str:
        r"""
        Uploads the pipeline, with the code that loads it without this package.

        Args:
            repo_id (`str`): `org/name`, or a name in the account of the token.
            max_shard_size, the others: see [`~MagePipeline.save_pretrained`].

        Returns:
            `str`: the address of the commit, or of the pull request.

        Raises:
            OSError: in one line, where the token is wrong or the name is another's.
        """
        repo_id = check_repository(repo_id, token, private)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, safe_serialization, variant, max_shard_size, with_code=True)
            return push_folder(
                folder,
                repo_id,
                private=private,
                token=token,
                commit_message=commit_message or "Upload MagePipeline",
                revision=revision,
                create_pr=create_pr,
                variant=variant,
            )


def _check_variant(name: str | os.PathLike, folder: str, variant: str | None):
    """Raises ValueError, as diffusers does, where there are no weights of the variant."""
    if variant is None or holds_weights(folder, variant):
        return
    raise ValueError(
        f"You are trying to load the model files of the `variant={variant}`, and {name} holds none. Leave `variant` "
        "out, or name one that its files are called by, as `fp16` in model.fp16.safetensors."
    )


def _log_loaded(name: str, component: Any, source: str | os.PathLike):
    """As diffusers logs the components that it loads itself."""
    pipeline_utils.logger.info(f"Loaded {name} as {type(component).__name__} from {source}.")


def _dtype_of(dtype: torch.dtype | dict | None, name: str = "model") -> torch.dtype | None:
    """A component's, where diffusers takes one for each of them."""
    return dtype.get(name, dtype.get("default")) if isinstance(dtype, dict) else dtype


def _quantization_of(config: Any) -> dict[str, Any]:
    """The model's part of a `PipelineQuantizationConfig`."""
    own = None if config is None else config._resolve_quant_config(is_diffusers=False, module_name="model")
    return {} if own is None else {"quantization_config": own}


__all__ = ["PipelineSavingMixin"]
