"""Looking at a set of images before anything is decided: how many, how large, of what kind, and what is wrong."""

import hashlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image, ImageOps

from ..data.batches import DataError
from ..data.images import BrokenImageError, open_image, opened
from ..data.labels import Classes
from ..data.loading import Columns, DatasetSpec, load_images, load_split, split_names
from ..progress import progress_bar

# Enough to know them by; more are counted, and left undecoded.
MOST_LOOKED_AT = 5000
FEWEST_IMAGES = 16
THUMBNAIL = 32
# As [0, 1]: half a step of eight bits, and what a JPEG makes of grey.
GREY_TOLERANCE = 6 / 255
PLAIN_BORDER = 0.06
VALIDATION_NAMES = ("validation", "valid", "val", "dev")
TEST_NAMES = ("test", "testing")


@dataclass
class ImageSurvey:
    """
    What a set of images is.

    Attributes:
        num_images (`int`): in the training split.
        num_seen (`int`): of them that were decoded, evenly spread.
        num_broken, num_duplicates (`int`): among those; duplicates are the same file again.
        sizes (`dict[str, list[int]]`): "smallest", "median" and "largest" width and height.
        num_sizes (`int`): different sizes.
        modes (`dict[str, int]`): how many of each mode of Pillow.
        is_grey (`bool`): whether no image has colours.
        is_centred (`bool`): whether they show something on a plain ground, so that crops cut into it.
        mirror_score (`float`): how often an image is more like others than its mirror image is; 0.5 says that left and
            right are alike.
        has_handedness (`bool`): whether that is clearly more, so that mirroring makes images that do not occur.
        classes (`list[str]`): names of the classes; none without labels.
        smallest_class (`int`): images of the rarest one.
        splits (`dict[str, str | None]`): the split that plays "train", "validation" and "test"; None is held out.
        split_sizes (`dict[str, int]`): images in them, 0 where they are held out.
        image_column, label_column (`str`): names of the columns.
        seconds_per_image (`float`): what reading and decoding took.
        notes (`list[str]`): what somebody should know.
    """

    num_images: int
    num_seen: int
    num_broken: int
    num_duplicates: int
    sizes: dict[str, list[int]]
    num_sizes: int
    modes: dict[str, int]
    is_grey: bool
    is_centred: bool
    mirror_score: float
    has_handedness: bool
    classes: list[str]
    smallest_class: int
    splits: dict[str, str | None]
    split_sizes: dict[str, int]
    image_column: str
    label_column: str | None
    seconds_per_image: float
    notes: list[str] = field(default_factory=list)

    @property
    def short_side(self) -> int:
        """Of the image in the middle, in pixels."""
        return min(self.sizes["median"])

    def rows(self) -> list[tuple[str, str]]:
        """What people read, as pairs of words."""
        width, height = self.sizes["median"]
        size = f"{width} x {height}"
        if self.num_sizes > 1:
            (w0, h0), (w1, h1) = self.sizes["smallest"], self.sizes["largest"]
            size = f"{self.num_sizes} sizes from {w0} x {h0} to {w1} x {h1}, the median is {size}"
        looked = "all looked at" if self.num_seen == self.num_images else f"{self.num_seen} looked at"
        splits = ", ".join(f"{name}: {there or 'held out'}" for name, there in self.splits.items())
        labels = f"{len(self.classes)} classes, the rarest of {self.smallest_class}" if self.classes else "none"
        sides = "differ: no mirroring" if self.has_handedness else "alike: mirrored at random"
        return [
            ("images", f"{self.num_images} ({looked})"),
            ("sizes", size),
            ("channels", ("grey" if self.is_grey else "colour") + f" ({_counts(self.modes)})"),
            ("broken", str(self.num_broken)),
            ("duplicates", str(self.num_duplicates)),
            ("labels", labels),
            ("left and right", f"{sides} (nearer to others than its mirror image: {self.mirror_score:.0%})"),
            ("composition", "on a plain ground" if self.is_centred else "fills the image"),
            ("splits", splits),
            *(("note", note) for note in self.notes),
        ]


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


@dataclass
class Look:
    """A survey, and small pictures of what was seen, `(num_images, 32, 32, 3)` uint8."""

    survey: ImageSurvey
    thumbnails: np.ndarray


