"""What is planned as recipes of the single commands: what these do with them is what a quickstart does."""

from pathlib import Path
from typing import Any

import yaml

from .choosing import Plan
from .measuring import Machine
from .sizes import Sizes

# The single command of each stage that has one, in their order.
SCRIPTS = {
    "tokenizer": "train_vqgan",
    "codes": "reduce_codes",
    "tokens_validation": "cache_tokens",
    "tokens": "cache_tokens",
    "decoder": "train_vqgan",
    "mage": "train_mage",
    "conditional": "train_mage",
    "probe": "linear_probe",
    "comparison": "compare_representations",
}
TRAININGS = ("tokenizer", "decoder", "mage", "conditional")
# A perceptual loss and a discriminator that make a decoder sharper, for images of less than 64 pixels and for others.
DECODER_LOSSES: dict[str, float] = {
    "perceptual_weight": 0.1,
    "perceptual_stages": 3,
    "adversarial_weight": 0.05,
    "discriminator_channels": 16,
    "discriminator_levels": 2,
    "lecam_weight": 0.001,
}
# In dB. A tokenizer that ends here leaves the model more time, whose features tell more: docs/own_images.md.
GOOD_PSNR = 30.0
# Updates between log lines, checkpoints and looks at held-out images, as parts of all updates.
LOOKS = 10
HELD_OUT_LOOKED_AT = 512


def decoder_losses(sizes: Sizes) -> dict[str, float]:
    """Those of images of this size."""
    levels = 2 if sizes.tokenizer.image_size < 64 else 3
    return {**DECODER_LOSSES, "discriminator_levels": levels, "discriminator_channels": sizes.tokenizer.width}


