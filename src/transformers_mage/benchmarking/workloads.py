"""What people do with MAGE, as calls that can be timed and counted."""

import io
import math
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import VQModel
from PIL import Image
from torch import nn

from ..image_tokens import decode_images, encode_images
from ..masking import sample_masks
from ..modeling_mage import MageForMaskedImageModeling
from ..pipeline_mage import MagePipeline
from ..representation_diffusion import RepresentationDiffusionModel, draw_representations
from ..scheduling_mage import MageScheduler
from .models import PlainMage, quantize

# What loads data needs the extra `training`, and is imported where it is used: the model's own work does without.
if TYPE_CHECKING:
    from datasets import Dataset

    from ..data.indexed import BatchedDataset

Run = Callable[[], object]
# Of `draw`: RCG's.
DRAWING_STEPS = 250


@dataclass
class Setting:
    """
    What a workload is measured with.

    Args:
        model ([`MageForMaskedImageModeling`]): where it is to run, compiled or not.
        batch_size (`int`): images in a call.
        dtype (`torch.dtype`): `torch.float32`, or what to compute in where that does not change tokens.
        num_inference_steps (`int`): of `generate`.
        encoder_keep_share, full_steps: of `generate`; see [`MagePipeline`].
        num_drawing_steps (`int`): of `draw`.
        is_compiled (`bool`): whether the pipeline compiles its steps.
        quantization (`str`, *optional*): one of `QUANTIZATIONS`, for what trains nothing.
        num_workers (`int`): processes that load; 0 loads in this one.
        jpeg_size (`tuple[int, int]`): height and width of what is loaded.
    """

    model: MageForMaskedImageModeling
    batch_size: int
    dtype: torch.dtype = torch.float32
    num_inference_steps: int = 20
    encoder_keep_share: float | None = None
    full_steps: int | Sequence[int] = 1
    num_drawing_steps: int = DRAWING_STEPS
    is_compiled: bool = False
    quantization: str | None = None
    num_workers: int = 0
    jpeg_size: tuple[int, int] = (375, 500)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def autocast(self) -> AbstractContextManager:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def tokens(self) -> torch.LongTensor:
        config = self.model.config
        generator = torch.Generator().manual_seed(0)
        return torch.randint(config.codebook_size, (self.batch_size, *config.grid_size), generator=generator).to(
            self.device
        )

    def pixels(self) -> torch.FloatTensor:
        config = self.model.config
        height, width = config.image_height_width
        images = [pink_noise(height, width, seed) for seed in range(self.batch_size)]
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous().to(self.device)


def train(setting: Setting) -> Run:
    """A training step from cached tokens: forward, backward, clipping, AdamW."""
    tokens = setting.tokens()
    return _training_step(setting, lambda: tokens)


def train_pixels(setting: Setting) -> Run:
    """The same from images, which the tokenizer encodes in each step."""
    vqvae, pixels = _tokenizer(setting), setting.pixels()
    return _training_step(setting, lambda: encode_images(vqvae, pixels))


def _training_step(setting: Setting, get_tokens: Callable[[], torch.LongTensor]) -> Run:
    model = setting.model.train()
    if setting.is_compiled:
        model.compile()
    generator = torch.Generator().manual_seed(0)

    def loss() -> torch.Tensor:
        tokens = get_tokens()
        masks = sample_masks(model.config, setting.batch_size, generator=generator, device=setting.device)
        with setting.autocast():
            return model(input_ids=tokens, **masks.as_kwargs()).loss

    return _update(setting, model, loss)


def train_tokenizer(setting: Setting) -> Run:
    """
    A training step of the tokenizer as a VQGAN with all losses: autoencoder and discriminator, each forward and
    backward, clipping, AdamW. The perceptual network, EfficientNet-lite0, is left out where nothing is computed.
    """
    from ..training.vqgan.adversarial import Adversary
    from ..training.vqgan.discriminator import PatchDiscriminator
    from ..training.vqgan.objective import LossWeights, VQGANForTraining
    from ..training.vqgan.perceptual import perceptual_distance

    pixels, config = setting.pixels(), setting.model.config
    with setting.device:
        vqvae = VQModel.from_config(config.vq_config)
        # As many levels as leave some patches of a small image to judge.
        discriminator = PatchDiscriminator(
            config.num_channels, vqvae.config.block_out_channels[0], num_levels=3 if pixels.shape[-1] > 64 else 2
        )
    is_computed = setting.device.type != "meta"
    weights = LossWeights(reconstruction=4.0, perceptual=0.1 if is_computed else 0.0, adversarial=0.02)
    perceptual = perceptual_distance("efficientnet-lite0", num_stages=3) if is_computed else None
    adversary = Adversary(discriminator, "hinge", lecam_weight=0.001)
    model = VQGANForTraining(vqvae, weights, perceptual, adversary, l1_share=0.0).to(setting.device).train()
    if setting.is_compiled:
        vqvae.encoder.compile()
        vqvae.decoder.compile()

    def loss() -> torch.Tensor:
        with setting.autocast():
            return model(pixels).loss

    return _update(setting, model, loss)


