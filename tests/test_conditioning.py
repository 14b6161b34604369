"""Classes and guidance, in the model and through the pipeline."""

import math

import pytest
import torch

from transformers_mage import MageConfig, MageForMaskedImageModeling, MagePipeline, MageScheduler, sample_masks
from transformers_mage.conditioning import Condition, GuidancePlan, apply_guidance, guidance_at, resolve_class_labels

DIGITS = dict(enumerate(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]))


@pytest.fixture
def conditional_config(small_config: MageConfig) -> MageConfig:
    return MageConfig(**small_config.to_dict() | {"num_classes": 10, "id2label": DIGITS})


@pytest.fixture
def conditional_model(conditional_config: MageConfig) -> MageForMaskedImageModeling:
    return MageForMaskedImageModeling(conditional_config).eval()


@pytest.fixture
def conditional_pipeline(conditional_model: MageForMaskedImageModeling) -> MagePipeline:
    pipe = MagePipeline(
        conditional_model, MageScheduler(conditional_model.config.mask_token_id, num_inference_steps=4)
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tokens_of(pipe: MagePipeline, seed: int = 0, **kwargs) -> torch.LongTensor:
    return pipe(output_type="latent", generator=torch.Generator().manual_seed(seed), **kwargs).images


# The configuration


def test_classes_have_as_many_labels_unless_they_are_named():
    assert MageConfig(num_classes=10).num_labels == 10
    assert MageConfig(num_classes=10, id2label=DIGITS).id2label == DIGITS
    assert MageConfig().num_labels == 2  # transformers' default
    assert MageConfig(num_labels=5).num_classes == 0


# Labels


@pytest.mark.parametrize(
    ("labels", "ids"),
    [
        (7, [7]),
        ("seven", [7]),
        ([3, "five", None], [3, 5, -1]),
        (torch.tensor([1, 2]), [1, 2]),
        (torch.tensor(4), [4]),
        (None, None),
    ],
)
def test_labels_are_ids_or_names(conditional_config: MageConfig, labels, ids):
    assert resolve_class_labels(conditional_config, labels) == ids


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (10, "between 0 and 9, got 10"),
        ([0, -1], "between 0 and 9, got -1"),
        ("sevn", r"No class is called 'sevn'.*\['seven'"),
        ([2.5], "ids, names or None, got 2.5"),
        (True, "ids, names or None, got True"),
        ([], "at least one class"),
    ],
)
def test_wrong_labels_are_refused(conditional_config: MageConfig, labels, message: str):
    with pytest.raises(ValueError, match=message):
        resolve_class_labels(conditional_config, labels)


def test_a_name_of_two_classes_is_refused():
    config = MageConfig(num_classes=3, id2label={0: "crane", 1: "crane", 2: "maillot"})
    with pytest.raises(ValueError, match=r"Several classes are called 'crane': \[0, 1\]"):
        resolve_class_labels(config, "crane")


def test_names_that_do_not_fit_the_classes_are_refused():
    with pytest.raises(ValueError, match="has 10 classes but names 2"):
        resolve_class_labels(MageConfig(num_classes=10, id2label={0: "cat", 1: "dog"}), "cat")


def test_an_unconditional_pipeline_takes_no_labels_and_no_guidance(small_pipeline: MagePipeline):
    with pytest.raises(ValueError, match="unconditional model"):
        small_pipeline(class_labels=3)
    with pytest.raises(ValueError, match=r"`guidance_scale` is 2\.0, but this model is unconditional"):
        small_pipeline(guidance_scale=2.0)


