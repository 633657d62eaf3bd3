"""LoRA: what trains, what changes, and that adapters merge into the weights."""

from __future__ import annotations

import copy

import pytest
import torch
from text_models import bert_folder, gpt2_folder

from cxrlt_ray.errors import UsageError
from cxrlt_ray.text.encoder_spec import TextSpec
from cxrlt_ray.text.encoders import build_text_encoder
from cxrlt_ray.text.lora import lora_state, merge_lora, with_lora

pytest.importorskip("peft")
torch.set_num_threads(1)
TEXTS = ["the heart is enlarged .", "no effusion"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    return {"bert": str(bert_folder(folder / "bert")), "gpt2": str(gpt2_folder(folder / "gpt2"))}


def adapted(folder: str, **options):
    return build_text_encoder(TextSpec(folder, tuning="lora", max_tokens=32, lora_rank=2, **options))


def moved(module: torch.nn.Module) -> torch.nn.Module:
    """The module with adapters as if they had been trained."""
    torch.manual_seed(1)
    with torch.no_grad():
        for tensor in lora_state(module).values():
            tensor += 0.3 * torch.randn_like(tensor)
    return module


def vectors(encoder) -> torch.Tensor:
    with torch.no_grad():
        return encoder(encoder.tokenize(TEXTS))


@pytest.mark.parametrize(("kind", "layers"), [("bert", {"query", "key", "value"}), ("gpt2", {"c_attn"})])
def test_only_adapters_of_the_attention_train_and_at_first_they_change_nothing(folders, kind, layers):
    frozen, encoder = build_text_encoder(TextSpec(folders[kind], max_tokens=32)), adapted(folders[kind])
    torch.testing.assert_close(vectors(encoder), vectors(frozen))
    before = copy.deepcopy(encoder.state_dict())
    encoder.train()
    optimizer = torch.optim.Adam([p for p in encoder.parameters() if p.requires_grad], lr=0.01)
    weight = torch.randn(encoder.width)
    for _ in range(2):  # A has a gradient once B is not 0
        (encoder(encoder.tokenize(TEXTS)) @ weight).sum().backward()
        optimizer.step()
    changed = {name for name, tensor in encoder.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == set(lora_state(encoder))
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in changed} == layers
    assert not torch.equal(vectors(encoder.eval()), vectors(frozen))


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_merged_adapters_give_the_same_vectors_under_the_names_from_before(folders, kind):
    frozen, encoder = build_text_encoder(TextSpec(folders[kind], max_tokens=32)), moved(adapted(folders[kind]))
    expected = vectors(encoder)
    merge_lora(encoder)
    torch.testing.assert_close(vectors(encoder), expected, rtol=1e-4, atol=1e-5)
    assert {k: v.shape for k, v in encoder.state_dict().items()} == {k: v.shape for k, v in frozen.state_dict().items()}
    frozen.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(vectors(frozen), expected, rtol=1e-4, atol=1e-5)


def test_the_adapters_alone_are_small_and_bring_back_what_was_trained(folders):
    encoder = moved(adapted(folders["bert"]))
    state = lora_state(encoder)
    # two layers, three targets, A and B of rank 2 and width 16
    assert sum(tensor.numel() for tensor in state.values()) == 2 * 3 * 2 * 2 * 16
    again = adapted(folders["bert"])
    _, unexpected = again.load_state_dict(state, strict=False)
    assert not unexpected
    torch.testing.assert_close(vectors(again), vectors(encoder), rtol=0, atol=0)


def test_an_adapted_layer_adds_alpha_over_rank_times_b_a_x():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    original, x = copy.deepcopy(module), torch.randn(7, 5)
    moved(with_lora(module, ("0",), rank=2, alpha=8, dropout=0.0))
    state = lora_state(module)
    a, b = (next(tensor for name, tensor in state.items() if f"lora_{k}" in name) for k in "AB")
    assert a.shape == (2, 5)
    assert b.shape == (3, 2)
    torch.testing.assert_close(module[0](x), original[0](x) + 8 / 2 * x @ a.T @ b.T)
    assert len(state) == 2


def test_a_vision_transformers_attention_takes_adapters():
    import timm

    torch.manual_seed(0)
    backbone = timm.create_model("test_vit", img_size=32, num_classes=0).eval()
    x = torch.randn(2, 3, 32, 32)
    before = backbone(x)
    assert with_lora(backbone, ("qkv",), rank=4, alpha=32) is backbone
    torch.testing.assert_close(backbone(x), before)
    assert {n.split(".lora_")[0].rpartition(".")[2] for n, p in backbone.named_parameters() if p.requires_grad} == {
        "qkv"
    }
    expected = moved(backbone)(x)  # in eval mode, as it was: without dropout
    torch.testing.assert_close(merge_lora(backbone)(x), expected, rtol=1e-4, atol=1e-4)


def test_targets_that_match_nothing_are_refused_with_the_names_there_are(folders):
    with pytest.raises(UsageError, match=r"'q_proj'.*dense, key, query, value"):
        adapted(folders["bert"], lora_targets=("query", "q_proj"))
    with pytest.raises(UsageError, match=r"'query'.*c_attn"):
        adapted(folders["gpt2"], lora_targets=("query",))


def test_an_architecture_without_known_targets_asks_for_them(tmp_path):
    from transformers import DistilBertConfig, DistilBertModel

    folder = bert_folder(tmp_path / "distil")
    config = DistilBertConfig(vocab_size=40, dim=16, n_layers=1, n_heads=2, hidden_dim=16, max_position_embeddings=64)
    DistilBertModel(config).save_pretrained(folder)
    with pytest.raises(UsageError, match="'distilbert'"):
        adapted(str(folder))
    encoder = adapted(str(folder), lora_targets=("q_lin", "v_lin"))
    assert len(lora_state(encoder)) == 4