def look(spec: DatasetSpec, seconds: float = 60.0) -> Look:
    """
    Looks at a data set's training split.

    Args:
        spec ([`DatasetSpec`]): which.
        seconds (`float`): how long to decode images at most.

    Raises:
        DataError: in one line, where nothing can be learned from it: no images, too few of them, none whole, all the
            same.
    """
    dataset, columns = load_images(spec)
    if len(dataset) < FEWEST_IMAGES:
        raise DataError(f"{spec.name} holds {_number(len(dataset))}; {FEWEST_IMAGES} are the least to learn from.")
    seen = _See(columns.image)
    start = time.perf_counter()
    for row in _spread(dataset, MOST_LOOKED_AT):
        seen.add(row[columns.image])
        if time.perf_counter() - start > seconds:
            break
    spent = (time.perf_counter() - start) / seen.count
    thumbnails = seen.checked(spec.name)
    classes, smallest, notes = _classes_of(spec, columns)
    score, is_handed = handedness(thumbnails)
    widths_and_heights = seen.sizes()
    splits = {"train": spec.split, **_other_splits(spec)}
    survey = ImageSurvey(
        num_images=len(dataset),
        num_seen=seen.count,
        num_broken=seen.broken,
        num_duplicates=seen.duplicates,
        sizes=widths_and_heights,
        num_sizes=len(seen.of_size),
        modes=dict(seen.modes.most_common()),
        is_grey=is_grey(thumbnails),
        is_centred=has_plain_border(thumbnails),
        mirror_score=score,
        has_handedness=is_handed,
        classes=classes,
        smallest_class=smallest,
        splits=splits,
        split_sizes={role: len(load_split(replace(spec, split=name))) if name else 0 for role, name in splits.items()},
        image_column=columns.image,
        label_column=columns.label if classes else None,
        seconds_per_image=spent,
        notes=notes,
    )
    return Look(survey, thumbnails)


def _number(count: int) -> str:
    return "1 image" if count == 1 else f"{count or 'no'} images"


def _spread(dataset: Dataset, limit: int) -> Iterator[dict[str, Any]]:
    """Rows that are evenly spread, in an order in which the first ones are spread too."""
    indices = np.linspace(0, len(dataset) - 1, min(limit, len(dataset))).round().astype(int)
    np.random.default_rng(0).shuffle(indices)
    for index in progress_bar(indices, desc="Looking at the images", leave=False):
        yield dataset[int(index)]


class _See:
    """What has been seen of a set."""

    def __init__(self, column: str):
        self.column = column
        self.count = self.broken = self.duplicates = 0
        self.of_size: Counter[tuple[int, int]] = Counter()
        self.modes: Counter[str] = Counter()
        self.hashes: set[bytes] = set()
        self.thumbnails: list[np.ndarray] = []

    def add(self, image: Any):
        self.count += 1
        try:
            with opened(image) as file:
                size, mode = file.size, file.mode
            small = square(image, THUMBNAIL)
        # Damaged files make Pillow raise nearly anything.
        except Exception:
            self.broken += 1
            return
        self.of_size[size] += 1
        self.modes[mode] += 1
        self.duplicates += self._is_known(image, small)
        self.thumbnails.append(np.asarray(small))

    def _is_known(self, image: Any, small: Image.Image) -> bool:
        encoded = image.get("bytes") if isinstance(image, dict) else None
        if encoded is None and isinstance(image, dict):
            with open(image["path"], "rb") as file:
                encoded = file.read()
        digest = hashlib.sha256(encoded or small.tobytes()).digest()
        is_known = digest in self.hashes
        self.hashes.add(digest)
        return is_known

    def sizes(self) -> dict[str, list[int]]:
        every = sorted(self.of_size.elements(), key=lambda size: size[0] * size[1])
        middle = [round(median(side)) for side in zip(*every, strict=True)]
        return {"smallest": list(every[0]), "median": middle, "largest": list(every[-1])}

    def checked(self, name: str) -> np.ndarray:
        """(num_images, 32, 32, 3) thumbnails, if there is something to learn from."""
        if not self.thumbnails:
            raise DataError(f"None of the {self.count} images of {name} that were looked at can be decoded.")
        if len(self.thumbnails) < FEWEST_IMAGES:
            whole = _number(len(self.thumbnails))
            raise DataError(
                f"{name} holds {whole} that can be decoded, and {self.broken} that cannot; {FEWEST_IMAGES} are the "
                "least to learn from."
            )
        different = len({thumbnail.tobytes() for thumbnail in self.thumbnails})
        if different < FEWEST_IMAGES:
            raise DataError(
                f"{name} holds {len(self.thumbnails)} images of which only {different} differ; {FEWEST_IMAGES} "
                "different ones are the least to learn from."
            )
        return np.stack(self.thumbnails)