def _update(setting: Setting, model: nn.Module, get_loss: Callable[[], torch.Tensor]) -> Run:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=setting.device.type != "meta")

    def step() -> torch.Tensor:
        loss = get_loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 3.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def features(setting: Setting) -> Run:
    """Features of images."""
    encoder, pixels = _for_inference(setting).mage, setting.pixels()
    if setting.is_compiled:
        encoder.compile()

    @torch.no_grad()
    def encode() -> torch.Tensor:
        return encoder(pixels).pooler_output

    return encode


def extract(setting: Setting) -> Run:
    """Features of a dataset in memory, decoded, computed and written as scripts/extract_features.py does."""
    from accelerate import Accelerator

    from ..data.batches import Loading
    from ..data.labelled_images import EvaluationImages
    from ..data.loading import Columns
    from ..representation import FeatureExtractor, FeatureStore, extract_features

    encoder = _for_inference(setting).mage
    if setting.is_compiled:
        encoder.compile()
    shape = (setting.model.config.num_channels, *setting.model.config.image_height_width)
    images = EvaluationImages(_jpeg_dataset(setting, setting.batch_size), Columns(label=None), shape)
    loading = Loading(setting.batch_size, num_workers=setting.num_workers, timeout=600)
    extractor, accelerator = FeatureExtractor(encoder), Accelerator(cpu=setting.device.type == "cpu")

    def run():
        with tempfile.TemporaryDirectory() as folder:
            store = FeatureStore(Path(folder), "train", len(images), {})
            extract_features(extractor, images, store, accelerator, loading)

    return run


def generate(setting: Setting) -> Run:
    """Images from nothing."""
    model = _for_inference(setting)
    if isinstance(model, PlainMage):
        return lambda: _generate_plainly(setting)
    scheduler = MageScheduler(model.config.mask_token_id)
    pipe = MagePipeline(model, scheduler, encoder_keep_share=setting.encoder_keep_share, full_steps=setting.full_steps)
    pipe.set_progress_bar_config(disable=True)
    if setting.is_compiled:
        pipe.compile()

    return lambda: pipe(setting.batch_size, num_inference_steps=setting.num_inference_steps, output_type="pt")


def _for_inference(setting: Setting) -> MageForMaskedImageModeling:
    """The model in its precision, but for its tokenizer, as it would be loaded."""
    model = setting.model.eval().to(setting.dtype)
    model.mage.vqvae.float()
    if setting.quantization:
        quantize(model, setting.quantization)
    return model


@torch.no_grad()
def _generate_plainly(setting: Setting, temperature: float = 6.0) -> torch.Tensor:
    """Iterative decoding as the paper writes it down, with a look at the tokens from the host in each step."""
    model, steps = setting.model, setting.num_inference_steps
    length, mask_id = model.config.sequence_length, model.config.mask_token_id
    tokens = torch.full((setting.batch_size, length), mask_id, device=setting.device)
    for step in range(steps):
        is_masked = tokens == mask_id
        distribution = torch.distributions.Categorical(logits=model(input_ids=tokens).logits)
        sampled = torch.where(is_masked, distribution.sample(), tokens)
        done = (step + 1) / steps
        gumbel = -(-torch.rand(sampled.shape, device=setting.device).log()).log()
        confidence = distribution.log_prob(sampled.clamp(max=model.config.codebook_size - 1))
        confidence = (confidence + temperature * (1 - done) * gumbel).masked_fill(~is_masked, torch.inf)
        num_masked = max(1, min(int(is_masked[0].sum()) - 1, math.floor(length * math.cos(math.pi / 2 * done))))
        cut_off = confidence.sort(dim=1).values[:, num_masked, None]
        tokens = sampled.masked_fill(confidence < cut_off, mask_id)
    return model.decode_image_tokens(sampled).clamp(0, 1)


