"""Fusion of a study's views: the papers' formulas, and a study's result is its own whoever shares the batch."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cxrlt_ray.data.manifest import VIEWS
from cxrlt_ray.models import Classifier, ModelSpec, build, filled, load, save, size
from cxrlt_ray.models.attention import EncoderLayer, positions
from cxrlt_ray.models.fusion import FUSIONS, MAX_VIEWS, AttentionFusion, TransformerFusion, by_study, groups
from cxrlt_ray.models.heads import HEADS, Linear

torch.set_num_threads(1)
ANY = ModelSpec("test_vit", 64, pretrained=False)
UNKNOWN = VIEWS.index("UNKNOWN")
every_fusion = pytest.mark.parametrize("fusion", sorted(FUSIONS))


def model_of(fusion: str, findings: int = 3, **change: object) -> nn.Module:
    """A model whose embeddings say something, in evaluation."""
    torch.manual_seed(0)
    model = build(dataclasses.replace(ANY, fusion=fusion, **change), findings)
    for module in model.fusion.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
    return model.eval()


def study_of(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(count, 64, 64, generator=rng), torch.randint(0, len(VIEWS), (count,), generator=rng)


def scored(model: nn.Module, studies: list[tuple[torch.Tensor, torch.Tensor]]) -> list[torch.Tensor]:
    """Each study's logits, scored in one batch."""
    images, views = (torch.cat(each) for each in zip(*studies, strict=True))
    sizes = [len(views_) for _, views_ in studies]
    codes = torch.repeat_interleave(torch.arange(100, 100 + len(studies)), torch.tensor(sizes))
    with torch.inference_mode():
        return list(model(images, codes, views).split(sizes))


@every_fusion
@pytest.mark.parametrize("head", ["linear", "ml_decoder"])
def test_a_studys_result_does_not_depend_on_who_shares_its_batch(fusion, head):
    """The public CheXFusion code pads studies to the batch's largest and lets the padding speak: ours must not."""
    model = model_of(fusion, head=head)
    studies = [study_of(count, seed=count) for count in range(1, 12)]
    alone = [scored(model, [study])[0] for study in studies]
    for company in (studies, studies[::-1], studies[2:7], [studies[10], studies[0]]):
        for study, result in zip(company, scored(model, company), strict=True):
            mine = next(each for each, other in zip(alone, studies, strict=True) if other is study)
            torch.testing.assert_close(result, mine, rtol=1e-4, atol=1e-5)


@every_fusion
def test_every_image_of_a_study_has_its_studys_logits(fusion):
    result = scored(model_of(fusion), [study_of(count, seed) for seed, count in enumerate((3, 1, 3, 2))])
    assert [len(each) for each in result] == [3, 1, 3, 2]
    for each in result:
        assert torch.equal(each, each[:1].expand_as(each))
    assert not torch.allclose(result[0][0], result[2][0])


@every_fusion
def test_other_images_of_the_study_and_their_views_change_the_result(fusion):
    model = model_of(fusion)
    images, views = study_of(3, 1)
    other = images.clone()
    other[2] = study_of(1, 2)[0][0]
    turned = views.clone()
    turned[2] = (turned[2] + 1) % len(VIEWS)
    (first,), (second,), (third,) = (
        scored(model, [each]) for each in ((images, views), (other, views), (images, turned))
    )
    assert not torch.allclose(first, second, atol=1e-6)
    assert not torch.allclose(first, third, atol=1e-6)


@every_fusion
def test_without_codes_each_image_is_a_study_and_each_view_unknown(fusion):
    model = model_of(fusion)
    images, _ = study_of(4, 3)
    with torch.inference_mode():
        result = model(images)
        explicit = model(images, torch.arange(4), torch.full((4,), UNKNOWN))
        fused = model(images, torch.zeros(4, dtype=torch.int64))
    torch.testing.assert_close(result, explicit)
    assert torch.equal(fused, fused[:1].expand_as(fused))


