"""The end of a quickstart: models put together, judged and described."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

from ..carried_code import write_code
from ..data.tokenization import load_tokenizer
from ..files import read_json, write_json, written_aside
from ..hub.gallery import sample_gallery
from ..hub.model_card import CardFacts, write_card
from ..hub.publishing import Publication
from ..hub_folders import push_folder
from ..pipeline_mage import MagePipeline
from ..visualization import draw_grid
from .card import (
    add_measurements,
    class_sections,
    eval_results,
    generation_sections,
    probe_sections,
    reconstruction_sections,
    sampling_sections,
)
from .choosing import Plan, has_usable_classes
from .judge import Judge, train_judge
from .judging import (
    BATCH_SIZE,
    Jury,
    as_pictures,
    best_of,
    draw_inpaintings,
    draw_reconstructions,
    draw_rows,
    generate,
    load_images,
    load_labels,
    nearest_images,
    reconstruction_scores,
    sweep,
    with_sampling,
)
from .looking import ImageSurvey

MOST_JUDGE_IMAGES = 20_000
MOST_NEIGHBOURS = 5000
FEWEST_REFERENCES = 1000
SAMPLES_SHOWN, NEIGHBOURS_SHOWN = 60, 16


class Finishing:
    """
    Args:
        folder (`Path`): of the quickstart.
        survey ([`ImageSurvey`]): of the images.
        plan ([`Plan`]): what was done.
        dataset_name (`str`): on what.
        publication ([`Publication`]): where the repository goes.
    """

    def __init__(self, folder: Path, survey: ImageSurvey, plan: Plan, dataset_name: str, publication: Publication):
        self.folder = folder
        self.runs = folder / "runs"
        self.data = self.runs / "data"
        self.survey = survey
        self.plan = plan
        self.dataset_name = dataset_name
        self.publication = publication

    def stages(self) -> dict[str, Callable[[], None]]:
        """Those between the trainings and the probes, in this order, and the last one."""
        sweep = {"sweep": self.choose_sampling} if self.plan.num_swept else {}
        judging = {"assembly": self.assemble, "judge": self.train_judge, **sweep, "scores": self.score}
        return {**judging, "card": self.write_card}

    def assemble(self):
        """The trained models with the sharpened decoder, where people look for them."""
        sharpened = self.runs / "decoder"
        tokenizer = load_tokenizer(str(sharpened if self.plan.updates["decoder"] else self.runs / "codes"))
        with written_aside(self.folder / "tokenizer") as aside:
            tokenizer.save_pretrained(aside)
        for run, folder in (("mage", self.folder), ("conditional", self.folder / "conditional")):
            if self.plan.updates[run]:
                pipe = MagePipeline.from_pretrained(self.runs / run)
                pipe.vqvae.load_state_dict(tokenizer.state_dict())
                pipe.save_pretrained(folder)

    def train_judge(self):
        """The network that distances are by, where no network of photographs would do."""
        images = load_images(self.data, "train", MOST_JUDGE_IMAGES)
        labels = load_labels(self.data, "train", len(images)) if self.num_judged_classes else None
        judge = train_judge(images, labels, self.num_judged_classes, self.plan.updates["judge"])
        with written_aside(self.runs / "judge.safetensors") as aside:
            judge.save(aside)

    @property
    def num_judged_classes(self) -> int:
        """Classes that the judge learns to tell; 0 where there are too few images of each."""
        return len(self.survey.classes) if has_usable_classes(self.survey) else 0

    @property
    def jury(self) -> Jury:
        judge = Judge.load(self.runs / "judge.safetensors", self.num_judged_classes)
        return Jury.of(judge, self.survey.is_grey, self.plan.sizes.tokenizer.image_size)

    def choose_sampling(self):
        """Finds the best way of sampling by the images that choices are made by, and makes it each model's default."""
        jury = self.jury
        references = jury.features(load_images(self.data, "validation", self.plan.num_swept * 4))
        rows = sweep(self.pipeline(self.folder), jury, references, self.plan.num_swept)
        for folder in self.folders():
            with_sampling(self.pipeline(folder), best_of(rows)).scheduler.save_pretrained(folder / "scheduler")
        write_json(self.runs / "sweep.json", rows)

    def folders(self) -> list[Path]:
        """Of the pipelines."""
        return [self.folder] + ([self.folder / "conditional"] if self.plan.updates["conditional"] else [])

    def pipeline(self, folder: Path) -> MagePipeline:
        pipe = MagePipeline.from_pretrained(folder)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def score(self):
        """Scores on images that nothing was trained on nor chosen by, and pictures of what was scored."""
        jury, limit = self.jury, self.plan.num_judged
        test = load_images(self.data, "test", max(limit, FEWEST_REFERENCES))
        train = load_images(self.data, "train", MOST_NEIGHBOURS)
        references = jury.features(test)
        pipe = self.pipeline(self.folder)
        samples = generate(pipe, limit)
        scores = {
            "network": jury.name,
            **self._judge_accuracy(jury, test),
            "num_images": limit,
            "num_references": len(test),
            "floor": jury.distance(jury.features(train[:limit]), references),
            "samples": jury.distance(jury.features(samples), references),
            "reconstruction": reconstruction_scores(pipe, jury, test, self._perceptual()),
            **self._neighbours(samples, test, train),
        }
        self._save(draw_grid(as_pictures(samples[:SAMPLES_SHOWN]), num_columns=10), "samples")
        self._save(draw_reconstructions(pipe, test), "reconstructions")
        self._save(draw_inpaintings(pipe, test), "inpaintings")
        if self.plan.updates["conditional"]:
            classes = self.pipeline(self.folder / "conditional")
            # Each as often as in the images that it is compared with.
            made = generate(classes, limit, labels=load_labels(self.data, "train", limit).tolist())
            scores["conditional samples"] = jury.distance(jury.features(made), references)
            shown = generate(classes, min(SAMPLES_SHOWN, 6 * len(self.survey.classes)))
            columns = min(len(self.survey.classes), 10)
            self._save(draw_grid(as_pictures(shown), num_columns=columns), "classes")
        write_json(self.runs / "scores.json", scores)

    def _judge_accuracy(self, jury: Jury, test: torch.Tensor) -> dict[str, float]:
        """How often the judge tells the class of a test image: one that has learned nothing is no judge."""
        if not self.num_judged_classes or not isinstance(jury.network, Judge):
            return {}
        labels = load_labels(self.data, "test", len(test))
        guesses = torch.cat([jury.network(batch)[1].argmax(dim=1) for batch in test.split(BATCH_SIZE)])
        return {"judge accuracy": float((guesses == labels).float().mean())}

    def _perceptual(self) -> Any:
        if not self.plan.updates["decoder"]:
            return None
        from ..training.vqgan.perceptual import perceptual_distance

        return perceptual_distance("efficientnet-lite0", num_stages=3)

    def _neighbours(self, samples: torch.Tensor, test: torch.Tensor, train: torch.Tensor) -> dict[str, float]:
        distances, indices = nearest_images(samples[:1000], train)
        shown = slice(NEIGHBOURS_SHOWN)
        self._save(draw_rows([samples[shown], train[indices[shown]]]), "neighbours")
        of_test, _ = nearest_images(test[:1000], train)
        return {
            "distance to training images, samples": float(distances.median()),
            "distance to training images, test images": float(of_test.median()),
        }

    def _save(self, picture: Image.Image, name: str):
        with written_aside(self.folder / "pictures" / f"{name}.png") as aside:
            picture.save(aside, format="PNG")

    def write_card(self):
        """Writes the card, takes the probe in, and sends the folder off if it goes anywhere."""
        self._take_probe()
        scores = read_json(self.runs / "scores.json")
        pipe = self.pipeline(self.folder)
        facts = CardFacts(
            name=self.publication.repo_id or self.folder.resolve().name,
            task="generation",
            config=pipe.model.config,
            dataset_name=self.dataset_name,
            recipe=yaml.safe_load((self.folder / "recipes" / "mage.yaml").read_text()),
            metrics_file=self.runs / "mage" / "metrics.jsonl",
            results=eval_results(scores, self.dataset_name),
            samples=sample_gallery(pipe),
            carries_code=self.publication.carries_code,
        )
        write_card(self.folder, facts)
        add_measurements(self.folder / "README.md", self._sections(scores))
        if self.publication.carries_code:
            write_code(self.folder)
        if self.publication.repo_id:
            parts = ("tokenizer/*", "conditional/*", "probe/*", "recipes/*")
            private, message = self.publication.private, "Add the model of a quickstart"
            push_folder(self.folder, self.publication.repo_id, private=private, also=parts, commit_message=message)

    def _take_probe(self):
        made = self.runs / "probe"
        if not (made / "config.json").exists():
            return
        with written_aside(self.folder / "probe") as aside:
            aside.mkdir()
            for name in ("config.json", "model.safetensors", "preprocessor_config.json", "README.md"):
                if (made / name).exists():
                    shutil.copy(made / name, aside / name)

    def _sections(self, scores: dict[str, Any]) -> list[str]:
        sweep, comparison = self.runs / "sweep.json", self.runs / "comparison" / "results.json"
        return [
            *generation_sections(scores),
            *reconstruction_sections(scores, self.plan.sizes.num_codes),
            *sampling_sections(read_json(sweep) if sweep.exists() else [], self.plan.num_swept),
            *class_sections(bool(self.plan.updates["conditional"])),
            *probe_sections(read_json(comparison) if comparison.exists() else []),
        ]
