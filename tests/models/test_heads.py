"""Heads and pools: the papers' formulas written out, whatever form a backbone's features have, at the stated cost."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from torch import nn

from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.models import ModelSpec, build, check_weights, label_embeddings, load, save, size
from cxrlt_ray.models.attention import ATTENTION_HEADS, MultiHeadAttention
from cxrlt_ray.models.features import POOLS, GeM, to_tokens, unpool
from cxrlt_ray.models.heads import CSRA, CSRA6, HEADS, MLDecoder, QueryText

torch.set_num_threads(1)
ANY = ModelSpec("test_resnet", 64, pretrained=False)
NAMES = ("A", "B", "C")


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def embeddings(tmp_path: Path, names: tuple[str, ...] = NAMES, width: int = 6) -> Path:
    path = tmp_path / "labels.npz"
    np.savez(path, names=np.array(names), embeddings=rand(len(names), width).numpy())
    return path


@pytest.mark.parametrize("kind", [CSRA, CSRA6])
def test_csra_is_the_papers_formula(kind):
    """Zhu & Wu 2021: s_j = softmax_j(T x_j m), a = sum_j s_j x_j, g = mean_j x_j, y = (g + lam a) m, heads summed."""
    head = kind(8, 3, ANY).double().eval()
    x = rand(2, 5, 8).double()
    weights = head.linear.weight.detach().numpy().reshape(len(kind.TEMPERATURES), 3, 8)
    bias = head.linear.bias.detach().numpy().reshape(len(kind.TEMPERATURES), 3)
    expected = np.zeros((2, 3))
    for t, temperature in enumerate(kind.TEMPERATURES):
        for b in range(2):
            for c in range(3):
                scores = x[b].numpy() @ weights[t, c]
                share = np.eye(5)[scores.argmax()] if np.isinf(temperature) else softmax(temperature * scores, 0)
                feature = x[b].numpy().mean(0) + kind.LAM * (share @ x[b].numpy())
                expected[b, c] += feature @ weights[t, c] + (1 + kind.LAM) * bias[t, c]
    np.testing.assert_allclose(head(x.float().double()).detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_csras_heads_and_temperatures_are_the_papers():
    assert (CSRA.TEMPERATURES, CSRA.LAM) == ((1,), 0.1)
    assert (CSRA6.TEMPERATURES[-2:], len(CSRA6.TEMPERATURES), CSRA6.LAM) == ((5, np.inf), 6, 0.5)


@pytest.mark.parametrize("p", [1.0, 2.5, 7.0])
def test_gem_is_the_papers_formula(p):
    """Radenovic et al. 2018: the p-th root of the mean of x^p."""
    pool = GeM()
    nn.init.constant_(pool.p, p)
    x = rand(2, 9, 4).abs() + 0.1
    expected = (x.numpy().astype(np.float64) ** p).mean(axis=1) ** (1 / p)
    np.testing.assert_allclose(pool(x).detach().numpy(), expected, rtol=1e-5)


def test_gem_lies_between_mean_and_largest_and_stays_finite_where_powers_underflow():
    pool, x = GeM(), rand(2, 9, 4).abs()
    assert (pool(x) >= x.mean(1) - 1e-5).all()
    assert (pool(x) <= x.amax(1) + 1e-5).all()
    nn.init.constant_(pool.p, 30.0)
    nothing = torch.zeros(1, 9, 4, requires_grad=True)
    result = pool(nothing)
    result.sum().backward()
    assert torch.isfinite(result).all()
    assert torch.isfinite(pool.p.grad).all()
    torch.testing.assert_close(pool(x), x.amax(1), rtol=0.1, atol=0)


@pytest.mark.parametrize("pool", sorted(POOLS))
def test_every_pool_serves_the_linear_head(pool):
    model = build(dataclasses.replace(ANY, pool=pool), 3)
    result = model(torch.rand(2, 64, 64))
    result.square().sum().backward()
    assert result.shape == (2, 3)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.head.parameters())


def test_own_pooling_is_the_backbones_and_average_of_a_plain_map_the_same():
    model, x = build(ANY, 3).eval(), torch.rand(2, 64, 64)
    average = build(dataclasses.replace(ANY, pool="avg"), 3).eval()
    average.load_state_dict(model.state_dict())
    with torch.inference_mode():
        pixels = (x.unsqueeze(1) - model.mean) / model.std
        own = model.backbone.forward_head(model.backbone.forward_features(pixels), pre_logits=True)
        torch.testing.assert_close(model(x), model.head.linear(own))
        torch.testing.assert_close(average(x), model(x))


@pytest.mark.parametrize("findings", [40, 130])
def test_ml_decoder_is_timms_copy_of_the_authors_with_the_same_weights(findings):
    from timm.layers.ml_decoder import MLDecoder as Theirs

    theirs, ours = Theirs(findings, initial_num_features=768).eval(), MLDecoder(768, findings, ANY).eval()
    layer = theirs.decoder.layers[0]
    theirs.decoder.forward = layer.forward  # torch's loop over layers hands theirs arguments that it does not know
    nn.init.normal_(theirs.duplicate_pooling_bias)
    with torch.no_grad():
        ours.queries.copy_(theirs.query_embed.weight)
        ours.read.copy_(theirs.duplicate_pooling)
        ours.bias.copy_(theirs.duplicate_pooling_bias)
    ours.embed.load_state_dict(theirs.embed_standart.state_dict())
    copy_attention(ours.decoder.attention, layer.multihead_attn)
    ours.decoder.feed.wide.load_state_dict(layer.linear1.state_dict())
    ours.decoder.feed.narrow.load_state_dict(layer.linear2.state_dict())
    for norm, other in zip(ours.decoder.norms, (layer.norm1, layer.norm2, layer.norm3), strict=True):
        nn.init.normal_(other.weight)
        norm.load_state_dict(other.state_dict())
    x = rand(2, 12, 768)
    assert ours.read.shape == ((40, 768, 1) if findings == 40 else (100, 768, 2))
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


def copy_attention(ours: MultiHeadAttention, theirs: nn.MultiheadAttention) -> None:
    """Torch keeps the three projections in one."""
    with torch.no_grad():
        for number, linear in enumerate((ours.query, ours.key, ours.value)):
            linear.weight.copy_(theirs.in_proj_weight.chunk(3)[number])
            linear.bias.copy_(theirs.in_proj_bias.chunk(3)[number])
    ours.out.load_state_dict(theirs.out_proj.state_dict())


def test_attention_is_the_papers_formula():
    """Vaswani et al. 2017: softmax(q k' / sqrt(d)) v, head by head."""
    ours = MultiHeadAttention(32).double()
    queries_, x = rand(1, 3, 32).double(), rand(2, 5, 32).double()
    q, k, v = (
        layer(each).detach().numpy()
        for layer, each in zip((ours.query, ours.key, ours.value), (queries_, x, x), strict=True)
    )
    d = 32 // ATTENTION_HEADS
    mixed = np.zeros((2, 3, 32))
    for b in range(2):
        for h in range(ATTENTION_HEADS):
            part = slice(h * d, (h + 1) * d)
            mixed[b, :, part] = softmax(q[0, :, part] @ k[b, :, part].T / np.sqrt(d), 1) @ v[b, :, part]
    expected = ours.out(torch.from_numpy(mixed))
    torch.testing.assert_close(ours(queries_, x), expected)


def test_ml_decoder_is_cheap_as_its_docstring_says():
    spec = ModelSpec("convnext_small", 384, pretrained=False)
    flops, numbers = size(spec, 40)
    with_flops, with_numbers = size(dataclasses.replace(spec, head="ml_decoder"), 40)
    assert 6.0e6 < with_numbers - numbers < 6.3e6
    assert 0.8e9 < with_flops - flops < 0.95e9
    assert (with_flops - flops) / flops < 0.018
    assert (with_numbers - numbers) / numbers < 0.13


def test_cost_of_ml_decoder_is_counted_as_worked_out_by_hand():
    one = size(dataclasses.replace(ANY, head="ml_decoder"), 40)[0]
    linear = size(ANY, 40)[0]
    d, n, q, inner = 96, 4, 40, 256  # test_resnet: 96 features on 2 x 2 places
    expected = 2 * (n * d * d + q * d * d + 2 * n * d * d + 2 * q * n * d + q * d * d + 2 * q * d * inner + q * d)
    assert one - linear + 2 * d * 40 == expected


@pytest.mark.parametrize("form", ["map", "channels last", "tokens", "tokens and prefix"])
def test_places_are_the_same_whatever_form_a_backbone_gives(form):
    grid = rand(2, 7, 3, 3)  # B, D, H, W
    tokens = torch.stack([grid[:, :, row, column] for row in range(3) for column in range(3)], dim=1)
    values = {
        "map": grid,
        "channels last": grid.permute(0, 2, 3, 1),
        "tokens": tokens,
        "tokens and prefix": torch.cat([rand(2, 2, 7), tokens], dim=1),
    }[form]
    config = {"channels last": {"output_fmt": "NHWC"}, "tokens and prefix": {"num_prefix_tokens": 2}}.get(form, {})
    backbone = SimpleNamespace(forward_head=lambda x, pre_logits: x, **config)
    assert torch.equal(to_tokens(backbone, values, "any"), tokens)


@pytest.mark.parametrize(
    "name", ["test_convnext", "mobilenetv3_small_050", "swin_tiny_patch4_window7_224", "test_vit2"]
)
def test_pooling_the_places_of_a_real_backbone_keeps_its_last_layers(name):
    """Every tensor of the backbone is trained through a head that reads places: distributed training needs that."""
    model = build(ModelSpec(name, 64, pretrained=False, head="csra"), 2)
    model(torch.rand(2, 64, 64)).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_backbone_without_a_map_is_told():
    with pytest.raises(UsageError, match="'inception_next_atto' gives no feature map: take `head: linear`"):
        build(ModelSpec("inception_next_atto", 64, pretrained=False, head="csra"), 2)
    with pytest.raises(UsageError, match="gives no feature map"):
        to_tokens(SimpleNamespace(forward_head=lambda x, pre_logits: x), torch.zeros(2, 7), "any")
    with pytest.raises(UsageError, match="gives no feature map"):
        unpool(object(), "any")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"head": "csra", "pool": "gem"}, "'csra' does its own pooling: leave `pool` at own"),
        (
            {"head": "query_text"},
            "needs label embeddings of a text encoder, `text: NAME`, or of a file, `queries: PATH`",
        ),
        ({"head": "pair", "text": "minilm", "queries": "labels.npz"}, "`queries: PATH`: not both"),
        ({"text": "minilm"}, "'linear' reads no label embeddings: leave out `text`, or take query_text, query_decoder"),
        ({"query_layers": 2}, "`query_layers: 2` means nothing to this model"),
        ({"head": "pair", "queries": "labels.npz", "prompts": "names"}, "`prompts: names` means nothing"),
        ({"queries": "labels.npz"}, "'linear' reads no label embeddings"),
        ({"head": "linearr"}, "no head 'linearr'; there are linear, "),
        ({"pool": "mean"}, "no pool 'mean'; there are own, avg"),
        ({"fusion": "late"}, "no fusion 'late'; there are none, "),
    ],
)
def test_parts_that_do_not_fit_together_are_told(change, told):
    with pytest.raises(UsageError, match=told):
        build(dataclasses.replace(ANY, **change), 3)