def test_a_model_that_never_saw_the_unconditional_token_takes_no_guidance(conditional_pipeline: MagePipeline):
    conditional_pipeline.model.config.class_dropout_prob = 0.0
    with pytest.raises(ValueError, match="trained with classes only"):
        conditional_pipeline(class_labels=3, guidance_scale=2.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"guidance_scale": -1.0}, "0 .no guidance. or more and finite, got -1.0"),
        ({"guidance_scale": math.nan}, "got nan"),
        ({"guidance_interval": (0.5, 0.5)}, r"`guidance_interval` must be two shares .*, got \(0\.5, 0\.5\)"),
        ({"guidance_interval": (-0.1, 1)}, "`guidance_interval` must be two shares"),
        ({"guidance_interval": (0, 20)}, "`guidance_interval` must be two shares"),
        ({"guidance_interval": (0, math.nan)}, "`guidance_interval` must be two shares"),
        ({"guidance_interval": 0.5}, "`guidance_interval` must be two shares"),
        ({"guidance_interval": "01"}, "`guidance_interval` must be two shares"),
        ({"guidance_schedule": "quadratic"}, r"one of \['linear', 'constant', 'cosine'\], got 'quadratic'"),
    ],
)
def test_wrong_guidance_is_refused(conditional_pipeline: MagePipeline, arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        conditional_pipeline(class_labels=3, **arguments)


def test_guidance_of_calls_that_do_not_say_theirs_is_saved_with_the_pipeline(conditional_model, tmp_path):
    plain = MagePipeline(conditional_model, MageScheduler(conditional_model.config.mask_token_id))
    own = {"guidance_scale": 2.0, "guidance_schedule": "constant", "guidance_interval": (0.5, 1.0)}
    MagePipeline(conditional_model, plain.scheduler, **own).save_pretrained(tmp_path / "guided")
    plain.save_pretrained(tmp_path / "plain")
    guided = MagePipeline.from_pretrained(tmp_path / "guided")
    for pipe in (plain, guided):
        pipe.set_progress_bar_config(disable=True)

    assert tokens_of(guided, class_labels=[1, 2]).equal(tokens_of(plain, class_labels=[1, 2], **own))
    assert guided.guidance_scale == 2.0
    assert tokens_of(guided, class_labels=[1, 2], guidance_scale=0.0).equal(tokens_of(plain, class_labels=[1, 2]))
    assert MagePipeline.from_pretrained(tmp_path / "guided", guidance_scale=1).config.guidance_scale == 1.0
    assert "guidance" not in (tmp_path / "plain" / "model_index.json").read_text()


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"guidance_scale": 2.0}, "this model is unconditional"),
        ({"guidance_scale": -1.0}, "0 .no guidance. or more and finite, got -1.0"),
        ({"guidance_interval": (1, 0)}, "`guidance_interval` must be two shares"),
        ({"guidance_schedule": "quadratic"}, "got 'quadratic'"),
    ],
)
def test_guidance_that_a_pipeline_cannot_have(small_model: MageForMaskedImageModeling, own: dict, message: str):
    with pytest.raises(ValueError, match=message):
        MagePipeline(small_model, MageScheduler(small_model.config.mask_token_id), **own)


# Training


def training_loss(model: MageForMaskedImageModeling, class_labels: torch.LongTensor | None, seed: int = 1) -> float:
    masks = sample_masks(model.config, batch_size=4, generator=torch.Generator().manual_seed(0))
    input_ids = torch.arange(4 * 64).view(4, 64) % 16
    torch.manual_seed(seed)
    return model.train()(input_ids=input_ids, class_labels=class_labels, **masks.as_kwargs()).loss.item()


def without_dropout(config: MageConfig, class_dropout_prob: float) -> MageForMaskedImageModeling:
    torch.manual_seed(0)
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "class_dropout_prob": class_dropout_prob}
    return MageForMaskedImageModeling(MageConfig(**config.to_dict() | off))


def test_label_dropout_replaces_classes_by_the_unconditional_token(conditional_config: MageConfig):
    labels = torch.tensor([0, 3, 5, 9])
    always, never = without_dropout(conditional_config, 1.0), without_dropout(conditional_config, 0.0)
    assert training_loss(always, labels) == training_loss(always, None) == training_loss(never, None)
    assert training_loss(never, labels) != training_loss(never, None)