def test_without_fusion_codes_are_ignored():
    model = build(ANY, 3).eval()
    images, views = study_of(3, 4)
    with torch.inference_mode():
        assert torch.equal(model(images), model(images, torch.zeros(3, dtype=torch.int64), views))


@every_fusion
@pytest.mark.parametrize("count", [MAX_VIEWS, 17, 40])
def test_a_study_of_any_size_is_read_in_parts_of_sixteen(fusion, count):
    model = model_of(fusion)
    images, views = study_of(count, 5)
    (result,) = scored(model, [(images, views)])
    assert torch.isfinite(result).all()
    for start in range(0, count, MAX_VIEWS):
        part = slice(start, start + MAX_VIEWS)
        (mine,) = scored(model, [(images[part], views[part])])
        torch.testing.assert_close(result[part], mine, rtol=1e-4, atol=1e-5)


def test_groups_hold_every_row_once_and_studies_whole():
    codes = torch.tensor([7, 7, 2, 9, 9, 1, 4, 4])
    assert groups(codes, 8) == [[[2], [5]], [[0, 1], [3, 4], [6, 7]]]
    assert groups(None, 2) == [[[0], [1]]]
    many = groups(torch.zeros(40, dtype=torch.int64), 40)
    assert [[len(rows) for rows in size] for size in many] == [[8], [16, 16]]
    assert groups(torch.empty(3, dtype=torch.int64, device="meta"), 3) == [[[0, 1, 2]]]


def test_a_study_in_two_places_of_a_batch_is_refused():
    with pytest.raises(ValueError, match="next to each other"):
        groups(torch.tensor([1, 2, 1]), 3)


def test_order_of_images_is_of_no_matter_to_attention():
    model = model_of("attention")
    images, views = study_of(4, 6)
    (expected,) = scored(model, [(images, views)])
    for order in itertools.islice(itertools.permutations(range(4)), 1, 24, 5):
        (result,) = scored(model, [(images[list(order)], views[list(order)])])
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


def test_the_transformer_knows_which_image_of_the_study_it_sees():
    model = model_of("transformer")
    images, views = study_of(2, 7)
    first, second = (scored(model, [(images[at], views[at])])[0] for at in ([0, 1], [1, 0]))
    assert not torch.allclose(first, second, atol=1e-6)


def test_attention_is_the_papers_formula_for_each_finding():
    """Ilse et al. 2018, eq. 9: a_v = softmax_v(w (tanh(V h_v) * sigm(U h_v))); z = sum_v a_v h_v; a linear layer."""
    fusion, head = AttentionFusion(6, 3, ANY).double(), Linear(6, 3, ANY).double().eval()
    nn.init.normal_(fusion.view.weight)
    nn.init.normal_(fusion.weigh.weight)
    h = torch.randn(1, 4, 1, 6).double()
    view = torch.tensor([[0, 1, 2, 4]])
    weight = {name: tensor.detach().numpy() for name, tensor in fusion.state_dict().items()}
    expected = np.zeros(3)
    for c in range(3):
        score = []
        for v in range(4):
            x = h[0, v, 0].numpy()
            look = weight["look.weight"] @ x + weight["look.bias"] + weight["view.weight"][view[0, v]]
            gate = weight["gate.weight"] @ x + weight["gate.bias"]
            score.append(weight["weigh.weight"][c] @ (np.tanh(look) / (1 + np.exp(-gate))))
        share = np.exp(score) / np.exp(score).sum()
        z = sum(a * h[0, v, 0].numpy() for v, a in enumerate(share))
        expected[c] = head.linear.weight.detach().numpy()[c] @ z + head.linear.bias.detach().numpy()[c]
    result = fusion(h, view, head)[0].detach().numpy()
    np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_encoder_is_torchs_with_the_same_weights():
    from test_heads import copy_attention

    theirs = nn.TransformerEncoderLayer(96, 8, dim_feedforward=256, batch_first=True)
    ours = EncoderLayer(96, 0.0).eval()
    copy_attention(ours.attention, theirs.self_attn)
    ours.feed.wide.load_state_dict(theirs.linear1.state_dict())
    ours.feed.narrow.load_state_dict(theirs.linear2.state_dict())
    for norm, other in zip(ours.norms, (theirs.norm1, theirs.norm2), strict=True):
        nn.init.normal_(other.weight)
        norm.load_state_dict(other.state_dict())
    x = torch.randn(2, 7, 96)
    torch.testing.assert_close(ours(x), theirs.eval()(x), rtol=1e-4, atol=1e-5)


