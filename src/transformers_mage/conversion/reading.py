"""Opens the original's files without running anything in them, and says what they are, or what else."""

import argparse
import io
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import torch

from .names import TOKENIZER_PREFIX, has_maskgit_names, is_unused, rename_maskgit
from .representation_diffusion import AVERAGE_PREFIX, CLASS_EMBEDDING, NETWORK_PREFIX, is_representation_diffusion
from .representation_encoder import ENCODER_PREFIX

# What a pre-training run of MAGE-C may call its contrastive head; no published file tells.
_PROJECTION_HEAD = re.compile(r"(proj|contrast|predictor|mlp_head|head)\w*\.")
# Characteristic names of what people hold for a checkpoint of MAGE.
_OTHER_MODELS = {
    "MaskGIT, in a PyTorch port": r"transformer_layers\.|tok_emb\.|mlm_layer\.mlm_",
    "a VQGAN with attention, as taming-transformers'": r"(encoder|decoder)\.mid\.attn_1\.",
    "a latent diffusion model": r"model\.diffusion_model\.",
    "MAE": r"decoder_pred\.|mask_token$",
    "a vision transformer over pixels, as MAE's classifiers": r"patch_embed\.proj\.",
}
_SAFE_IMPORTS = re.compile(
    r"torch\._utils\._rebuild_\w+$|torch\.(\w+Storage|Size|device|Tensor|b?float\d+|int\d+)$|torch\.nn\.parameter\.Parameter$"
    r"|collections\.OrderedDict$|argparse\.Namespace$"
)
_HEADS = {"pretraining": "mlm_layer.", "probe": "head.1.", "classifier": "head."}


class CheckpointError(ValueError):
    """A checkpoint that cannot be converted; the message says what it is and what would do."""


@dataclass
class OriginalCheckpoint:
    """
    What an original file holds.

    Args:
        path (`Path`): the file.
        kind (`str`): `"pretraining"`, `"classifier"`, `"probe"`, `"tokenizer"` or `"representation_diffusion"`.
        model (`dict[str, torch.Tensor]`): the model's parameters in the original naming, those it reads.
        tokenizer (`dict[str, torch.Tensor]`, *optional*): the tokenizer's, without the prefix.
        representation_encoder (`dict[str, torch.Tensor]`): what RCG takes representations with, without the prefix.
        projection_head (`list[str]`): names of a contrastive head, which is not converted.
        unused (`list[str]`): names of parameters that the original never reads.
        training_state (`list[str]`): what else the file holds: optimizer, scaler, arguments.
        epoch (`int`, *optional*): the last epoch trained, from 0.
        is_maskgit (`bool`): whether it is MaskGIT's tokenizer, in the naming of open-muse and TiTok.
    """

    path: Path
    kind: str
    model: dict[str, torch.Tensor]
    tokenizer: dict[str, torch.Tensor] | None = None
    representation_encoder: dict[str, torch.Tensor] = field(default_factory=dict)
    projection_head: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    training_state: list[str] = field(default_factory=list)
    epoch: int | None = None
    is_maskgit: bool = False

    def release(self):
        """Lets go of the weights, and with them of the mapped file."""
        self.model = {}
        self.tokenizer = None if self.tokenizer is None else {}
        self.representation_encoder = {}


def read_checkpoint(path: str | Path) -> OriginalCheckpoint:
    """
    Reads a pre-training checkpoint, a classifier, a linear probe, a tokenizer or RCG's diffusion of representations.
    Files of PyTorch 1.6 or later are mapped into memory, so that the optimizer's state in them costs nothing.

    Args:
        path (`str` or `Path`): the downloaded file.

    Raises:
        CheckpointError: for anything else; nothing in the file is run.
    """
    path = Path(path)
    weights, others = _find_weights(_load_pickle(path), path)
    kind = _kind_of(weights, path)
    training_state = sorted(map(str, others))
    checkpoint = OriginalCheckpoint(path, kind, {}, training_state=training_state, epoch=_epoch_of(others))
    if kind == "tokenizer":
        checkpoint.tokenizer = {name.removeprefix(TOKENIZER_PREFIX): weight for name, weight in weights.items()}
        checkpoint.is_maskgit = has_maskgit_names(checkpoint.tokenizer)
        if checkpoint.is_maskgit:
            checkpoint.tokenizer = rename_maskgit(checkpoint.tokenizer)
        return checkpoint
    sort = _sort_diffusion if kind == "representation_diffusion" else _sort_mage
    sort(checkpoint, weights)
    return checkpoint