def test_label_dropout_follows_torch_s_seed_and_is_off_in_evaluation(conditional_config: MageConfig):
    model = without_dropout(conditional_config, 0.5)
    labels = torch.tensor([0, 3, 5, 9])
    losses = [training_loss(model, labels, seed) for seed in (1, 1, 2, 3, 4)]
    assert losses[0] == losses[1]
    assert len(set(losses)) > 2
    input_ids = torch.full((4, 64), model.config.mask_token_id)
    first, second = (model.eval()(input_ids=input_ids, class_labels=labels).logits for _ in range(2))
    assert torch.equal(first, second)


def test_label_dropout_has_the_configured_rate(conditional_model: MageForMaskedImageModeling):
    dropped = conditional_model.mage._drop_classes(torch.full((20_000,), 7))
    assert set(dropped.tolist()) == {-1, 7}
    assert (dropped == -1).float().mean().item() == pytest.approx(0.1, abs=0.01)


def test_class_embeddings_and_the_unconditional_token_learn(conditional_config: MageConfig):
    model = without_dropout(conditional_config, 0.0).train()
    masks = sample_masks(model.config, batch_size=2)
    labels = torch.tensor([4, -1])
    model(input_ids=torch.zeros(2, 64, dtype=torch.long), class_labels=labels, **masks.as_kwargs()).loss.backward()
    embeddings = model.mage.embeddings
    assert embeddings.class_embeddings.weight.grad.abs().sum(dim=1).nonzero().flatten().tolist() == [4]
    assert embeddings.word_embeddings.weight.grad[model.config.unconditional_token_id].abs().sum() > 0


def test_an_unconditional_folder_opens_as_a_conditional_model(small_model, conditional_config, tmp_path):
    small_model.save_pretrained(tmp_path)
    model = MageForMaskedImageModeling.from_pretrained(tmp_path, config=conditional_config).eval()
    input_ids = torch.full((1, 64), small_model.config.mask_token_id)
    assert torch.equal(model(input_ids=input_ids).logits, small_model(input_ids=input_ids).logits)
    assert model.mage.embeddings.class_embeddings.weight.std().item() == pytest.approx(0.02, abs=0.005)


# Guidance


def test_guidance_is_the_formula_of_the_paper():
    conditional, unconditional = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 4.0]])
    guided = apply_guidance(torch.cat([conditional, unconditional]), 2.0)
    assert guided.tolist() == [[2.0, -2.0]]


def test_guidance_schedules():
    assert [guidance_at(4.0, "linear", done) for done in (0.25, 0.5, 1.0)] == [1.0, 2.0, 4.0]
    assert [guidance_at(4.0, "constant", done) for done in (0.25, 0.5, 1.0)] == [4.0, 4.0, 4.0]
    assert [guidance_at(4.0, "cosine", done) for done in (0.5, 1.0)] == pytest.approx([2.0, 4.0])


def test_guidance_in_an_interval_of_the_steps():
    plan = GuidancePlan("constant", (0.25, 0.75))
    assert [plan.at(3.0, step, 8) for step in range(8)] == [0, 0, 3, 3, 3, 3, 0, 0]
    whole = GuidancePlan("linear")
    assert [whole.at(4.0, step, 4) for step in range(4)] == [guidance_at(4.0, "linear", (s + 1) / 4) for s in range(4)]


