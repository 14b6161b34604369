"""Diffusion of representations: an MLP that draws the vectors by which MAGE generates (RCG, arXiv 2312.03701)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, DDIMScheduler, ModelMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import nn
from tqdm.auto import tqdm

# Of the published models, whose timesteps are 1, 1 + 1000 / steps, ... The variances are those of latent diffusion.
DDIM_SETTINGS = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.0015,
    "beta_end": 0.0195,
    "prediction_type": "sample",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


@dataclass
class RepresentationDiffusionOutput(BaseOutput):
    """
    Output of [`RepresentationDiffusionModel`].

    Args:
        sample (`torch.Tensor` of shape `(batch_size, representation_size)`): the clean representations it predicts.
    """

    sample: torch.Tensor


class RepresentationDiffusionBlock(nn.Module):
    """A residual MLP that is told the time and, where there are classes, the class."""

    def __init__(self, hidden_size: int, bottleneck_size: int, time_size: int, class_size: int | None, dropout: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size)
        self.linear1 = nn.Linear(hidden_size, bottleneck_size)
        self.time_proj = nn.Linear(time_size, bottleneck_size)
        self.class_proj = nn.Linear(class_size, bottleneck_size) if class_size else None
        self.norm2 = nn.LayerNorm(bottleneck_size)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = nn.Linear(bottleneck_size, hidden_size)

    def forward(self, hidden_states: torch.Tensor, time: torch.Tensor, classes: torch.Tensor | None) -> torch.Tensor:
        branch = self.linear1(F.silu(self.norm1(hidden_states))) + self.time_proj(F.silu(time))
        if self.class_proj is not None:
            assert classes is not None
            branch = branch + self.class_proj(F.silu(classes))
        return hidden_states + self.linear2(self.dropout(F.silu(self.norm2(branch))))


class RepresentationDiffusionModel(ModelMixin, ConfigMixin):
    """
    Predicts the clean representation from a noisy one (section 3.2 of RCG). It has no attention: a representation is
    one vector. Any scheduler of diffusers samples from it; the published models used DDIM with `DDIM_SETTINGS`, 250
    steps and `eta` 1 (see [`draw_representations`]).

    Args:
        representation_size (`int`): numbers in a representation.
        hidden_size (`int`): width between the blocks, and of the sinusoids of the time.
        bottleneck_size (`int`): width inside the blocks.
        time_embedding_size (`int`): width of the embedded time.
        num_blocks (`int`): residual blocks.
        dropout (`float`): dropout in the blocks.
        num_classes (`int`, *optional*): classes that it is told; without any it is unconditional.
        class_embedding_size (`int`): width of the embedded class.
    """

    _supports_gradient_checkpointing = False
    _no_split_modules = ["RepresentationDiffusionBlock"]

    @register_to_config
    def __init__(
        self,
        representation_size: int = 256,
        hidden_size: int = 1536,
        bottleneck_size: int = 1536,
        time_embedding_size: int = 256,
        num_blocks: int = 12,
        dropout: float = 0.0,
        num_classes: int | None = None,
        class_embedding_size: int = 512,
    ):
        super().__init__()
        self.time_proj = Timesteps(hidden_size, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(hidden_size, time_embedding_size)
        self.class_embedding = nn.Embedding(num_classes, class_embedding_size) if num_classes else None
        self.input_proj = nn.Linear(representation_size, hidden_size)
        class_size = class_embedding_size if num_classes else None
        sizes = (hidden_size, bottleneck_size, time_embedding_size, class_size, dropout)
        blocks = [RepresentationDiffusionBlock(*sizes) for _ in range(num_blocks)]
        self.blocks = nn.ModuleList(blocks)
        self.norm_out = nn.LayerNorm(hidden_size, eps=1e-6)
        self.linear_out = nn.Linear(hidden_size, representation_size)
        # It starts as the identity over its input's projection, and predicts 0.
        for last in (self.linear_out, *(block.linear2 for block in blocks)):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.LongTensor | None = None,
        return_dict: bool = True,
    ) -> RepresentationDiffusionOutput | tuple[torch.Tensor]:
        """
        Args:
            sample (`torch.Tensor` of shape `(batch_size, representation_size)`): noisy representations.
            timestep (`torch.Tensor` of shape `(batch_size,)`, or a number): where in the diffusion they are.
            class_labels (`torch.LongTensor` of shape `(batch_size,)`): where the model has classes.
            return_dict (`bool`): whether to return an object, or a tuple.

        Raises:
            ValueError: for representations of another size, and where classes are missing or not known to the model.
        """
        if sample.ndim != 2 or sample.shape[1] != self.config.representation_size:
            raise ValueError(
                f"`sample` must have shape (batch_size, {self.config.representation_size}), got {tuple(sample.shape)}."
            )
        if (self.class_embedding is None) != (class_labels is None):
            have = "no classes" if self.class_embedding is None else f"{self.config.num_classes} classes"
            raise ValueError(f"The model has {have}, but `class_labels` is {class_labels}.")
        timesteps = torch.as_tensor(timestep, device=sample.device).expand(sample.shape[0])
        time = self.time_embedding(self.time_proj(timesteps).to(sample.dtype))
        classes = None
        if self.class_embedding is not None and class_labels is not None:
            classes = self.class_embedding(class_labels)
        hidden_states = self.input_proj(sample)
        for block in self.blocks:
            hidden_states = block(hidden_states, time, classes)
        prediction = self.linear_out(F.silu(self.norm_out(hidden_states)))
        return RepresentationDiffusionOutput(prediction) if return_dict else (prediction,)


@torch.no_grad()
def draw_representations(
    model: RepresentationDiffusionModel,
    num_representations: int,
    scheduler: SchedulerMixin | None = None,
    num_inference_steps: int = 250,
    eta: float = 1.0,
    class_labels: torch.LongTensor | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    progress_bar: bool = False,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """
    Draws representations from noise.

    Args:
        model ([`RepresentationDiffusionModel`]): what predicts them.
        num_representations (`int`): how many.
        scheduler (`SchedulerMixin`, *optional*): any of diffusers; by default DDIM as the published models use it.
        num_inference_steps (`int`): steps of the diffusion.
        eta (`float`): how much noise each step of DDIM adds: 1 as much as DDPM, 0 none.
        class_labels (`torch.LongTensor` of shape `(num_representations,)`, *optional*): see the model.
        generator (`torch.Generator` or a list of them, one each, *optional*): the randomness.
        progress_bar (`bool`): whether to show one.
        device (`torch.device`, *optional*): where to compute, if the model is offloaded from there.

    Returns:
        `torch.Tensor` of shape `(num_representations, representation_size)`, float32: so is all but what the model
        computes.

    Raises:
        ValueError: for a list of another number of generators.
    """
    if isinstance(generator, Sequence) and len(generator) != num_representations:
        raise ValueError(
            f"Pass one generator, or one for each of the {num_representations} representations, got {len(generator)}."
        )
    generator = list(generator) if isinstance(generator, Sequence) else generator
    scheduler, device = scheduler or DDIMScheduler(**DDIM_SETTINGS), torch.device(device or model.device)
    # On the host, where schedulers look their noise levels up: on a GPU each step would wait for it.
    scheduler.set_timesteps(num_inference_steps)
    extra = {"eta": eta} if isinstance(scheduler, DDIMScheduler) else {}
    shape = (num_representations, model.config.representation_size)
    sample, was_training = randn_tensor(shape, generator, device) * scheduler.init_noise_sigma, model.training
    model.eval()
    for timestep in tqdm(scheduler.timesteps, desc="Drawing representations", disable=not progress_bar):
        noisy = scheduler.scale_model_input(sample, timestep).to(model.dtype)
        prediction = model(noisy, timestep, class_labels).sample.float()
        noise = {"variance_noise": randn_tensor(shape, generator, device)} if eta and extra else {}
        sample = scheduler.step(prediction, timestep, sample, **extra, **noise).prev_sample
    model.train(was_training)
    return sample


__all__ = [
    "DDIM_SETTINGS",
    "RepresentationDiffusionModel",
    "RepresentationDiffusionOutput",
    "draw_representations",
]
