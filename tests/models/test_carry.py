"""A stage's model carried to the next: another resolution, head, pool, fusion; what fits is kept, whole or told."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import timm
import torch
from torch import nn

from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.models import Classifier, ModelSpec, build, carry

torch.set_num_threads(1)
CNN = ModelSpec("test_resnet", 64, pretrained=False)
VIT = ModelSpec("test_vit", 64, pretrained=False)
NAMES = ("A", "B", "C")


def scores(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(x)


def same(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("spec", [CNN, VIT, dataclasses.replace(VIT, head="ml_decoder", in_chans=1)])
def test_the_same_stage_again_is_the_same_model(spec):
    model, x = build(spec, 3), torch.rand(2, 64, 64)
    again = carry(model, spec, dataclasses.replace(spec, drop_rate=0.3), 3)
    assert again is not model
    torch.testing.assert_close(scores(again, x), scores(model, x))


@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_convolutions_are_carried_to_another_resolution_as_they_are(backbone):
    spec = dataclasses.replace(CNN, backbone=backbone)
    model = build(spec, 3)
    larger = carry(model, spec, dataclasses.replace(spec, resolution=96), 3)
    assert same(larger, model)


def test_position_embeddings_are_resampled_as_timm_does_it():
    model = build(VIT, 3)
    larger = carry(model, VIT, dataclasses.replace(VIT, resolution=96), 3)
    expected = timm.layers.resample_abs_pos_embed(model.backbone.pos_embed, (6, 6), num_prefix_tokens=1)
    torch.testing.assert_close(larger.backbone.pos_embed, expected)
    assert same(larger.backbone.blocks, model.backbone.blocks)
    assert same(larger.head, model.head)
    assert scores(larger, torch.rand(1, 96, 96)).shape == (1, 3)


@pytest.mark.parametrize(
    ("backbone", "small", "large"),
    [
        ("swin_tiny_patch4_window7_224", 64, 224),
        ("maxvit_rmlp_pico_rw_256", 64, 96),
        ("maxvit_tiny_tf_384", 64, 96),
        ("eva02_tiny_patch14_224", 56, 84),
        ("test_vit3", 64, 96),
    ],
)
def test_windows_and_bias_tables_follow_the_resolution(backbone, small, large):
    """There and back a model says much the same: what has no place on the other grid is what interpolation loses."""
    small_spec, large_spec = (ModelSpec(backbone, size, pretrained=False) for size in (small, large))
    model, x = build(small_spec, 3), torch.rand(2, small, small)
    larger = carry(model, small_spec, large_spec, 3)
    assert torch.isfinite(scores(larger, torch.rand(1, large, large))).all()
    torch.testing.assert_close(
        scores(carry(larger, large_spec, small_spec, 3), x), scores(model, x), rtol=0.05, atol=0.01
    )


def test_what_timm_cannot_resample_is_named():
    spec = ModelSpec("cait_xxs24_224", 64, pretrained=False)
    with pytest.raises(
        CxrltError, match=r"cait_xxs24_224' cannot be carried to 96 px .*: pos_embed is \(1, 16, 192\), not"
    ):
        carry(build(spec, 2), spec, dataclasses.replace(spec, resolution=96), 2)


def test_a_resolution_that_the_backbone_refuses_is_told():
    with pytest.raises(UsageError, match=r"has patches of 16 px, which do not fill 100 px: .* 96 and 112"):
        carry(build(VIT, 2), VIT, dataclasses.replace(VIT, resolution=100), 2)


def test_another_backbone_or_other_channels_are_refused():
    model = build(CNN, 2)
    with pytest.raises(CxrltError, match="'test_resnet' of the stage before is not 'test_vit'"):
        carry(model, CNN, VIT, 2)
    with pytest.raises(CxrltError, match=r"cannot be carried to 64 px and 1 channels: conv1\.0\.weight is"):
        carry(model, CNN, dataclasses.replace(CNN, in_chans=1), 2)


def test_a_head_is_carried_where_it_is_the_same_and_new_where_not():
    model = build(CNN, 3)
    assert same(carry(model, CNN, CNN, 3).head, model.head)
    assert not same(carry(model, CNN, CNN, 3, fresh_head=True).head, model.head)
    assert carry(model, CNN, CNN, 5).head.linear.weight.shape == (5, 96)
    decoder = carry(model, CNN, dataclasses.replace(CNN, head="ml_decoder"), 3)
    assert same(decoder.backbone, model.backbone)
    assert decoder(torch.rand(2, 64, 64)).shape == (2, 3)


def test_a_pool_of_its_own_parameter_joins_the_carried_head():
    model = build(CNN, 3)
    pooled = carry(model, CNN, dataclasses.replace(CNN, pool="gem"), 3)
    assert torch.equal(pooled.head.linear.weight, model.head.linear.weight)
    assert float(pooled.head.pool.p.detach()) == 3


def test_a_fusion_stage_takes_backbone_and_head_of_stage_one():
    """Attention over views begins near the mean of the head's logits on each view."""
    spec = dataclasses.replace(VIT, head="ml_decoder")
    model, x = build(spec, 3), torch.rand(2, 64, 64)
    fused = carry(model, spec, dataclasses.replace(spec, fusion="attention"), 3)
    assert same(fused.backbone, model.backbone)
    assert same(fused.head, model.head)
    with torch.inference_mode():
        both = fused.eval()(x, torch.zeros(2, dtype=torch.int64))
    torch.testing.assert_close(both[0], scores(model, x).mean(0), rtol=0, atol=0.05)