def test_outside_of_the_interval_the_model_is_asked_once(conditional_pipeline: MagePipeline, monkeypatch):
    sizes, forward = [], conditional_pipeline.model.forward

    def watched(*args, input_ids: torch.Tensor, **kwargs):
        sizes.append(len(input_ids))
        return forward(*args, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(conditional_pipeline.model, "forward", watched)
    conditional_pipeline(class_labels=[1, 2], guidance_scale=2.0, guidance_interval=(0.25, 0.75))
    assert sizes == [2, 4, 4, 2]


def test_guidance_at_scale_0_is_no_guidance_bit_for_bit(conditional_pipeline: MagePipeline):
    images = [
        conditional_pipeline(
            class_labels=[3, 4], generator=torch.Generator().manual_seed(0), output_type="pt", **kwargs
        )
        for kwargs in ({}, {"guidance_scale": 0.0}, {"guidance_scale": 0, "guidance_schedule": "constant"})
    ]
    assert torch.equal(images[0].images, images[1].images)
    assert torch.equal(images[0].images, images[2].images)


def test_guidance_in_one_batch_equals_two_passes(conditional_pipeline: MagePipeline):
    model = conditional_pipeline.model
    tokens = torch.randint(0, 16, (3, 8, 8)).masked_fill(torch.rand(3, 8, 8) < 0.5, model.config.mask_token_id)
    labels = torch.tensor([2, 7, 9])
    with torch.no_grad():
        in_one_batch = conditional_pipeline._predict_logits(tokens, Condition(labels), guidance=1.5)
        conditional, unconditional = (
            model(input_ids=tokens, class_labels=labels).logits,
            model(input_ids=tokens).logits,
        )
    torch.testing.assert_close(in_one_batch, conditional + 1.5 * (conditional - unconditional), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(conditional, unconditional)


def test_guidance_without_a_class_changes_nothing(conditional_pipeline: MagePipeline):
    alone = tokens_of(conditional_pipeline, num_images=2)
    assert torch.equal(alone, tokens_of(conditional_pipeline, num_images=2, guidance_scale=3.0))


def test_guidance_pulls_towards_the_class(conditional_pipeline: MagePipeline):
    """A class whose embedding makes code 5 likelier: the stronger the guidance, the more tokens are code 5."""
    model = conditional_pipeline.model
    with torch.no_grad():
        model.mage.embeddings.class_embeddings.weight.mul_(50)
    input_ids = torch.full((1, 64), model.config.mask_token_id)
    difference = model(input_ids=input_ids, class_labels=torch.tensor([3])).logits - model(input_ids=input_ids).logits
    code = difference.mean(dim=1).argmax().item()
    shares = [
        (tokens_of(conditional_pipeline, class_labels=3, num_images=16, guidance_scale=g) == code)
        .float()
        .mean()
        .item()
        for g in (0.0, 4.0, 40.0)
    ]
    assert shares[0] < shares[1] < shares[2]


# The pipeline


def test_every_class_gets_num_images(conditional_pipeline: MagePipeline):
    output = conditional_pipeline(class_labels=["three", 4], num_images=3)
    assert len(output.images) == 6


def test_an_image_of_a_class_does_not_depend_on_its_batch(conditional_pipeline: MagePipeline):
    def generators(seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    kwargs = {"guidance_scale": 2.0, "output_type": "latent"}
    together = conditional_pipeline(class_labels=[1, 2, 3], generator=generators([0, 1, 2]), **kwargs).images
    alone = conditional_pipeline(class_labels=2, generator=generators([1]), **kwargs).images
    assert torch.equal(together[1:2], alone)


def test_images_of_a_class_begin_from_one_prediction(conditional_pipeline: MagePipeline, monkeypatch):
    """Blank canvases of a class are all alike, so that it makes no difference whether all of them are looked at."""
    kwargs = {"class_labels": [1, None, 3], "num_images": 2, "guidance_scale": 2.0}
    once = tokens_of(conditional_pipeline, **kwargs)
    monkeypatch.setattr(conditional_pipeline, "_is_compiled", True)
    assert torch.equal(tokens_of(conditional_pipeline, **kwargs), once)


def test_no_class_among_classes_is_the_unconditional_token(conditional_pipeline: MagePipeline):
    def generators():
        return [torch.Generator().manual_seed(seed) for seed in (0, 1)]

    mixed = conditional_pipeline(class_labels=[5, None], generator=generators(), output_type="latent").images
    unconditional = conditional_pipeline(num_images=2, generator=generators(), output_type="latent").images
    assert torch.equal(mixed[1], unconditional[1])


def test_a_saved_conditional_pipeline_keeps_its_classes(conditional_pipeline: MagePipeline, tmp_path):
    conditional_pipeline.save_pretrained(tmp_path)
    loaded = MagePipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.model.config.id2label == DIGITS
    kwargs = {"class_labels": ["nine", 0], "guidance_scale": 1.0}
    assert torch.equal(tokens_of(loaded, **kwargs), tokens_of(conditional_pipeline, **kwargs))
