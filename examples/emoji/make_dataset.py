"""
Makes a small set of colour images with labels: the emoji of a font, with Unicode's groups as classes.

    apt-get install fonts-noto-color-emoji unicode-data
    python -m examples.emoji.make_dataset --output_dir outputs/emoji

It is a `datasets` folder with the splits "train" and "test", always the same: a fifth of each group is for testing.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PilImage
from PIL import ImageChops, ImageDraw, ImageFont
from tqdm.auto import tqdm

from transformers_mage.data.labels import hold_out

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
EMOJI = Path("/usr/share/unicode/emoji/emoji-test.txt")
# The only size of the font's bitmaps, and a canvas that holds them.
BITMAP_SIZE, CANVAS = 109, (160, 160)
VARIATION_SELECTOR = "\ufe0f"
# Groups of parts rather than of pictures.
IGNORED_GROUPS = ("Component",)


@dataclass(frozen=True)
class Emoji:
    character: str
    name: str
    group: str


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs", "emoji"))
    parser.add_argument("--image_size", type=int, default=32, help="side of the images, in pixels")
    parser.add_argument("--font", type=Path, default=FONT, help="a font with colour bitmaps")
    parser.add_argument("--emoji_test", type=Path, default=EMOJI, help="Unicode's emoji-test.txt")
    arguments = parser.parse_args(argv)
    try:
        emoji = read_emoji(arguments.emoji_test.read_text(encoding="utf-8"))
        font = ImageFont.truetype(str(arguments.font), BITMAP_SIZE)
    except OSError as error:
        raise SystemExit(
            f"{error}. Install the packages fonts-noto-color-emoji and unicode-data, or say where the files are with "
            "`--font` and `--emoji_test`."
        ) from error
    dataset = make_dataset(emoji, font, arguments.image_size)
    dataset.save_to_disk(arguments.output_dir)
    print(f"{arguments.output_dir}: {len(dataset['train'])} images to train on, {len(dataset['test'])} to test with.")


def read_emoji(text: str) -> list[Emoji]:
    """The emoji of one code point in Unicode's emoji-test.txt, each once, with their names and groups."""
    group, found = "", {}
    for line in text.splitlines():
        if line.startswith("# group:"):
            group = line.partition(":")[2].strip()
        if not line or line.startswith("#") or group in IGNORED_GROUPS:
            continue
        codes, _, comment = line.partition(";")
        character = "".join(chr(int(code, 16)) for code in codes.split()).removesuffix(VARIATION_SELECTOR)
        # The comment is the emoji, the version that brought it, and its name.
        name = comment.partition("#")[2].split(maxsplit=2)[2]
        if len(character) == 1:
            found.setdefault(character, Emoji(character, name, group))
    return list(found.values())


def render(character: str, font: ImageFont.FreeTypeFont, image_size: int) -> PilImage.Image | None:
    """An emoji in the middle of a white square; None where the font has none."""
    canvas = PilImage.new("RGB", CANVAS, "white")
    ImageDraw.Draw(canvas).text((10, 10), character, font=font, embedded_color=True)
    box = ImageChops.difference(canvas, PilImage.new("RGB", CANVAS, "white")).getbbox()
    if box is None:
        return None
    side = max(box[2] - box[0], box[3] - box[1])
    picture = canvas.crop(box)
    square = PilImage.new("RGB", (side, side), "white")
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square.resize((image_size, image_size), PilImage.Resampling.LANCZOS)


def make_dataset(emoji: list[Emoji], font: ImageFont.FreeTypeFont, image_size: int) -> DatasetDict:
    images = [render(item.character, font, image_size) for item in tqdm(emoji, desc="Rendering")]
    kept = [(item, image) for item, image in zip(emoji, images, strict=True) if image is not None]
    if not kept:
        raise SystemExit("The font has no colour bitmaps of emoji. Say which does with `--font`.")
    groups = list(dict.fromkeys(item.group for item, _ in kept))
    columns = {
        "image": [image for _, image in kept],
        "label": [groups.index(item.group) for item, _ in kept],
        "name": [item.name for item, _ in kept],
    }
    features = Features({"image": Image(), "label": ClassLabel(names=groups), "name": Value("string")})
    dataset = Dataset.from_dict(columns, features=features)
    train, test = hold_out(np.array(columns["label"]), share=0.2, seed=0)
    return DatasetDict({"train": dataset.select(train), "test": dataset.select(test)})


if __name__ == "__main__":
    main()
