"""
Converts the original's checkpoints to folders that `MagePipeline`, `AutoModel` and the Hub understand, and back.

    python -m transformers_mage.convert_original_checkpoint mage-vitb-1600.pth mage-vit-base
    python -m transformers_mage.convert_original_checkpoint mage-vit-base back.pth --to_original
    python -m transformers_mage.convert_original_checkpoint rcg-mage.pth rcg --representation_diffusion rcg-rdm.pth

What a checkpoint is, and every size of it, is read off its names and shapes. Pickles are read without running anything
in them, and what is at OUT is always complete.
"""

import argparse
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tqdm import tqdm
from transformers.utils import logging

from .carried_code import write_code
from .configuration_mage import MageConfig
from .conversion.card import model_card, title
from .conversion.class_names import read_class_names
from .conversion.folder import (
    check_free,
    compare_passes,
    fill_model,
    forward_pass,
    read_model,
    representation_parts,
    write_model,
)
from .conversion.names import convert_model, convert_tokenizer, tokenizer_config
from .conversion.original_format import write_original
from .conversion.reading import CheckpointError, OriginalCheckpoint, add_tokenizer, read_checkpoint
from .conversion.sizes import (
    Convertible,
    build_empty,
    check_names_and_shapes,
    read_config,
    read_diffusion_config,
    read_tokenizer_config,
)
from .conversion.summary import next_steps, table, usage
from .files import FolderError, locked_beside, written_aside
from .hub.gallery import sample_gallery
from .hub.model_card import add_gallery
from .hub_folders import check_repository, push_folder
from .modeling_mage import MagePreTrainedModel
from .pipeline_mage import MagePipeline

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m transformers_mage.convert_original_checkpoint",
        description="Converts a checkpoint of the original MAGE to a folder for MagePipeline, AutoModel and the Hub.",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="the original's file")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write; it must not exist")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="CKPT", help="the tokenizer's own file, where CHECKPOINT has none inside"
    )
    parser.add_argument(
        "--representation_diffusion",
        type=Path,
        metavar="CKPT",
        help="RCG's file of what draws representations for CHECKPOINT, to be kept with it",
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="of the written weights; the tokenizer's stay in float32"
    )
    parser.add_argument("--labels", type=Path, metavar="FILE", help="names of a classifier's classes, one a line")
    parser.add_argument("--num_attention_heads", type=int, metavar="N", help="of the encoder (default: width / 64)")
    parser.add_argument("--decoder_num_attention_heads", type=int, metavar="N", help="of the decoder (default: 16)")
    parser.add_argument(
        "--num_samples", type=_count, default=0, metavar="N", help="make so many images for the card's gallery"
    )
    parser.add_argument("--push_to_hub", metavar="NAME", help="upload the folder to this repository of the Hub")
    parser.add_argument(
        "--with_code", action="store_true", help="let OUT carry the code that loads it without this package"
    )
    parser.add_argument(
        "--to_original",
        action="store_true",
        help="the way back: CHECKPOINT is a converted folder, and OUT a file in the original's format",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None):
    args = parse_args(argv)
    logging.disable_progress_bar()  # there is one already
    try:
        with locked_beside(args.out):
            if args.to_original:
                print(write_original(args.checkpoint, args.out))
            else:
                convert(args)
    except (CheckpointError, FolderError) as error:
        raise SystemExit(f"error: {error}") from None
    except (OSError, SafetensorError) as error:
        raise SystemExit(f"error: {error}. {_state_of(args.out)}") from None
    except KeyboardInterrupt:
        raise SystemExit(f"Interrupted. {_state_of(args.out)}") from None
    finally:
        logging.enable_progress_bar()


def convert(args: argparse.Namespace):
    """Reads, converts, writes, loads back, compares and reports."""
    check_free(args.out)
    if args.push_to_hub:
        args.push_to_hub = check_repository(args.push_to_hub)
    steps = 6 if args.num_samples else 5
    with tqdm(total=steps, bar_format="{desc:<24}{bar}{n_fmt}/{total_fmt} [{elapsed}]") as progress:
        with _step(progress, "reading"):
            checkpoint, model = read(args)
        with _step(progress, "converting"):
            fill_model(model, checkpoint, DTYPES[args.dtype])
            config = model.config if isinstance(model, MagePreTrainedModel) else None
            parts = read_parts(args, checkpoint, config)
        summary = f"{args.checkpoint}: {title(checkpoint, config)}\n\n{table(model, checkpoint, parts)}"
        difference = write(model, parts, checkpoint, args, progress)
    print(f"\n{summary}\n\n{args.out}: loaded back, a forward pass differs by {difference:.1e} from the one before.")
    if args.push_to_hub:
        push(args.out, args.push_to_hub)
    print(next_steps(checkpoint, args.out, has_labels=bool(args.labels)))