@pytest.mark.parametrize("head", sorted(HEADS))
def test_drop_rate_acts_in_training_only(head, tmp_path: Path):
    queries = str(embeddings(tmp_path)) if HEADS[head].needs_embeddings else None
    model = build(dataclasses.replace(ANY, head=head, drop_rate=0.5, queries=queries), NAMES)
    x = rand(2, 4, 96)
    assert not torch.equal(model.head(x), model.head(x))
    model.eval()
    assert torch.equal(model.head(x), model.head(x))


def test_query_text_is_a_decoder_asked_with_the_embeddings():
    values = rand(3, 6)
    head, x = QueryText(8, 3, ANY, values).eval(), rand(2, 5, 8)
    asked = torch.relu(head.ask(values)).expand(2, -1, -1)
    expected = head.decoder(asked, torch.relu(head.embed(x))) @ head.read.weight[0] + head.read.bias
    torch.testing.assert_close(head(x), expected)
    assert "embeddings" not in dict(head.named_parameters())


def test_query_text_scores_findings_by_their_embeddings_alone():
    """Other findings, in another order: what was learned goes with the embedding."""
    values, x = rand(4, 6), rand(2, 5, 8)
    head = QueryText(8, 4, ANY, values).eval()
    other = QueryText(8, 2, ANY, values[[3, 1]]).eval()
    other.load_state_dict({**head.state_dict(), "embeddings": values[[3, 1]]})
    torch.testing.assert_close(other(x), head(x)[:, [3, 1]])


