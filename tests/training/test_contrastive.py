import torch
import torch.nn.functional as F

from transformers_mage import MageConfig, MageForMaskedImageModeling, sample_masks
from transformers_mage.training.contrastive import ProjectionHead, contrast_micro_batches, info_nce
from transformers_mage.training.pretraining import MageForPreTraining


def test_info_nce_is_a_choice_of_the_other_view_among_all_others():
    torch.manual_seed(0)
    first, second = F.normalize(torch.randn(2, 5, 8), dim=-1)
    everything = torch.cat([first, second])
    losses = []
    for i in range(10):
        similarities = everything @ everything[i] / 0.2
        positive = similarities[(i + 5) % 10]
        others = torch.cat([similarities[:i], similarities[i + 1 :]])
        losses.append(others.logsumexp(0) - positive)
    torch.testing.assert_close(info_nce(first, second, temperature=0.2), torch.stack(losses).mean())


def test_equal_views_of_orthogonal_images_are_easy():
    easy, hard = torch.eye(6), torch.ones(6, 6) / 6**0.5
    assert info_nce(easy, easy, temperature=0.05) < 1e-6
    torch.testing.assert_close(info_nce(hard, hard), torch.tensor(11.0).log())


def test_projections_are_normalised():
    projections = ProjectionHead(16, 4)(torch.randn(3, 16))
    torch.testing.assert_close(projections.norm(dim=-1), torch.ones(3))


def test_a_pass_repeats_its_dropout():
    """Alone in its update, a pass has the loss and the gradients that it has without projecting first."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    config = MageConfig(
        codebook_size=32, image_size=64, patch_size=16, num_classes=3, hidden_dropout_prob=0.5, **sizes, **decoder
    )
    model = MageForPreTraining(MageForMaskedImageModeling(config), contrastive_weight=0.1).train()
    kwargs = {"input_ids": torch.randint(32, (8, 16)), "masks": sample_masks(config, 8)}
    kwargs["class_labels"] = torch.randint(3, (8,))

    (alone,) = contrast_micro_batches(model, [kwargs])
    state = torch.get_rng_state()
    loss, metrics = model(**alone)
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    torch.set_rng_state(state)
    expected_loss, expected_metrics = model(**kwargs)
    expected = torch.autograd.grad(expected_loss, list(model.parameters()), allow_unused=True)

    torch.testing.assert_close(metrics, expected_metrics)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