def write(
    model: Convertible,
    parts: dict[str, Any],
    checkpoint: OriginalCheckpoint,
    args: argparse.Namespace,
    progress: tqdm,
) -> float:
    """Writes the folder, if a model loaded from it computes the same; returns the relative difference."""
    with _step(progress, "running the model"):
        expected = {name: forward_pass(each) for name, each in {"": model, **parts}.items()}
    config = model.config if isinstance(model, MagePreTrainedModel) else None
    with written_aside(args.out) as folder:
        with _step(progress, "writing"):
            write_model(model, checkpoint.kind, folder, parts)
            code = usage(checkpoint, args.push_to_hub or args.out.name)
            model_card(checkpoint, config, code).save(folder / "README.md")
            if args.with_code or args.push_to_hub:
                write_code(folder)
        with _step(progress, "loading back"):
            # Once is enough for the weights to be in memory.
            model.to_empty(device="meta")
            checkpoint.release()
            kinds = {name: type(each) for name, each in {"": model, **parts}.items()}
            read_again = ((name, read_model(folder / name, kind)) for name, kind in kinds.items())
            difference = max(compare_passes(expected[name], forward_pass(each)) for name, each in read_again)
        if args.num_samples:
            with _step(progress, "making samples"):
                samples = sample_gallery(MagePipeline.from_pretrained(folder), args.num_samples)
                add_gallery(folder / "README.md", samples)
        return difference


def read(args: argparse.Namespace) -> tuple[OriginalCheckpoint, Convertible]:
    """The checkpoint, its tokenizer in it, and an empty model that it fits."""
    checkpoint = read_checkpoint(args.checkpoint)
    if args.labels and checkpoint.kind not in ("classifier", "probe"):
        raise CheckpointError(f"`--labels` are for classifiers, but {args.checkpoint} is a {checkpoint.kind} file.")
    if args.num_samples:
        check_makes_images(checkpoint, has_tokenizer=bool(args.tokenizer or checkpoint.tokenizer))
    if args.tokenizer:
        tokenizer = read_checkpoint(args.tokenizer)
        add_tokenizer(checkpoint, tokenizer)
        check_names_and_shapes(tokenizer, build_empty(tokenizer, read_tokenizer_config(tokenizer)))
    heads = (args.num_attention_heads, args.decoder_num_attention_heads)
    readers = {"tokenizer": read_tokenizer_config, "representation_diffusion": read_diffusion_config}
    reader = readers.get(checkpoint.kind)
    config = reader(checkpoint) if reader else read_config(checkpoint, *heads)
    if args.labels and isinstance(config, MageConfig):
        config.id2label = read_class_names(args.labels, int(config.num_labels or 0))
        config.label2id = {name: number for number, name in config.id2label.items()}
    model = build_empty(checkpoint, config)
    check_names_and_shapes(checkpoint, model)
    return checkpoint, model


def check_makes_images(checkpoint: OriginalCheckpoint, has_tokenizer: bool):
    """Raises CheckpointError where there is nothing to make samples with."""
    if checkpoint.kind == "pretraining" and has_tokenizer:
        return
    without = "" if has_tokenizer else " without one"
    raise CheckpointError(
        f"`--num_samples` are of models that make images, with their tokenizer, but {checkpoint.path} is a "
        f"{checkpoint.kind} file{without}."
    )


def read_parts(args: argparse.Namespace, checkpoint: OriginalCheckpoint, config: MageConfig | None) -> dict[str, Any]:
    """What leads the model, where representations do; see [`representation_parts`]."""
    diffusion = None
    if args.representation_diffusion:
        diffusion = read_checkpoint(args.representation_diffusion)
        if diffusion.kind != "representation_diffusion" or config is None:
            wrong = diffusion if config is not None else checkpoint
            raise CheckpointError(
                f"`--representation_diffusion` is RCG's diffusion of representations, for a MAGE that they lead, but "
                f"{wrong.path} is a {wrong.kind} file."
            )
    return {} if config is None else representation_parts(checkpoint, config, diffusion, DTYPES[args.dtype])


def push(folder: Path, name: str):
    """Uploads the folder to the repository `name` of the Hub."""
    try:
        address = push_folder(folder, name, commit_message="Add the converted checkpoint")
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder} is written, but could not be uploaded to {name}: {error}") from error
    print(f"Uploaded to {address}.")


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {number}")
    return number


def _state_of(out: Path) -> str:
    return f"{out} is complete." if out.exists() else f"Nothing was written to {out}."


@contextmanager
def _step(progress: tqdm, name: str) -> Iterator[None]:
    progress.set_description_str(name)
    yield
    progress.update()


__all__ = ["convert_model", "convert_tokenizer", "main", "tokenizer_config"]

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up then, too
    main()
