"""
Makes model_cards/mage-fashion and model_cards/mage-fashion-conditional again from nothing, stage by stage.

    python -m examples.fashion.make --package dataset-fashion-mnist_*.deb    # everything
    python -m examples.fashion.make --stages evaluate cards                  # some of it

A stage whose result is there is not done again. An interrupted training continues from its last checkpoint: start this
again as often as it takes.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from examples import ROOT, run_script
from examples.device import device
from transformers_mage import MagePipeline
from transformers_mage.benchmarking import pipe_with
from transformers_mage.data.tokenization import load_tokenizer
from transformers_mage.files import read_json, write_json
from transformers_mage.hub.gallery import sample_gallery
from transformers_mage.hub.model_card import add_gallery
from transformers_mage.precision import has_fast_bfloat16

from . import evaluate, make_dataset, sweep, train_judge
from .cards import write_card

CONFIGS = ROOT / "configs"
CARDS = {
    "mage": ROOT / "model_cards" / "mage-fashion",
    "conditional": ROOT / "model_cards" / "mage-fashion-conditional",
}


@dataclass(frozen=True)
class Workplace:
    """
    Where everything is.

    Attributes:
        folder (`Path`): of all results.
        source (`list[str]`): flags that tell make_dataset.py where the images are.
    """

    folder: Path
    source: list[str]

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    @property
    def data(self) -> list[str]:
        return ["--dataset_name", str(self / "data")]


def train(script: str, recipe: str, place: Workplace, name: str, *flags: object):
    """Runs a training script, from its last checkpoint if it has one."""
    common = [*place.data, "--output_dir", place / name, "--resume_from_checkpoint", "latest"]
    run_script(script, "--config", CONFIGS / f"{recipe}.yaml", *common, *flags)


def make_data(place: Workplace):
    make_dataset.main([*place.source, "--output_dir", str(place / "data")])


def make_judge(place: Workplace):
    bf16 = ["--bf16"] if has_fast_bfloat16(device()) else []
    train_judge.main([*place.data, "--output_dir", str(place / "judge"), *bf16])


def make_tokenizer(place: Workplace):
    train("train_vqgan", "vqgan_fashion_encoder", place, "vqgan")


def reduce_codebook(place: Workplace):
    flags = ["--tokenizer_name_or_path", place / "vqgan", "--output_dir", place / "vqgan-64"]
    run_script("reduce_codes", *place.data, *flags, "--image_size", 28, "--codebook_size", 64)


def make_tokens(place: Workplace):
    for split in ("validation", "train"):
        flags = ["--tokenizer_name_or_path", place / "vqgan-64", "--image_size", 28, "--batch_size", 128]
        flags += ["--views", 1, "--crop_scale_min", 1.0, "--horizontal_flip", False, "--output_dir", place / "tokens"]
        run_script("cache_tokens", *place.data, "--train_split", split, *flags)
    (place / "tokens" / "complete").touch()


def make_decoder(place: Workplace):
    start = ["--pretrained_model_name_or_path", place / "vqgan-64"]
    train("train_vqgan", "vqgan_fashion_decoder", place, "decoder", *start)


def make_mage(place: Workplace):
    train("train_mage", "mage_fashion", place, "mage", "--token_cache", place / "tokens")


def make_conditional(place: Workplace):
    start = ["--pretrained_model_name_or_path", place / "mage"]
    train("train_mage", "mage_conditional_fashion", place, "conditional", "--token_cache", place / "tokens", *start)


def assemble(place: Workplace):
    """The trained models with the sharpened decoder, and the way of sampling that the sweep chose, as cards."""
    decoder = load_tokenizer(str(place / "decoder")).state_dict()
    for name, card in CARDS.items():
        pipe = MagePipeline.from_pretrained(place / name)
        pipe.vqvae.load_state_dict(decoder)
        sampling = json.loads((Path(__file__).parent / "sampling.json").read_text())[name]
        save_halved(pipe_with(pipe, sampling), card)
    (place / "assembled").touch()


def save_halved(pipe: MagePipeline, folder: Path):
    """Saves a pipeline with weights in float16, half as large, which load as float32; the tokenizer's are float32."""
    pipe.model.half()
    pipe.save_pretrained(folder)
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", config | {"dtype": "float32"})


def try_samplings(place: Workplace):
    for card in CARDS.values():
        flags = ["--model_name_or_path", str(card), "--judge", str(place / "judge")]
        sweep.main([*place.data, *flags, "--output_dir", str(place / "sweep")])
    (place / "sweep" / "complete").touch()


def evaluate_models(place: Workplace):
    for name, card in CARDS.items():
        flags = ["--model_name_or_path", str(card), "--judge", str(place / "judge")]
        evaluate.main([*place.data, *flags, "--output_dir", str(place / "evaluation" / name)])
    (place / "evaluation" / "complete").touch()


def write_cards(place: Workplace):
    readme = CARDS["conditional"] / "README.md"
    if not readme.exists():
        shutil.copy(Path(__file__).with_name("conditional_card.md"), readme)
    for name, card in CARDS.items():
        write_card(card, place / "evaluation" / name)
        add_gallery(card / "README.md", sample_gallery(MagePipeline.from_pretrained(card)))
    (place / "cards").touch()


# What each makes, and the file that is there once it is made.
STAGES: dict[str, tuple[Callable[[Workplace], None], str]] = {
    "data": (make_data, "data/dataset_dict.json"),
    "judge": (make_judge, "judge/results.json"),
    "tokenizer": (make_tokenizer, "vqgan/config.json"),
    "codes": (reduce_codebook, "vqgan-64/config.json"),
    "tokens": (make_tokens, "tokens/complete"),
    "decoder": (make_decoder, "decoder/config.json"),
    "mage": (make_mage, "mage/model.safetensors"),
    "conditional": (make_conditional, "conditional/model.safetensors"),
    "assemble": (assemble, "assembled"),
    "sweep": (try_samplings, "sweep/complete"),
    "evaluate": (evaluate_models, "evaluation/complete"),
    "cards": (write_cards, "cards"),
}


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs", "fashion"), help="where everything goes")
    parser.add_argument("--package", help="Debian's package dataset-fashion-mnist, where it is not installed")
    parser.add_argument("--idx_dir", help="or a folder with the four idx files")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES), help="only these")
    arguments = parser.parse_args(argv)
    flags = {"--package": arguments.package, "--idx_dir": arguments.idx_dir}
    source = [word for flag, value in flags.items() if value for word in (flag, value)]
    place = Workplace(arguments.output_dir.resolve(), source)
    for name in arguments.stages:
        run_stage(name, place)


def run_stage(name: str, place: Workplace):
    make, result = STAGES[name]
    if (place / result).exists():
        print(f"{name}: done, as {place / result} tells.")
        return
    start = time.perf_counter()
    make(place)
    print(f"{name}: {(time.perf_counter() - start) / 60:.1f} minutes.", flush=True)


if __name__ == "__main__":
    main()