def recipes_of(plan: Plan, machine: Machine, folder: Path, seed: int = 0) -> dict[str, dict[str, Any]]:
    """
    The values of each stage that single commands do, by the names of [`SCRIPTS`].

    Args:
        plan ([`Plan`]): what to do.
        machine ([`Machine`]): how to compute.
        folder (`Path`): of the quickstart; everything goes into its `runs`.
        seed (`int`): of all of them.
    """
    made = _Recipes(plan, machine, folder / "runs", seed)
    found = {
        "tokenizer": made.tokenizer(),
        "codes": made.codes(),
        "tokens_validation": made.tokens("validation", 1),
        "tokens": made.tokens("train", plan.num_views),
        "mage": {**made.mage(), "sample_steps": -(-plan.updates["mage"] // LOOKS)},
    }
    if plan.updates["decoder"]:
        found["decoder"] = made.decoder()
    if plan.updates["conditional"]:
        found["conditional"] = {**made.conditional(), "sample_steps": -(-plan.updates["conditional"] // 2)}
    if plan.num_probed:
        found |= {"probe": made.probe(), "comparison": made.comparison()}
    return found


def recipe_text(path: Path, stage: str, values: dict[str, Any], num_threads: int) -> str:
    """A recipe, with the command that follows it."""
    command = f"OMP_NUM_THREADS={num_threads} python scripts/{SCRIPTS[stage]}.py --config {path}"
    return f"# {command}\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}"


class _Recipes:
    def __init__(self, plan: Plan, machine: Machine, runs: Path, seed: int):
        self.plan, self.sizes, self.machine, self.runs = plan, plan.sizes, machine, runs
        self.data = {"dataset_name": str(runs / "data"), "seed": seed}
        self.views = {"crop_scale_min": plan.crop_scale_min, "horizontal_flip": plan.horizontal_flip}

    def _training(self, name: str, batch_size: int, learning_rate: float, precision: str) -> dict[str, Any]:
        updates = self.plan.updates[name]
        return {
            **self.data,
            **self.views,
            "train_batch_size": batch_size,
            "max_train_steps": updates,
            "learning_rate": learning_rate,
            "warmup_steps": min(100, updates // 10),
            "max_grad_norm": 1.0,
            "use_ema": True,
            # Over a twentieth of the updates, as the larger runs of this repository.
            "ema_decay": round(min(max(1 - 20 / updates, 0.9), 0.9999), 5),
            "mixed_precision": precision,
            "validation_split": "validation",
            "validation_steps": -(-updates // LOOKS),
            "max_validation_samples": HELD_OUT_LOOKED_AT,
            "checkpointing_steps": -(-updates // LOOKS),
            "checkpoints_total_limit": 1,
            "logging_steps": -(-updates // (5 * LOOKS)),
            "report_to": "none",
            "output_dir": str(self.runs / name),
        }

    def _autoencoder(self, name: str, learning_rate: float) -> dict[str, Any]:
        precision = self.machine.tokenizer_precision
        values = self._training(name, self.sizes.tokenizer_batch, learning_rate, precision)
        size = self.sizes.tokenizer.image_size
        return {**values, "image_size": size, "adam_beta2": 0.99, "weight_decay": 0.0}

    def tokenizer(self) -> dict[str, Any]:
        # Twice the channels take half the rate.
        rate = 2e-3 * 16 / self.sizes.tokenizer.width
        values = {"vq_config": self.sizes.tokenizer.values(), "revive_codes_every": 25, "stop_at_psnr": GOOD_PSNR}
        return {**self._autoencoder("tokenizer", rate), **values}

    def codes(self) -> dict[str, Any]:
        return {
            **self.data,
            "tokenizer_name_or_path": str(self.runs / "tokenizer"),
            "codebook_size": self.sizes.num_codes,
            "image_size": self.sizes.tokenizer.image_size,
            "max_train_samples": min(4000, self.plan.num_images),
            "output_dir": str(self.runs / "codes"),
        }

    def tokens(self, split: str, num_views: int) -> dict[str, Any]:
        return {
            **self.data,
            **(self.views if split == "train" else {"crop_scale_min": 1.0, "horizontal_flip": False}),
            "train_split": split,
            "tokenizer_name_or_path": str(self.runs / "codes"),
            "image_size": self.sizes.tokenizer.image_size,
            "views": num_views,
            "batch_size": max(128 // num_views, 1),
            "output_dir": str(self.runs / "tokens"),
        }

    def decoder(self) -> dict[str, Any]:
        rate = 1e-3 * 16 / self.sizes.tokenizer.width
        ramp = max(self.plan.updates["decoder"] // 5, 1)
        start = {"pretrained_model_name_or_path": str(self.runs / "codes"), "freeze_encoder": True}
        game = {"adversarial_ramp_steps": ramp, "discriminator_learning_rate": rate}
        losses = {
            name: int(value) if float(value).is_integer() else value
            for name, value in decoder_losses(self.sizes).items()
        }
        return {**self._autoencoder("decoder", rate), **start, **losses, **game}

    def mage(self) -> dict[str, Any]:
        model = {
            "image_size": self.sizes.tokenizer.image_size,
            **self.sizes.model.values(),
            "hidden_dropout_prob": self.sizes.dropout,
            "attention_probs_dropout_prob": 0.0,
            # Codes are sampled from what is learned: smoothed, one in ten would be any.
            "label_smoothing": 0.0,
            "attn_implementation": self.machine.attention,
        }
        rate = min(1.5e-3, 1.5e-3 * 192 / self.sizes.model.width)
        return {**self._model("mage", rate), "model": model, "early_stopping_patience": 3}

    def conditional(self) -> dict[str, Any]:
        rate = min(8e-4, 8e-4 * 192 / self.sizes.model.width)
        start = {"pretrained_model_name_or_path": str(self.runs / "mage"), "class_conditional": True}
        # A saved model does not say how its attention is computed.
        model = {"attn_implementation": self.machine.attention}
        return {**self._model("conditional", rate), **start, "model": model}

    def _model(self, name: str, learning_rate: float) -> dict[str, Any]:
        values = self._training(name, self.sizes.model_batch, learning_rate, self.machine.model_precision)
        return {**values, "token_cache": str(self.runs / "tokens"), "mask_ratio_per_image": True}

    def probe(self) -> dict[str, Any]:
        return {**self._probed("probe"), "cached_features": True}

    def comparison(self) -> dict[str, Any]:
        return self._probed("comparison")

    def _probed(self, name: str) -> dict[str, Any]:
        return {
            **self.data,
            "model_name_or_path": str(self.runs / "mage"),
            "validation_split": "test",
            "max_train_samples": self.plan.num_probed,
            "poolings": ["mean", "cls"],
            "eval_batch_size": 250,
            "output_dir": str(self.runs / name),
        }