def _sort_diffusion(checkpoint: OriginalCheckpoint, weights: dict[str, torch.Tensor]):
    """RCG keeps the network together with the encoder and the constants of the diffusion, or alone."""
    is_alone = NETWORK_PREFIX + "input_proj.weight" not in weights
    read = (NETWORK_PREFIX, AVERAGE_PREFIX, CLASS_EMBEDDING)
    checkpoint.model = {name: weight for name, weight in weights.items() if is_alone or name.startswith(read)}
    checkpoint.unused = sorted({name.partition(".")[0] for name in weights.keys() - checkpoint.model.keys()})


def _sort_mage(checkpoint: OriginalCheckpoint, weights: dict[str, torch.Tensor]):
    is_led = "latent_prior_proj.weight" in weights
    for name, weight in weights.items():
        if name.startswith(TOKENIZER_PREFIX):
            checkpoint.tokenizer = checkpoint.tokenizer or {}
            checkpoint.tokenizer[name.removeprefix(TOKENIZER_PREFIX)] = weight
        elif name.startswith(ENCODER_PREFIX):
            checkpoint.representation_encoder[name.removeprefix(ENCODER_PREFIX)] = weight
        elif is_unused(name) or (name == "fake_latent" and not is_led):
            # RCG's models of classes have an empty representation too.
            checkpoint.unused.append(name)
        elif checkpoint.kind == "pretraining" and _PROJECTION_HEAD.match(name):
            checkpoint.projection_head.append(name)
        else:
            checkpoint.model[name] = weight


def add_tokenizer(checkpoint: OriginalCheckpoint, tokenizer: OriginalCheckpoint):
    """
    Puts the tokenizer of a second file into `checkpoint`.

    Raises:
        CheckpointError: where there is one already that is not the same, or the files are of other kinds.
    """
    if tokenizer.kind != "tokenizer":
        raise CheckpointError(f"{tokenizer.path} is not a tokenizer's own file but a {tokenizer.kind} checkpoint.")
    if checkpoint.kind == "tokenizer":
        raise CheckpointError(f"{checkpoint.path} is a tokenizer itself. Leave `--tokenizer` out.")
    inside, given = checkpoint.tokenizer, tokenizer.tokenizer or {}
    if inside is None:
        checkpoint.tokenizer = given
        return
    differing = [name for name in {**inside, **given} if not _same(inside.get(name), given.get(name))]
    if differing:
        raise CheckpointError(
            f"{checkpoint.path} has another tokenizer inside than {tokenizer.path}: {len(differing)} of {len(inside)} "
            f"tensors differ ({_some(differing, limit=3)}). Leave `--tokenizer` out to keep the one inside, which the "
            "model was trained with."
        )


def _same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is not None and other is not None and one.shape == other.shape and torch.equal(one, other)