def test_positions_are_told_apart_and_mean_the_same_place_on_a_finer_grid():
    coarse, fine = positions(3, 64), positions(9, 64)
    assert coarse.shape == (9, 64)
    assert torch.cdist(fine, fine).fill_diagonal_(1).min() > 0.1
    centre = fine.view(9, 9, 64)[1::3, 1::3].reshape(9, 64)  # a coarse place's centre is its middle fine place's
    torch.testing.assert_close(centre, coarse, rtol=0, atol=1e-4)
    rows = coarse.view(3, 3, 64)
    assert torch.equal(rows[0, 2, :32], rows[0, 0, :32])  # the first half tells the row
    assert torch.equal(rows[2, 0, 32:], rows[0, 0, 32:])  # the second the column


def test_a_view_at_first_says_as_much_as_any_other():
    """Embeddings of views and segments begin at zero: one that training never saw does no harm."""
    fusion = TransformerFusion(32, 3, ANY)
    assert not fusion.view.weight.any()
    assert not fusion.segment.weight.any()


@every_fusion
@pytest.mark.parametrize("head", sorted(set(HEADS) - {"ml_decoder_cls"}))  # which reads one image's class token
def test_every_fusion_takes_every_head_and_trains_all_of_both(fusion, head):
    reads = HEADS[head].needs_embeddings
    spec = dataclasses.replace(ANY, fusion=fusion, head=head, text="minilm" if reads else None)
    model = build(spec, 3, torch.randn(3, 8) if reads else None)
    images, views = study_of(5, 8)
    result = model(images, torch.tensor([0, 0, 0, 1, 1]), views)
    result.square().mean().backward()
    assert result.shape == (5, 3)
    named = [*model.head.named_parameters(), *model.fusion.named_parameters()]
    assert [name for name, p in named if p.grad is None or not p.grad.abs().sum() > 0] == []


@every_fusion
@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext", "swin_tiny_patch4_window7_224"])
def test_every_fusion_reads_every_kind_of_backbone(fusion, backbone):
    model = build(dataclasses.replace(ANY, backbone=backbone, fusion=fusion), 3).eval()
    images, views = study_of(3, 9)
    with torch.inference_mode():
        assert model(images, torch.tensor([0, 0, 1]), views).shape == (3, 3)


@every_fusion
@pytest.mark.parametrize("head", ["linear", "csra_6", "ml_decoder"])
def test_saved_model_is_the_model_loaded(fusion, head, tmp_path: Path):
    model = model_of(fusion, head=head)
    spec = dataclasses.replace(ANY, fusion=fusion, head=head)
    save(model, spec, ("A", "B", "C"), tmp_path)
    again, its, _ = load(tmp_path)
    assert its == spec
    study = study_of(3, 10)
    assert torch.equal(scored(again, [study])[0], scored(model, [study])[0])


@every_fusion
def test_bfloat16_stays_finite_and_near(fusion):
    model = model_of(fusion, head="ml_decoder")
    study = study_of(5, 11)
    with torch.autocast("cpu", torch.bfloat16):
        (result,) = scored(model, [study])
    (expected,) = scored(model, [study])
    assert torch.isfinite(result).all()
    torch.testing.assert_close(result.float(), expected, rtol=0.1, atol=0.1)


