"""Networks of contrastive objectives: their terms, their scores, and what of them is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from text_models import bert_folder

from cxrlt_ray import models
from cxrlt_ray.errors import UsageError
from cxrlt_ray.models import ModelSpec
from cxrlt_ray.objectives.contrastive import Contrastive
from cxrlt_ray.objectives.registry import ObjectiveSpec, all_objectives, find_objective
from cxrlt_ray.objectives.retrieval import reciprocal_rank
from cxrlt_ray.text.encoders import build_text_encoder

CONTRASTIVE = [name for name, kind in all_objectives().items() if issubclass(kind, Contrastive)]
FINDINGS = ("Mass", "Nodule")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return str(bert_folder(tmp_path_factory.mktemp("bert")))


def made(name, bert, tuning="tuned", pool="avg", **settings):
    """The objective and its network."""
    torch.manual_seed(0)
    settings = {"barlow_width": 16, **settings} if name == "barlow" else settings
    spec = ObjectiveSpec(name, settings, text=bert, text_tuning=tuning, max_tokens=32)
    objective = find_objective(name)(spec, np.empty((0, 2), np.int8))
    model = models.build(ModelSpec("test_convnext", resolution=32, pretrained=False, pool=pool), FINDINGS)
    return objective, objective.network(model)


ASKED = ("no bulla .", "the heart is enlarged")


def compared(name, bert, **settings):
    """The objective and its network on a classifier that answers by similarity, for the findings ASKED."""
    torch.manual_seed(0)
    spec = ObjectiveSpec(name, settings, text=bert, max_tokens=32)
    encoder = build_text_encoder(spec.text_spec())
    with torch.no_grad():
        embeddings = encoder(encoder.tokenize(ASKED))
    asking = ModelSpec("test_convnext", 32, pretrained=False, head="similarity", pool="avg", queries="labels.npz")
    objective = find_objective(name)(spec, np.empty((0, 2), np.int8))
    return objective, objective.network(models.build(asking, FINDINGS, embeddings))


def batch(objective, texts=("the heart is enlarged", "no bulla .", "scoliosis of spine left", "lung clear"), seed=0):
    """Inputs as registry.Needs says."""
    generator = torch.Generator().manual_seed(seed)
    images = [torch.randint(0, 256, (len(texts), 32, 32), dtype=torch.uint8, generator=generator) for _ in range(2)]
    inputs = [images[0]]
    if objective.needs.pairs:
        inputs += [images[1], torch.arange(len(texts))]
    if objective.needs.texts:
        inputs += [*objective.tokenize(texts), torch.arange(1, 1 + len(texts))]
    return tuple(inputs)


def test_contrastive_objectives_are_those_of_the_page():
    assert CONTRASTIVE == ["barlow", "clip", "mama", "moco", "siglip", "simclr"]


@pytest.mark.parametrize("name", CONTRASTIVE)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_all_that_is_trained_has_a_gradient_and_the_head_takes_no_part(name, precision, bert):
    objective, network = made(name, bert)
    network.train()
    if name == "moco":
        with torch.no_grad():
            network(*batch(objective, seed=1))  # something to repel
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        terms = network(*batch(objective))
    assert terms.dtype == torch.float32
    assert terms.shape == (len(objective.weights),)
    objective.loss(terms, []).backward()
    for parameter, tensor in network.named_parameters():
        if tensor.requires_grad:  # DistributedDataParallel waits for every one
            assert tensor.grad is not None, parameter
            assert torch.isfinite(tensor.grad).all(), parameter
    model = objective.classifier(network)
    assert any(p.grad.abs().sum() > 0 for p in model.backbone.parameters())
    assert not any(p.requires_grad for p in model.head.parameters())


@pytest.mark.parametrize("name", ["clip", "siglip", "mama"])
def test_a_head_that_compares_is_given_the_space_that_was_learnt(name, bert):
    objective, network = compared(name, bert)
    begun = {id(layer): layer.weight.detach().clone() for layer in (network.image.project, network.text.project)}
    optimizer = torch.optim.AdamW((p for p in network.parameters() if p.requires_grad), lr=1e-2)
    for seed in range(3):
        objective.loss(network(*batch(objective, seed=seed)), []).backward()
        optimizer.step()
        optimizer.zero_grad()
    network.eval()
    for layer in (network.image.project, network.text.project):
        assert all(parameter.requires_grad for parameter in layer.parameters())
        assert not torch.equal(layer.weight, begun[id(layer)])
    images = batch(objective)[0]
    with torch.no_grad():
        encoded = network.encode(*batch(objective, texts=[*ASKED, *ASKED]))
        cosines = F.normalize(encoded[0], dim=1) @ F.normalize(encoded[1], dim=1)[:2].T
        logits = network.scale() * cosines
        model = objective.classifier(network)
        given = model(images)
    offset = given - logits  # the threshold: of the text alone
    torch.testing.assert_close(offset, offset[:1].expand_as(offset), rtol=0, atol=1e-4)
    if network.bias is not None:
        torch.testing.assert_close(given, logits + network.bias, rtol=0, atol=1e-4)
    # another stage of contrast goes on from there
    with torch.no_grad():
        again = objective.network(model).eval().encode(*batch(objective, texts=[*ASKED, *ASKED]))
    torch.testing.assert_close(again[0], encoded[0])
    torch.testing.assert_close(again[1], encoded[1])


def test_a_head_that_compares_is_refused_a_space_of_another_width(bert):
    with pytest.raises(UsageError, match="head similarity compares 512 numbers: clip_width must be as many, not 64"):
        compared("clip", bert, clip_width=64)


@torch.no_grad()
def test_mamas_other_terms_begin_with_its_step_and_weigh_as_they_are_set(bert):
    objective, network = made("mama", bert, mama_start=1, mama_second=0.5, mama_views=0.25, mama_local=2)
    inputs = batch(objective)
    before = network(*inputs)
    assert before[0] > 0
    assert before[1:].tolist() == [0, 0, 0]
    objective.after_step(network)
    terms = network(*inputs)
    assert (terms > 0).all()
    assert float(terms[0]) == pytest.approx(float(before[0]), rel=1e-4)
    expected = terms[0] + 0.5 * terms[1] + 0.25 * terms[2] + 2 * terms[3]
    assert float(objective.loss(terms, [])) == pytest.approx(float(expected), rel=1e-6)
    slides, other = made("mama", bert, mama_start=0, mama_slides=1)
    both = other(*batch(slides))
    assert both[3] != terms[3]
    for one, two in zip(both[:3], terms[:3], strict=True):
        assert float(one) == pytest.approx(float(two), rel=1e-4)


def test_mocos_slow_encoder_follows_and_is_never_trained(bert):
    objective, network = made("moco", bert, moco_momentum=0.5, moco_queue=3)
    network.train()
    with torch.no_grad():
        for parameter in network.image.parameters():
            parameter.add_(1.0)
    before = [parameter.clone() for parameter in network.slow.parameters()]
    network(*batch(objective))
    assert sorted(network.queue.study.tolist()) == [1, 2, 3]
    objective.after_step(network)
    for slow, old in zip(network.slow.parameters(), before, strict=True):
        torch.testing.assert_close(slow, old + 0.5)
        assert not slow.requires_grad
    network.eval()(*batch(objective, seed=2))
    assert sorted(network.queue.study.tolist()) == [1, 2, 3]  # validation images are no negatives


def test_mama_by_the_slides_repels_a_queue_that_a_slow_encoder_fills(bert):
    objective, network = made("mama", bert, mama_start=1, mama_queue=8, mama_momentum=0.5)
    network.train()
    with torch.no_grad():
        network(*batch(objective))
        objective.after_step(network)
        assert (network.queue.study == -1).all()  # nothing is kept before the term begins
        assert network(*batch(objective))[2] == pytest.approx(0, abs=1e-6)  # nothing to repel yet
        inputs = batch(objective, seed=1)
        term = network(*inputs[:2], torch.arange(4, 8), *inputs[3:])[2]
        query, keys = network.image.patches(inputs[0])[0], network.slow.patches(inputs[1])[0]
        logits = torch.cat([(F.normalize(query) * F.normalize(keys)).sum(1, keepdim=True), _cosines(query, network)], 1)
    expected = F.cross_entropy(logits / 0.5, torch.zeros(4, dtype=torch.int64))
    assert float(term) == pytest.approx(float(expected), rel=1e-4)
    assert not any(parameter.requires_grad for parameter in network.slow.parameters())


def _cosines(query, network):
    """Of queries with the keys that were in the queue before: those of the first four studies."""
    kept = network.queue.keys[network.queue.study < 4]
    return F.normalize(query) @ kept.T


def test_a_frozen_encoder_has_no_gradients_and_is_left_out_of_the_state(bert):
    objective, network = made("clip", bert, tuning="frozen")
    state = network.state_dict()
    assert not any("encoder." in name for name in state)
    assert any(name.startswith("text.project.") for name in state)
    network(*batch(objective)).sum().backward()
    assert all(parameter.grad is None for parameter in network.text.encoder.parameters())
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    other = made("clip", bert, tuning="frozen")[1]
    other.load_state_dict(network.state_dict())
    torch.testing.assert_close(other(*batch(objective)), network(*batch(objective)))
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({name: t for name, t in network.state_dict().items() if "project" not in name})
    assert any("encoder." in name for name in made("clip", bert)[1].state_dict())


def test_a_backbone_without_a_map_has_no_patches_to_compare(bert):
    objective, network = made("mama", bert, pool="own")
    with pytest.raises(UsageError, match="take `pool: avg`, which keeps its map"):
        network(*batch(objective))


def test_patches_pooled_are_the_models_own_features(bert):
    _, network = made("mama", bert)
    images = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    model = network.image.model.eval()
    torch.testing.assert_close(model.patches(images).mean(dim=1), model.features(images)[:, 0])


def test_a_score_leaves_out_images_without_text(bert):
    objective, network = made("clip", bert)
    pixels, ids, mask, number = batch(objective)
    silent = number.clone()
    silent[1] = 0
    kept = torch.tensor([0, 2, 3])
    score = objective.score_network(network.eval(), iter([(pixels, ids, mask, silent)]))
    assert score == objective.score_network(network, iter([(pixels[kept], ids[kept], mask[kept], number[kept])]))
    assert np.isnan(objective.score_network(network, iter([])))


def test_reciprocal_ranks_by_hand():
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1]])
    keys = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    # first: level with the second key; second: level with the first, behind the third; third: behind both
    expected = (1 / 1.5 + 1 / 2.5 + 1 / 3) / 3
    assert reciprocal_rank(queries, keys, torch.tensor([1, 2, 3])) == pytest.approx(expected)
    # one and the same text is no rival of itself
    assert reciprocal_rank(queries, keys, torch.tensor([1, 1, 3])) == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)


def test_a_rank_does_not_depend_on_how_many_pairs_there_are():
    generator = torch.Generator().manual_seed(0)
    scores = {}
    for count in (64 * 10, 64 * 80):
        queries = torch.randn(count, 16, generator=generator)
        keys = queries + torch.randn(count, 16, generator=generator)
        scores[count] = reciprocal_rank(queries, keys, torch.arange(count))
        assert scores[count] == reciprocal_rank(queries, keys, torch.arange(count))
        chance = reciprocal_rank(torch.randn(count, 16, generator=generator), keys, torch.arange(count))
        assert chance == pytest.approx(0.074, abs=0.03)
    assert scores[640] == pytest.approx(scores[5120], abs=0.05)
    assert scores[640] > 0.5


def test_a_stage_that_ends_before_the_other_terms_begin_says_so(capsys):
    spec = ObjectiveSpec(objective="mama", objective_settings={"mama_start": 100.0}, text="minilm")
    objective = find_objective("mama")(spec, np.empty((0, 0), np.int8))
    objective.before_training(torch.nn.Identity(), 101)
    assert capsys.readouterr().out == ""
    objective.before_training(torch.nn.Identity(), 100)
    assert "mama_start is 100, but the stage has 100 steps" in capsys.readouterr().out