def _load_pickle(path: Path) -> object:
    """What a file of PyTorch holds: tensors, plain containers and `argparse.Namespace`, nothing else."""
    _check_file(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of protocols that are refused anyway
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        wanted = _unsafe_globals(path)
        if not wanted:
            reason = re.search(r"Unpickler error: (.*)", str(error))
            raise CheckpointError(
                f"{path} is damaged, or not a checkpoint: it was refused for {reason[1] if reason else error}."
            ) from error
        raise CheckpointError(
            f"{path} asks for more than tensors: {', '.join(wanted)}. It was refused, and nothing of it was run. The "
            "published checkpoints do not ask for such things; get the file from where its authors put it."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is damaged, or PyTorch did not write it: {_first_line(error)} Download it again."
        ) from error


def _check_file(path: Path):
    """Refuses by its first bytes what is not a pickle of PyTorch."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; pass the original's file. (`--to_original` takes folders.)")
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}.")
    try:
        with open(path, "rb") as file:
            head = file.read(1024)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    what = _what_is(head, path)
    if what:
        raise CheckpointError(f"{path} is {what}")


def _what_is(head: bytes, path: Path) -> str | None:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not head:
        return "empty. Download it again."
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return (
            "an HTML page, not a checkpoint. Drives show such a page instead of a large file: open it in a browser "
            "and confirm the download there."
        )
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself. Run `git lfs pull`."
    if head.startswith(b"PK"):
        size = f"{path.stat().st_size / 2**20:.1f} MiB"
        return None if zipfile.is_zipfile(path) else f"truncated: it ends after {size}. Download it again."
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return "a safetensors file; the original's checkpoints are pickles. Is it converted already?"
    if re.match(rb"[\x81-\x8f][\xa0-\xbf\xd9]", head):
        return "a Flax checkpoint (msgpack), as MaskGIT's are. Only MAGE's own PyTorch checkpoints can be converted."
    if head[0] != 0x80:
        return f"not a checkpoint of PyTorch: it starts with {head[:16]!r}."
    return None


def _unsafe_globals(path: Path) -> list[str]:
    """Names of what a pickle would import that weights do not need, found without unpickling it."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            pickles = [io.BytesIO(archive.read(name)) for name in archive.namelist() if name.endswith("/data.pkl")]
        imported = {name for file in pickles for name in _imports(file)}
    else:
        with open(path, "rb") as file:
            # Before 1.6, a file was five pickles one after the other, and the numbers.
            imported = {name for _ in range(5) for name in _imports(file)}
    return sorted(name for name in imported if not _SAFE_IMPORTS.match(name))


def _imports(file: BinaryIO) -> Iterator[str]:
    """Names that the next pickle in `file` imports."""
    strings, memo = [""], []
    try:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "GLOBAL":
                yield str(argument).replace(" ", ".")
            elif opcode.name == "STACK_GLOBAL":
                yield ".".join(strings[-2:])
            elif opcode.name == "MEMOIZE":
                memo.append(strings[-1])
            elif opcode.name.endswith("BINGET") and isinstance(argument, int) and argument < len(memo):
                strings.append(memo[argument])
            elif isinstance(argument, str):
                strings.append(argument)
    except ValueError:
        return  # not a pickle, or a truncated one


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".") + "."


def _find_weights(payload: object, path: Path) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """The state dict of a file, and what else the file holds."""
    if not isinstance(payload, Mapping):
        raise CheckpointError(f"{path} holds a {type(payload).__name__}, not the weights of a model.")
    weights, others = payload, {}
    for key in ("model", "state_dict"):
        if isinstance(payload.get(key), Mapping):
            weights, others = payload[key], {name: value for name, value in payload.items() if name != key}
            break
    strangers = [str(name) for name, value in weights.items() if not _is_named_tensor(name, value)]
    if strangers or not weights:
        held = f"{_some(strangers)}, which are not named tensors" if strangers else "nothing"
        raise CheckpointError(
            f"{path} holds {held}. Weights are expected under `model` or `state_dict`, or at the top of the file."
        )
    return {name: weight.detach() for name, weight in weights.items()}, others


def _is_named_tensor(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, torch.Tensor)


def _epoch_of(others: Mapping[str, object]) -> int | None:
    epoch = others.get("epoch")
    return epoch if isinstance(epoch, int) else None


def _kind_of(weights: Mapping[str, torch.Tensor], path: Path) -> str:
    names = list(weights)
    is_mage = any(name.startswith("token_emb.") for name in names)
    bare_names = [name.removeprefix(TOKENIZER_PREFIX) for name in names]
    if not is_mage and is_representation_diffusion(names):
        return "representation_diffusion"
    for model, pattern in _OTHER_MODELS.items():
        if not is_mage and any(re.match(pattern, name) for name in bare_names):
            raise CheckpointError(f"{path} is a checkpoint of {model}, not of MAGE: it holds {_some(names)}.")
    if not is_mage and "quantize.embedding.weight" in bare_names:
        return "tokenizer"
    for kind, prefix in _HEADS.items():
        if is_mage and any(name.startswith(prefix) for name in names):
            return kind
    if is_mage:
        raise CheckpointError(
            f"{path} holds MAGE's encoder but neither a decoder (`mlm_layer.*`) nor a classifier (`head.*`): "
            f"{_some(names)}."
        )
    raise CheckpointError(f"{path} is not a checkpoint of MAGE: it holds {_some(names)}.")


def _some(names: Iterable[str], limit: int = 8) -> str:
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