def test_a_fusion_is_carried_to_a_larger_stage_of_it():
    spec = dataclasses.replace(VIT, head="ml_decoder", fusion="transformer")
    model = build(spec, 3)
    nn.init.normal_(model.fusion.segment.weight)
    larger = carry(model, spec, dataclasses.replace(spec, resolution=96), 3)
    assert same(larger.fusion, model.fusion)
    other = carry(model, spec, dataclasses.replace(spec, fusion="attention"), 3)
    assert not same(other.fusion, model.fusion)
    assert carry(model, spec, dataclasses.replace(spec, fusion="none"), 3).fusion is None


def test_drop_rates_are_the_new_stages():
    model = build(CNN, 3)
    new = carry(model, CNN, dataclasses.replace(CNN, drop_rate=0.4, drop_path=0.2), 3)
    assert new.head.drop.p == 0.4
    x = torch.rand(2, 64, 64)
    torch.testing.assert_close(scores(new, x), scores(model, x))
    assert not torch.allclose(new.train()(x), new(x))


def test_label_embeddings_are_carried_without_their_file(tmp_path):
    path = tmp_path / "labels.npz"
    np.savez(path, names=np.array(NAMES), embeddings=np.eye(3, dtype=np.float32))
    spec = dataclasses.replace(CNN, head="query_text", queries=str(path))
    model = build(spec, NAMES)
    path.unlink()
    again = carry(model, spec, spec, NAMES)
    assert same(again, model)


def test_label_embeddings_are_read_where_the_stage_before_had_none(tmp_path):
    path = tmp_path / "labels.npz"
    np.savez(path, names=np.array(NAMES), embeddings=np.eye(3, dtype=np.float32))
    spec = dataclasses.replace(CNN, head="query_text", queries=str(path))
    new = carry(build(CNN, NAMES), CNN, spec, NAMES)
    assert torch.equal(new.head.embeddings, torch.eye(3))


def test_the_model_before_is_left_alone():
    model = build(VIT, 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    new = carry(model, VIT, dataclasses.replace(VIT, resolution=96, head="csra"), 3)
    with torch.no_grad():
        for p in new.parameters():
            p.add_(1)
    assert isinstance(model, Classifier)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
