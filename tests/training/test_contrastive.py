import torch
import torch.nn.functional as F

from transformers_mage.training.contrastive import ProjectionHead, info_nce


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
