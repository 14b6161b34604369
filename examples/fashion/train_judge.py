"""
Trains the judge of generated clothes on the real training images and on junk made of them, and says how good it is.

    python -m examples.fashion.train_judge --dataset_name outputs/fashion/data --output_dir outputs/fashion/judge
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from examples.device import bfloat16, device
from examples.junk import JUNK_KINDS, make_junk

from .images import load_split
from .judge import JUNK, FashionJudge, as_grey, judge_images

JUNK_PER_BATCH = 64


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", type=Path, default=Path("outputs", "fashion", "data"))
    parser.add_argument("--output_dir", type=Path, default=Path("outputs", "fashion", "judge"))
    parser.add_argument("--num_train_epochs", type=int, default=6, help="passes over the training images")
    parser.add_argument("--train_batch_size", type=int, default=128, help="real images in an update")
    parser.add_argument("--learning_rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--bf16", action="store_true", help="train in bfloat16, on a processor that is fast at it")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)

    torch.manual_seed(arguments.seed)
    judge = train(*load_split(arguments.dataset_name, "train"), arguments)
    figures = {split: evaluate(judge, *load_split(arguments.dataset_name, split)) for split in ("validation", "test")}
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    judge.save(arguments.output_dir / "model.safetensors")
    Path(arguments.output_dir, "results.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


def train(images: Tensor, labels: Tensor, arguments: argparse.Namespace) -> FashionJudge:
    judge, generator = FashionJudge().to(device()).train(), torch.Generator().manual_seed(arguments.seed)
    updates = arguments.num_train_epochs * (len(images) // arguments.train_batch_size)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=arguments.learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, arguments.learning_rate, total_steps=updates)
    with tqdm(total=updates, desc="Training the judge", mininterval=5) as progress_bar:
        for _ in range(arguments.num_train_epochs):
            order = torch.randperm(len(images), generator=generator)
            for chosen in order.split(arguments.train_batch_size):
                if len(chosen) < arguments.train_batch_size:
                    break
                with bfloat16(arguments.bf16):
                    loss = loss_of(judge, as_grey(images[chosen]), labels[chosen], generator)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                progress_bar.update()
    return judge.eval()


def loss_of(judge: FashionJudge, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Cross entropy of a batch of real images, shifted by up to a pixel, and of junk made of a part of them."""
    junk = make_junk(images[:JUNK_PER_BATCH], labels[:JUNK_PER_BATCH], generator)
    inputs = torch.cat([shifted(images, generator), junk])
    targets = torch.cat([labels, torch.full((len(junk),), JUNK)])
    return F.cross_entropy(judge(inputs.to(device()))[1], targets.to(device()))


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """A batch moved by up to one pixel, all of its images alike, dark coming in at the edges."""
    down, right = torch.randint(-1, 2, (2,), generator=generator).tolist()
    return F.pad(images, (1 + right, 1 - right, 1 + down, 1 - down))[:, :, 1:-1, 1:-1]


def evaluate(judge: FashionJudge, images: Tensor, labels: Tensor) -> dict:
    """How often it is right on real images, and how many of them and of each kind of junk it is sure of."""
    generator, images = torch.Generator().manual_seed(0), as_grey(images)
    verdicts = judge_images(judge, images)
    junk = judge_images(judge, make_junk(images, labels, generator))
    sure_of_junk = {
        name: judge_images(judge, make(images[:1000], labels[:1000], generator)).sure
        for name, make in JUNK_KINDS.items()
    }
    return {
        "accuracy": float((verdicts.kinds == labels).float().mean()),
        "sure": verdicts.sure,
        "junk": verdicts.junk,
        "sure_of_junk": junk.sure,
        "sure_of_each_junk": sure_of_junk,
    }


if __name__ == "__main__":
    main()
