"""Heads that read text: the papers' formulas, findings known by their embeddings alone, any grid; other findings."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cxrlt_ray.errors import UsageError
from cxrlt_ray.models import (
    Bilinear,
    FiLM,
    ModelSpec,
    Pair,
    QueryDecoder,
    Similarity,
    asked,
    build,
    carry,
    load,
    save,
    size,
)
from cxrlt_ray.models.asking import Both
from cxrlt_ray.models.cost import feature_shape
from cxrlt_ray.models.heads import HEADS

torch.set_num_threads(1)
NAMES = ("A", "B", "C", "D")
TEXT = sorted(name for name, head in HEADS.items() if head.needs_embeddings)
ANY = ModelSpec("test_resnet", 64, pretrained=False)
# every head, and the settings of query_decoder
KINDS = {
    **{name: {"head": name} for name in TEXT},
    "pooled": {"head": "query_decoder", "query_layers": 2, "query_pooled": 0.4},
    "two outputs": {"head": "query_decoder", "query_layers": 1, "query_width": 32, "query_outputs": 2},
    "self-attention": {"head": "query_decoder", "query_layers": 2, "query_self_attention": True},
}
ALONE = sorted(set(KINDS) - {"self-attention"})


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def spec_of(kind: str) -> ModelSpec:
    return dataclasses.replace(ANY, **KINDS[kind], queries="labels.npz")


def head_of(kind: str, embeddings: torch.Tensor, findings: int | None = None) -> nn.Module:
    torch.manual_seed(0)
    spec = spec_of(kind)
    return HEADS[spec.head](12, findings or len(embeddings), spec, embeddings).eval()


def model_of(kind: str, embeddings: torch.Tensor, **change: object):
    torch.manual_seed(0)
    return build(dataclasses.replace(spec_of(kind), **change), NAMES[: len(embeddings)], embeddings).eval()


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_findings_in_another_order_have_the_same_logits(kind):
    values, x, order = rand(4, 6), rand(2, 9, 12), [2, 0, 3, 1]
    torch.testing.assert_close(head_of(kind, values[order])(x), head_of(kind, values)(x)[:, order])


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_another_finding_among_those_scored_changes_a_logit_by_self_attention_only(kind):
    values, x = rand(4, 6), rand(2, 9, 12)
    fewer, more = head_of(kind, values[:3])(x), head_of(kind, values)(x)[:, :3]
    assert torch.allclose(fewer, more, atol=1e-5) == (kind in ALONE)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_logits_depend_on_text_and_image_and_the_gradient_reaches_every_token(kind):
    values, x = rand(3, 6), rand(2, 9, 12).requires_grad_()
    head = head_of(kind, values)
    logits = head(x)
    assert (logits.std(dim=0) > 1e-4).all()
    assert (logits.std(dim=1) > 1e-4).all()
    logits.sum().backward()
    assert (x.grad.abs().amax(dim=2) > 0).all()
    assert [name for name, p in head.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"query_text"}))
def test_the_length_of_an_embedding_does_not_count(kind):
    values, x = rand(3, 6), rand(2, 9, 12)
    torch.testing.assert_close(head_of(kind, 7 * values)(x), head_of(kind, values)(x))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_one_state_serves_two_resolutions_and_stored_features_in_half_precision(kind):
    model = model_of(kind, rand(4, 6))
    with torch.inference_mode():
        for side in (64, 96):
            images = torch.rand(3, side, side)
            logits = model(images)
            assert logits.shape == (3, 4)
            torch.testing.assert_close(model(model.features(images).half()), logits, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("head", TEXT)
def test_a_saved_model_is_loaded_without_file_and_encoder(head, tmp_path: Path):
    model, spec = model_of(head, rand(4, 6)), dataclasses.replace(ANY, head=head, text="gone", prompts="question")
    save(model, spec, NAMES, tmp_path)
    again, its, findings = load(tmp_path)
    images = torch.rand(2, 64, 64)
    assert (its.text, its.prompts, findings) == ("gone", "question", NAMES)
    with torch.inference_mode():
        assert torch.equal(again(images), model(images))


def test_cost_is_known_without_an_encoder(monkeypatch):
    from cxrlt_ray.text import finding_embeddings

    monkeypatch.setattr(finding_embeddings, "finding_embeddings", None)
    for head in TEXT:
        spec = dataclasses.replace(ANY, head=head, text="minilm")
        flops, numbers = size(spec, 40)
        assert flops > size(ANY, 40)[0]
        assert size(spec, 41)[1] - numbers == 384 + 1
        other = dataclasses.replace(spec, head="ml_decoder" if HEADS[head].needs_map else "linear", text=None)
        assert feature_shape(spec) == feature_shape(other)


# bilinear


def test_bilinear_is_any_linear_classifier_where_texts_are_independent():
    linear, texts, x = nn.Linear(12, 4).double(), rand(4, 6).double(), rand(5, 1, 12).double()
    head = head_of("bilinear", texts).double()
    units = nn.functional.normalize(texts, dim=1)
    with torch.no_grad():
        inverse = torch.linalg.pinv(units)  # [6, 4]: units @ inverse = 1
        head.weigh.weight.copy_(inverse @ linear.weight)
        head.bias.weight.copy_((inverse @ (linear.bias - head.BIAS)).unsqueeze(0))
        torch.testing.assert_close(head(x), linear(x[:, 0]))


# query_decoder


def test_query_decoder_is_torchs_pre_norm_decoder_with_the_same_weights():
    """torch.nn.TransformerDecoder(norm_first) is what KAD and MedKLIP take, four heads."""
    head = head_of("self-attention", rand(3, 6)).double()
    width = head.norm.normalized_shape[0]
    theirs = nn.TransformerDecoder(
        nn.TransformerDecoderLayer(
            width, 4, head.layers[0].feed.wide.out_features, 0.0, batch_first=True, norm_first=True
        ),
        len(head.layers),
        nn.LayerNorm(width),
    ).double()
    for layer, ours in zip(theirs.layers, head.layers, strict=True):
        for norm, other in zip((layer.norm1, layer.norm2, layer.norm3), ours.norms, strict=True):
            nn.init.normal_(other.weight)
            norm.load_state_dict(other.state_dict())
        for attention, other in ((layer.self_attn, ours.among), (layer.multihead_attn, ours.attention)):
            with torch.no_grad():
                attention.in_proj_weight.copy_(torch.cat([p.weight for p in (other.query, other.key, other.value)]))
                attention.in_proj_bias.copy_(torch.cat([p.bias for p in (other.query, other.key, other.value)]))
            attention.out_proj.load_state_dict(other.out.state_dict())
        layer.linear1.load_state_dict(ours.feed.wide.state_dict())
        layer.linear2.load_state_dict(ours.feed.narrow.state_dict())
    theirs.norm.load_state_dict(head.norm.state_dict())
    x = rand(2, 9, 12).double()
    queries = head.ask(head.texts).expand(2, -1, -1)
    expected = head.read(theirs.eval()(queries, head.embed(x))).squeeze(2)
    torch.testing.assert_close(head(x), expected)


def test_the_pooled_feature_is_attended_beside_the_tokens():
    """UniChest: 1.0 x attention to tokens + .4 x attention to their mean, which is all there is of one token."""
    head, x = head_of("pooled", rand(3, 6)), rand(2, 1, 12)
    without = head_of("pooled", rand(3, 6))
    for layer in without.layers:
        layer.pooled = 0.0
        with torch.no_grad():
            for p in layer.attention.out.parameters():
                p.mul_(1.4)
    torch.testing.assert_close(head(x), without(x))


def test_two_outputs_are_cross_entropys():
    """MedKLIP: the softmax of the second output is the probability."""
    head, x = head_of("two outputs", rand(3, 6)), rand(2, 9, 12)
    outputs = []
    head.read.register_forward_hook(lambda *given: outputs.append(given[2]))
    logits = head(x)
    torch.testing.assert_close(logits.sigmoid(), outputs[0].softmax(dim=2)[..., 1])


# pair


def test_pair_is_a_network_on_joined_features():
    """G: image and text, 512 each, joined; 512-ReLU-1."""
    head, x = head_of("pair", rand(3, 6)), rand(2, 9, 12)
    logits = head(x)
    for b in range(2):
        for c in range(3):
            text = head.embeddings[c] / head.embeddings[c].norm() * 6**0.5
            joined = torch.cat([head.embed(x[b].mean(dim=0)), head.ask(text)])
            torch.testing.assert_close(logits[b, c], head.read(torch.relu(head.join(joined)))[0])


# similarity


def test_similarity_is_the_scaled_cosine_above_the_texts_threshold():
    head, x = head_of("similarity", rand(3, 6)), rand(2, 9, 12)
    nn.init.normal_(head.threshold.weight)
    logits = head(x)
    for b in range(2):
        for c in range(3):
            text = head.embeddings[c] / head.embeddings[c].norm() * 6**0.5
            cosine = nn.functional.cosine_similarity(head.embed(x[b].mean(dim=0)), head.ask(text), dim=0)
            torch.testing.assert_close(logits[b, c], head.log_scale.exp() * (cosine - head.threshold(text)[0]))


def test_similarities_that_lie_close_together_stay_apart_in_half_precision():
    head, x = head_of("similarity", rand(1, 6)), rand(1, 9, 12) + 0.01 * rand(300, 9, 12)
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(x.float())
    assert logits.dtype == torch.float32
    assert len(logits.unique()) > 100


# film


def test_film_is_the_formula():
    """I: x' = gamma(c) x + beta(c); a = sigmoid(W2 ReLU(W1 [g'; l'])); v = sum a l' / sum a; MLP of [c; g'; v; s]."""
    findings = FiLM.FINDINGS + 2
    head, x = head_of("film", rand(findings, 6)).double(), rand(2, 16, 12).double()
    logits, maps = head.with_maps(x)
    for b in range(2):
        for c in range(findings):
            text = head.embeddings[c] / head.embeddings[c].norm() * 6**0.5
            gamma, beta = head.gamma(text), head.beta(text)
            whole = gamma * head.to_global(x[b].mean(dim=0)) + beta
            local = [gamma * head.to_local(token) + beta for token in x[b]]
            a = [head.weigh(torch.relu(head.look(torch.cat([whole, one])))).sigmoid() for one in local]
            seen = sum(w * one for w, one in zip(a, local, strict=True)) / sum(a)
            summary = torch.tensor(np.sort(torch.cat(a).detach().numpy()).reshape(FiLM.SUMMARY, -1).mean(axis=1))
            hidden = torch.relu(head.wide(torch.cat([text, whole, seen, summary])))
            expected = head.read(torch.relu(head.narrow(hidden)))[0]
            torch.testing.assert_close(logits[b, c], expected, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(maps[b, c].double(), torch.cat(a), rtol=1e-5, atol=1e-6)


def test_films_summary_is_the_same_at_a_finer_grid():
    head, x = head_of("film", rand(3, 6)), rand(2, 16, 12)
    finer = x.unflatten(1, (4, 4)).repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1, 2)
    torch.testing.assert_close(head(finer), head(x))


def test_attention_maps_lie_as_the_image_does():
    model = model_of("film", rand(4, 6))
    images = torch.zeros(2, 96, 96)
    logits, maps = model.with_maps(images)
    assert maps.shape == (2, 4, 3, 3)
    assert ((maps > 0) & (maps < 1)).all()
    torch.testing.assert_close(logits, model(images))
    images[1, :32, 64:] = 1  # the upper right
    changed = model.with_maps(images)[1]
    far = (changed[1] - changed[0]).abs().mean(dim=0)
    assert far.argmax() == 2  # row 0, column 2
    with pytest.raises(UsageError, match="attention maps are given by head film without a fusion"):
        build(ANY, 3).with_maps(images)


# asked


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_model_answers_for_other_findings_and_stays_as_it_is(kind):
    values, others = rand(4, 6), rand(3, 6)
    model, images = model_of(kind, values), torch.rand(2, 64, 64)
    model.shift.fill_(1.5)
    with torch.inference_mode():
        before = model(images)
        twin = asked(model, others)
        logits = twin(images)
        assert logits.shape == (2, 3)
        assert torch.equal(model(images), before)
        torch.testing.assert_close(Both(model, others)(images), torch.cat([before, logits], dim=1))
        for c in range(3):  # none asked for beside it matters
            torch.testing.assert_close(asked(model, others[[c]])(images)[:, 0], logits[:, c])
        torch.testing.assert_close(asked(twin, others)(images), logits)  # asked again, for the same
    assert twin.backbone is model.backbone
    assert dict(twin.named_parameters()).keys() == dict(model.named_parameters()).keys()
    assert all(a is b for a, b in zip(twin.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("kind", ALONE)
def test_a_finding_trained_on_gets_its_own_logit_by_text_less_its_shift(kind):
    values, images = rand(4, 6), torch.rand(2, 64, 64)
    model = model_of(kind, values)
    model.shift.copy_(torch.arange(4.0))
    with torch.inference_mode():
        expected = model(images)[:, [3, 1]] + torch.tensor([3.0, 1.0])
        torch.testing.assert_close(asked(model, values[[3, 1]])(images), expected)


def test_an_asked_model_is_saved_with_the_company_it_needs(tmp_path: Path):
    model, images = model_of("self-attention", rand(4, 6)), torch.rand(2, 64, 64)
    twin = asked(model, rand(2, 6))
    save(twin, spec_of("self-attention"), ("X", "Y"), tmp_path)
    again, _, findings = load(tmp_path)
    assert findings == ("X", "Y")
    with torch.inference_mode():
        torch.testing.assert_close(again(images), twin(images))


def test_models_that_know_no_text_refuse():
    with pytest.raises(UsageError, match="head 'linear' knows its findings by their place, not by text"):
        asked(build(ANY, 3), rand(2, 6))
    with pytest.raises(UsageError, match="fusion 'attention' has weights of each finding"):
        asked(model_of("pair", rand(3, 6), fusion="attention"), rand(2, 6))
    with pytest.raises(UsageError, match=r"shape \(2, 5\) do not fit this model, whose texts have 6 numbers"):
        asked(model_of("pair", rand(3, 6)), rand(2, 5))


def test_a_study_is_asked_through_the_fusion_transformer():
    values = rand(3, 6)
    model, images = model_of("film", values, fusion="transformer"), torch.rand(3, 64, 64)
    study = torch.tensor([0, 0, 1])
    with torch.inference_mode():
        expected = model(images, study)
        torch.testing.assert_close(asked(model, values)(images, study), expected)
        torch.testing.assert_close(expected[0], expected[1])


def test_a_stage_with_other_texts_takes_them_and_keeps_the_weights():
    """G asks by short questions first, by descriptions then."""
    spec = dataclasses.replace(spec_of("pair"), queries="short.npz")
    model = model_of("pair", rand(3, 6))
    same = carry(model, spec, spec, NAMES[:3])
    assert torch.equal(same.head.embeddings, model.head.embeddings)
    later = dataclasses.replace(spec, queries="long.npz")
    np_file = rand(3, 6).flip(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cxrlt_ray.models.classifier.embeddings_of", lambda *_: np_file)
        new = carry(model, spec, later, NAMES[:3])
    assert torch.equal(new.head.embeddings, np_file)
    assert torch.equal(new.head.join.weight, model.head.join.weight)


def test_classes_are_those_that_are_registered():
    classes = {"bilinear": Bilinear, "film": FiLM, "pair": Pair, "similarity": Similarity}
    assert {name: HEADS[name] for name in classes} == classes
    assert HEADS["query_decoder"] is QueryDecoder