def square(image: Any, side: int) -> Image.Image:
    """
    The centre of an image as a square, RGB. A large JPEG is decoded at a fraction of its size, at less cost.

    Args:
        image (`dict` or `PIL.Image.Image`): decoded, or `datasets`' {"bytes": ..., "path": ...}.
        side (`int`): in pixels.

    Raises:
        BrokenImageError: if it cannot be decoded.
    """
    try:
        file = opened(image)
        if file.format == "JPEG":
            file.draft(None, (2 * side, 2 * side))
    except Exception as error:
        raise BrokenImageError(f"{type(error).__name__}: {error}") from error
    return ImageOps.fit(open_image(file, channels=3), (side, side), Image.Resampling.BICUBIC)


def is_grey(thumbnails: np.ndarray) -> bool:
    """Whether no more than one in a hundred images `(N, height, width, 3)`, uint8, has colours."""
    spread = thumbnails.max(axis=3).astype(np.float32) - thumbnails.min(axis=3)
    return bool((spread.mean(axis=(1, 2)) / 255 > GREY_TOLERANCE).mean() <= 0.01)


def has_plain_border(thumbnails: np.ndarray) -> bool:
    """Whether most images `(N, height, width, 3)`, uint8, have the same colour all around."""
    pixels = thumbnails.astype(np.float32) / 255
    sides = (pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1])
    border = np.concatenate(sides, axis=1)
    deviation = np.abs(border - np.median(border, axis=1, keepdims=True)).mean(axis=(1, 2))
    return bool((deviation < PLAIN_BORDER).mean() > 0.5)


def handedness(thumbnails: np.ndarray, limit: int = 1500) -> tuple[float, bool]:
    """
    Whether left and right differ in images `(N, height, width, 3)`, uint8.

    Each of some images, and its mirror image, is compared with the others: where both sides are alike, one is as often
    nearer to its neighbour as the other.

    Returns:
        How often the image is nearer than its mirror image, and whether that is clearly more than half.
    """
    chosen = np.random.default_rng(0).permutation(len(thumbnails))[:limit]
    grey = torch.from_numpy(thumbnails[chosen]).float().mean(dim=3)[:, None]
    small = torch.nn.functional.avg_pool2d(grey, 2)[:, 0]
    num_asked = max(len(small) // 3, 1)
    asked, known = small[:num_asked], small[num_asked:].flatten(1)
    nearest, mirrored = (torch.cdist(images.flatten(1), known).min(dim=1).values for images in (asked, asked.flip(-1)))
    # An image that is its own mirror image is half for either.
    score = float(((nearest < mirrored).float() + (nearest == mirrored).float() / 2).mean())
    clearly = max(0.6, 0.5 + 3 * 0.5 / num_asked**0.5)
    return score, score > clearly


def _classes_of(spec: DatasetSpec, columns: Columns) -> tuple[list[str], int, list[str]]:
    """The classes' names and the number of images of the rarest one; and what is wrong with them, if anything is."""
    if columns.label is None:
        return [], 0, []
    dataset = load_split(spec)
    try:
        classes = Classes.of(dataset, columns.label)
        numbers = classes.number(dataset[columns.label][:], columns.label)
    except DataError as error:
        return [], 0, [f"the labels are not used: {error}"]
    counts = np.bincount(numbers, minlength=len(classes))
    return classes.names, int(counts[counts > 0].min()), []


def _other_splits(spec: DatasetSpec) -> dict[str, str | None]:
    """What the splits for choosing and for judging are called, where there are any."""
    there = [name for name in split_names(spec) if name != spec.split]
    wanted = {"validation": VALIDATION_NAMES, "test": TEST_NAMES}
    return {role: next((name for name in names if name in there), None) for role, names in wanted.items()}