def test_label_embeddings_stand_in_the_checkpoint(tmp_path: Path):
    path = embeddings(tmp_path, ("C", "A", "unused", "B"))
    spec = dataclasses.replace(ANY, head="query_text", queries=str(path))
    model = build(spec, NAMES).eval()
    assert torch.equal(model.head.embeddings, torch.from_numpy(np.load(path)["embeddings"][[1, 3, 0]]))
    save(model, spec, NAMES, tmp_path)
    path.unlink()
    label_embeddings._table.cache_clear()
    x = torch.rand(2, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(load(tmp_path)[0](x), model(x), rtol=1e-5, atol=1e-6)


def test_cost_of_query_text_is_known_by_the_number_of_findings(tmp_path: Path):
    spec = dataclasses.replace(ANY, head="query_text", queries=str(embeddings(tmp_path, width=6)))
    assert size(spec, 40)[1] - size(spec, 30)[1] == 10 * (6 + 1)  # an embedding and a shift each
    with pytest.raises(UsageError, match="by name: give the names"):
        build(spec, 3)


def test_every_format_of_label_embeddings_is_read(tmp_path: Path):
    from safetensors.numpy import save_file

    rows, names = rand(3, 4).numpy(), list(NAMES)
    table = pd.DataFrame(rows, columns=[f"e{k}" for k in range(4)])
    table.insert(0, "finding", names)
    table.to_parquet(tmp_path / "a.parquet")
    table.to_csv(tmp_path / "a.csv", index=False)
    np.savez(tmp_path / "a.npz", names=np.array(names), embeddings=rows)
    save_file(dict(zip(names, rows, strict=True)), tmp_path / "a.safetensors")
    for path in tmp_path.iterdir():
        result = label_embeddings.read(str(path), ("C", "A"))
        np.testing.assert_allclose(result, rows[[2, 0]], rtol=1e-6, err_msg=path.suffix)
        assert result.dtype == np.float32
    np.savez(tmp_path / "unnamed.npz", embeddings=rows)
    save_file({"embeddings": rows}, tmp_path / "unnamed.safetensors")
    table.drop(columns="finding").to_csv(tmp_path / "unnamed.csv", index=False)
    for path in tmp_path.glob("unnamed.*"):
        np.testing.assert_allclose(label_embeddings.read(str(path), NAMES), rows, rtol=1e-6, err_msg=path.suffix)
        assert label_embeddings.width(str(path)) == 4


def test_label_embeddings_that_do_not_fit_are_told(tmp_path: Path):
    named, unnamed = str(embeddings(tmp_path)), str(tmp_path / "unnamed.npz")
    np.savez(unnamed, embeddings=rand(3, 6).numpy())
    with pytest.raises(UsageError, match="has no label embedding for Edema, Mass"):
        label_embeddings.read(named, ("A", "Edema", "Mass"))
    with pytest.raises(UsageError, match="has 3 label embeddings without names, the task has 2 findings"):
        label_embeddings.read(unnamed, ("A", "B"))
    for name, arrays, message in (
        ("flat", {"embeddings": rand(3).numpy()}, "not of shape"),
        ("nan", {"embeddings": np.full((3, 2), np.nan)}, "not finite"),
        ("twice", {"embeddings": rand(2, 3).numpy(), "names": np.array(["A", "A"])}, "two label embeddings for A"),
        ("short", {"embeddings": rand(2, 3).numpy(), "names": np.array(["A"])}, "one row a finding"),
        ("other", {"rows": rand(2, 3).numpy()}, "cannot be read as label embeddings"),
    ):
        np.savez(tmp_path / f"{name}.npz", **arrays)
        with pytest.raises(UsageError, match=message):
            label_embeddings.read(str(tmp_path / f"{name}.npz"), ("A",))
    with pytest.raises(UsageError, match=r"read from \.parquet, \.csv, \.npz, \.safetensors only"):
        label_embeddings.read("labels.txt", ("A",))
    with pytest.raises(CxrltError, match=r"gone\.npz cannot be read"):
        label_embeddings.read(str(tmp_path / "gone.npz"), ("A",))


def test_label_embeddings_are_looked_for_before_a_sweep_starts(tmp_path: Path):
    spec = dataclasses.replace(ANY, head="query_text", queries=str(embeddings(tmp_path)))
    check_weights([spec], NAMES)
    with pytest.raises(UsageError, match="no label embedding for Edema"):
        check_weights([spec], ("A", "Edema"))


def test_widths_of_attention_follow_small_backbones():
    assert timm.create_model("test_vit", num_classes=0).num_features == 64
    assert MLDecoder(64, 3, ANY).queries.shape == (3, 64)
    assert MLDecoder(100, 3, ANY).queries.shape == (3, 128)
    assert MLDecoder(2048, 3, ANY).queries.shape == (3, 768)