@every_fusion
@pytest.mark.parametrize("backbone", ["test_vit", "test_convnext2", "test_efficientnet"])
def test_images_added_for_a_gpus_sake_change_nothing(fusion, backbone, monkeypatch):
    """Logits and gradients are those without them; a backbone whose batch norm learns takes none."""
    model = build(dataclasses.replace(ANY, backbone=backbone, fusion=fusion), 3).double().train()
    if model.has_batch_norm:
        on_gpu = type("Pixels", (), {"is_cuda": True})()
        assert not model._fills_batches(on_gpu)
        model.backbone.eval()
        assert model._fills_batches(on_gpu)
    (images, views), study = study_of(5, 15), torch.tensor([0, 0, 1, 2, 2])
    result, sizes = [], []
    forward = model.backbone.forward_features
    monkeypatch.setattr(model.backbone, "forward_features", lambda x: sizes.append(len(x)) or forward(x))
    for more in (False, True):
        monkeypatch.setattr(Classifier, "_fills_batches", lambda *_, more=more: more)
        model.zero_grad()
        logits = model(images.double(), study, views)
        logits.square().sum().backward()
        result.append([logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert sizes == [5, 8]
    torch.testing.assert_close(result[1], result[0])


@pytest.mark.parametrize(("count", "wanted"), [(1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (16, 16), (17, 32), (33, 48)])
def test_filled_repeats_the_last_image(count, wanted):
    images = torch.rand(count, 1, 4, 4)
    more = filled(images)
    assert more.shape == (wanted, 1, 4, 4)
    assert torch.equal(more[:count], images)
    assert all(torch.equal(each, images[-1]) for each in more[count:])


@every_fusion
def test_a_frozen_backbone_takes_no_gradient(fusion):
    model = build(dataclasses.replace(ANY, fusion=fusion), 3)
    model.backbone.requires_grad_(False)
    images, views = study_of(2, 12)
    model(images, torch.tensor([0, 0]), views).sum().backward()
    assert all(p.grad is None for p in model.backbone.parameters())
    assert all(p.grad is not None for p in model.fusion.parameters())


@pytest.mark.parametrize(("fusion", "numbers"), [("transformer", 11.6e6), ("attention", 0.2e6)])
def test_fusion_costs_what_its_docstring_says(fusion, numbers):
    spec = ModelSpec("convnext_small", 384, pretrained=False)
    flops, alone = size(spec, 40)
    with_flops, together = size(dataclasses.replace(spec, fusion=fusion), 40)
    assert together - alone == pytest.approx(numbers, rel=0.02)
    assert 0 < (with_flops - flops) / flops < 0.02


def test_cost_on_meta_of_a_study_is_counted_whole():
    with torch.device("meta"):
        model = build(dataclasses.replace(ANY, fusion="transformer"), 3)
        result = model(torch.empty(4, 64, 64), torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64))
    assert result.shape == (4, 3)


@pytest.mark.parametrize(("fusion", "lr", "steps"), [("transformer", 3e-3, 60), ("attention", 1e-2, 200)])
def test_a_sign_in_any_one_view_is_learned(fusion, lr, steps):
    """Positive where any view shows it: what no mean over views' features with one threshold tells as well."""
    torch.manual_seed(0)
    spec = dataclasses.replace(ANY, head="linear")
    kind = FUSIONS[fusion](32, 1, spec)
    head = Linear(kind.width, 1, spec)
    optimizer = torch.optim.AdamW([*kind.parameters(), *head.parameters()], lr=lr)
    sizes = torch.tensor([1, 2, 3, 4] * 8)
    study = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    for _ in range(steps):
        places = torch.randn(len(study), 4, 32) * 0.3
        signs = torch.rand(len(study)) < 0.25
        places[signs, :, 0] += 2
        expected = torch.zeros(len(sizes)).scatter_reduce_(0, study, signs.float(), "amax")[study]
        loss = nn.functional.binary_cross_entropy_with_logits(by_study(kind, head, places, study, None)[:, 0], expected)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.35
