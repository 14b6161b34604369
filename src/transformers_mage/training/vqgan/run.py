"""A run that trains two networks against each other."""

from collections.abc import Iterator

import torch
from accelerate.utils import broadcast
from torch import Tensor, nn

from ..arguments import TrainingArguments
from ..optimization import create_optimizer
from ..run import TrainingRun
from ..tracking import Metric
from .codebook import code_counts, code_perplexity
from .objective import VQGANForTraining, VQGANOutput


class VQGANRunArguments(TrainingArguments):
    """What a [`VQGANRun`] reads: the fields are those of whoever inherits it, with their defaults and their help."""

    adversarial_start_step: int
    adversarial_ramp_steps: int
    discriminator_learning_rate: float | None
    revive_codes_every: int
    dead_code_share: float


class VQGANRun(TrainingRun[VQGANForTraining]):
    """
    [`TrainingRun`] of a [`VQGANForTraining`].

    Both networks are groups of one optimizer: they are updated as with one each, and one state is saved and sharded.
    Gradients are clipped network by network, and the moving average is of the autoencoder alone.
    """

    arguments: VQGANRunArguments

    def prepare(self, model: VQGANForTraining, optimizer: torch.optim.Optimizer | None = None) -> nn.Module:
        arguments = self.arguments
        optimizer = optimizer or create_optimizer(model, arguments, self.batch_size)
        if arguments.discriminator_learning_rate is not None and model.adversary is not None:
            for group in _split_groups(optimizer, set(model.adversary.parameters())):
                group["lr"] = arguments.discriminator_learning_rate
        self.passes: list[VQGANOutput] = []
        return super().prepare(model, optimizer)

    @property
    def vqgan(self) -> VQGANForTraining:
        return self.accelerator.unwrap_model(self.model)

    def trained_parameters(self) -> list[nn.Parameter]:
        judges = {id(parameter) for parameter in self.judging_parameters()}
        return [parameter for parameter in super().trained_parameters() if id(parameter) not in judges]

    def judging_parameters(self) -> list[nn.Parameter]:
        adversary = self.vqgan.adversary
        return [] if adversary is None else list(adversary.parameters())

    def adversarial_share(self) -> float:
        """How much of the adversarial loss counts in this update: none before its start, then a ramp up to all."""
        since = self.progress.step - self.arguments.adversarial_start_step + 1
        return min(max(since / max(self.arguments.adversarial_ramp_steps, 1), 0.0), 1.0)

    def learn_from(self, output: VQGANOutput):
        """One pass; see [`TrainingRun.update`]."""
        self.passes.append(output)
        self.update(output.loss, output.metrics)

    def clip_and_step(self) -> dict[str, Metric]:
        if not self.accelerator.sync_gradients:
            return super().clip_and_step()
        metrics = self._clip_judging()
        metrics |= super().clip_and_step()
        metrics |= self._track_codes() | self._revive_codes()
        self._track_scores()
        self.passes = []
        return metrics

    def _clip_judging(self) -> dict[str, Metric]:
        judging = self.judging_parameters()
        if self.adversarial_share() == 0:
            # Without gradients an optimizer neither decays weights nor counts the step.
            for parameter in judging:
                parameter.grad = None
            return {}
        norm = self._clip(judging) if judging else None
        return {} if norm is None else {"discriminator_grad_norm": norm}

    def _track_codes(self) -> dict[str, Tensor]:
        """Counts the codes of the update, over its passes and all processes."""
        model = self.vqgan
        counts = sum(code_counts(output.autoencoding.token_ids, model.usage.numel()) for output in self.passes)
        counts = self.accelerator.reduce(counts, "sum")
        model.track_usage(counts)
        return {"code_perplexity": code_perplexity(counts), "codes_used": (counts > 0).sum()}

    def _revive_codes(self) -> dict[str, Tensor]:
        """Revives the dead codes, when it is time, with latents of the main process."""
        arguments, model, step = self.arguments, self.vqgan, self.progress.step
        every, revived = arguments.revive_codes_every, 0
        is_trained = model.vqvae.quantize.embedding.weight.requires_grad
        if every and is_trained and step % every == 0 and step < self.total_steps // 2:
            latents = torch.cat([output.autoencoding.latents.detach() for output in self.passes])
            revived = model.revive_dead_codes(latents, arguments.dead_code_share)
            broadcast(model.vqvae.quantize.embedding.weight.data)
        return {"codes_revived": torch.tensor(float(revived))}

    def _track_scores(self):
        """Moves [`LeCam`]'s averages by the update's mean scores, over its passes and all processes."""
        adversary, names = self.vqgan.adversary, ("real_score", "fake_score")
        if adversary is None or self.adversarial_share() == 0:
            return
        scores = torch.stack([torch.stack([output.metrics[name] for name in names]) for output in self.passes])
        adversary.lecam.update(*self.accelerator.reduce(scores.mean(dim=0), "mean"))


def _split_groups(optimizer: torch.optim.Optimizer, chosen: set[nn.Parameter]) -> Iterator[dict]:
    """Gives the chosen parameters groups of their own, and yields these."""
    for group in list(optimizer.param_groups):
        own = [parameter for parameter in group["params"] if parameter in chosen]
        group["params"] = [parameter for parameter in group["params"] if parameter not in chosen]
        if own:
            optimizer.add_param_group({**group, "params": own})
            yield optimizer.param_groups[-1]
