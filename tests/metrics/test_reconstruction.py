import pytest
import torch
from diffusers import VQModel
from torch.nn import functional as F

from transformers_mage.image_tokens import encode_images
from transformers_mage.metrics import (
    CodeUsage,
    FrechetInceptionDistance,
    PeakSignalNoiseRatio,
    StructuralSimilarity,
    TokenizerScores,
)


@pytest.fixture
def images(generator):
    return torch.randint(256, (10, 3, 16, 16), dtype=torch.uint8, generator=generator)


def test_psnr_worked_example():
    originals = torch.full((2, 3, 8, 8), 0.5)
    reconstructions = originals.clone()
    reconstructions[0] += 0.1  # 20 dB
    reconstructions[1] += 0.01  # 40 dB
    result = PeakSignalNoiseRatio().compute(predictions=reconstructions, references=originals)
    assert result == pytest.approx({"psnr": 30.0}, abs=1e-4)


def gaussian_ssim(x, y, window):
    """The definition, channel by channel, on planes in [0, 1]."""
    line = torch.exp(-((torch.arange(window).double() - window // 2) ** 2) / (2 * 1.5**2))
    kernel = torch.outer(line, line) / line.sum() ** 2

    def mean(z):
        return F.conv2d(z[:, None].double(), kernel[None, None])[:, 0]

    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x.double() ** 2) - mx**2, mean(y.double() ** 2) - my**2, mean(x.double() * y.double()) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    return (((2 * mx * my + c1) * (2 * vxy + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean()


@pytest.mark.parametrize(("size", "window"), [(16, 11), (11, 11), (8, 7)])
def test_ssim_follows_its_definition(size, window, generator):
    x = torch.rand(4, 3, size, size, generator=generator)
    y = (x + 0.3 * torch.rand(4, 3, size, size, generator=generator)).clamp(0, 1)
    expected = gaussian_ssim(x.flatten(0, 1), y.flatten(0, 1), window)
    result = StructuralSimilarity().compute(predictions=y, references=x)
    assert result["ssim"] == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("metric_class", [PeakSignalNoiseRatio, StructuralSimilarity])
def test_streaming_and_ranges(metric_class, images):
    noisy = images // 2 + 60
    whole = metric_class().compute(predictions=noisy, references=images)
    metric = metric_class()
    for x, y in zip(noisy.split(3), images.split(3), strict=True):
        metric.add_batch(predictions=x / 255, references=y.numpy())
    assert metric.compute() == pytest.approx(whole, rel=1e-6)


def test_images_of_different_shapes(images):
    with pytest.raises(ValueError, match="one shape"):
        PeakSignalNoiseRatio().add_batch(predictions=images, references=images[:, :, 1:])
    with pytest.raises(ValueError, match="together"):
        PeakSignalNoiseRatio().add_batch(predictions=images)


@pytest.fixture
def tokenizer():
    torch.manual_seed(0)
    return VQModel(block_out_channels=(8,), norm_num_groups=4, num_vq_embeddings=16, mid_block_add_attention=False)


def rescaled(images, low, high):
    return images * (high - low) + low


def pooled(images):
    return images.float().mean((2, 3))


@pytest.mark.parametrize("pixel_range", [(0.0, 1.0), (-1.0, 1.0)])
def test_tokenizer_scores(tokenizer, images, pixel_range):
    expected_tokens = encode_images(tokenizer, rescaled(images / 255, *pixel_range))
    scores = TokenizerScores(tokenizer, pooled, pixel_range)
    for batch in images.split(4):
        scores.add_batch(batch)
    low, high = pixel_range
    originals = images / 255
    with torch.no_grad():
        decoded = (tokenizer(rescaled(originals, low, high)).sample - low) / (high - low)
    decoded = decoded.clamp(0, 1)
    expected = {
        **PeakSignalNoiseRatio().compute(predictions=decoded, references=originals),
        **StructuralSimilarity().compute(predictions=decoded, references=originals),
        "rfid": FrechetInceptionDistance(pooled).compute(predictions=decoded, references=originals)["fid"],
    }
    expected |= CodeUsage(16).compute(predictions=expected_tokens)
    assert scores.compute() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_several_feature_networks_and_features_computed_before(tokenizer, images):
    networks = {"mean": pooled, "brightest": lambda images: images.float().amax((2, 3))}
    scores = TokenizerScores(tokenizer, networks)
    scores.add_batch(images, scores.features(images))
    result = scores.compute()
    for name, network in networks.items():
        alone = TokenizerScores(tokenizer, network)
        alone.add_batch(images)
        assert result[f"rfid ({name})"] == alone.compute()["rfid"]


def test_a_lossless_tokenizer_is_perfect(tokenizer, images, monkeypatch):
    scores = TokenizerScores(tokenizer, pooled, perceptual=lambda x, y: (x - y).abs().mean(dim=(1, 2, 3)))
    monkeypatch.setattr(scores, "decode", lambda tokens: images / 255)
    scores.add_batch(images)
    result = scores.compute()
    assert result["psnr"] == torch.inf
    assert result["ssim"] == pytest.approx(1)
    assert result["rfid"] == pytest.approx(0, abs=1e-9)
    assert result["perceptual_distance"] == 0


def test_use_of_the_codes():
    usage = CodeUsage(8)
    usage.add_batch(predictions=torch.tensor([[0, 1], [2, 2]]))
    usage.add_batch(predictions=torch.tensor([[1, 0]]))
    assert usage.compute() == pytest.approx({"codes_used": 3, "code_perplexity": 3.0})