def draw(setting: Setting) -> Run:
    """A representation for each image, in the steps of RCG; its model is one for ViT-B and ViT-L."""
    width = setting.model.config.hidden_size
    sizes = {} if width >= 768 else {"hidden_size": 2 * width, "bottleneck_size": 2 * width, "num_blocks": 2}
    with setting.device:
        model = RepresentationDiffusionModel(**sizes).eval()
    if setting.dtype != torch.float32:
        model.to(setting.dtype)
    if setting.is_compiled:
        model.compile()
    return lambda: draw_representations(model, setting.batch_size, num_inference_steps=setting.num_drawing_steps)


def encode(setting: Setting) -> Run:
    """Images to tokens."""
    vqvae, pixels = _tokenizer(setting), setting.pixels()
    return lambda: encode_images(vqvae, pixels)


def decode(setting: Setting) -> Run:
    """Tokens to images."""
    vqvae, tokens = _tokenizer(setting), setting.tokens()

    def run() -> torch.Tensor:
        with setting.autocast():
            return decode_images(vqvae, tokens)

    return run


def _tokenizer(setting: Setting) -> VQModel:
    vqvae = setting.model.mage.vqvae
    assert vqvae is not None
    if setting.is_compiled:
        vqvae.encoder.compile()
        vqvae.decoder.compile()
    return vqvae


def load_tokens(setting: Setting) -> Run:
    """Batches of a token cache, as training loads them."""
    from ..data.token_cache import CachedTokens, CacheMetadata, _as_dataset, save_shard, shard_folder

    config, folder = setting.model.config, Path(tempfile.mkdtemp())
    rows = np.random.default_rng(0).integers(config.codebook_size, size=(4096, config.sequence_length))
    save_shard(_as_dataset([rows.astype(np.uint16)], None), shard_folder(folder, 0, 1))
    CacheMetadata("", {"num_views": 1}, list(config.grid_size), {}, 0, 1).save(folder)
    return _load(setting, CachedTokens(folder))


def load_jpegs(setting: Setting) -> Run:
    """Random views of JPEG files, as training loads them. The plain path decodes them whole."""
    from ..data.images import open_image
    from ..data.indexed import EncodedImages
    from ..data.loading import Columns
    from ..data.views import ImageViews

    class WholeImageViews(ImageViews):
        def __call__(self, image: Any, seed: tuple[int, ...]) -> torch.Tensor:
            return super().__call__(open_image(image, self.channels), seed)

    make_views = WholeImageViews if isinstance(setting.model, PlainMage) else ImageViews
    views = make_views(setting.model.config.image_height_width)
    return _load(setting, EncodedImages(_jpeg_dataset(setting, 1024), views, Columns(label=None), seed=0))


def _jpeg_dataset(setting: Setting, length: int) -> "Dataset":
    """A few encoded images over and over."""
    from datasets import Dataset, Features
    from datasets import Image as EncodedImage

    files = []
    for seed in range(8):
        buffer = io.BytesIO()
        Image.fromarray((pink_noise(*setting.jpeg_size, seed) * 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        files.append({"bytes": buffer.getvalue(), "path": None})
    columns = Features({"image": EncodedImage(decode=False)})
    return Dataset.from_dict({"image": [files[i % len(files)] for i in range(length)]}, features=columns)


def _load(setting: Setting, dataset: "BatchedDataset") -> Run:
    """The batch in equal parts, one of each worker, so that none can have worked ahead."""
    from ..data.batches import Loading
    from ..data.indexed import IndexedSource

    parts = max(setting.num_workers, 1)
    loading = Loading(setting.batch_size // parts, num_workers=setting.num_workers, timeout=600)
    batches = IndexedSource(dataset, loading).batches(samples_seen=0)
    return lambda: [next(batches) for _ in range(parts)]


def pink_noise(height: int, width: int, seed: int) -> np.ndarray:
    """(height, width, 3) float32 in [0, 1] whose spectrum falls as photographs' does, with the frequency."""
    random = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(random.standard_normal((3, height, width))) / frequency
    noise = np.fft.irfft2(spectrum, s=(height, width))
    noise = 0.5 + 0.2 * noise / noise.std()
    return noise.clip(0, 1).astype(np.float32).transpose(1, 2, 0)


WORKLOADS: dict[str, Callable[[Setting], Run]] = {
    "train": train,
    "train-pixels": train_pixels,
    "train-tokenizer": train_tokenizer,
    "features": features,
    "extract": extract,
    "generate": generate,
    "draw": draw,
    "encode": encode,
    "decode": decode,
    "load-tokens": load_tokens,
    "load-jpegs": load_jpegs,
}
# Their work is not the model's.
ON_HOST = ("load-tokens", "load-jpegs")
# What the extra `training` does not bring.
NEED_MORE = ("train-tokenizer",)
WITHOUT_PLAIN_PATH = ("draw", "load-tokens", "train-tokenizer")
