"""Embeddings of texts: each distinct text once, kept, mended, and the same by Ray Data as in one process."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from text_models import WIDTH, WORDS, bert_folder

from cxrlt_ray.data.features import FeatureStorage, features_folder
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.storage import Store
from cxrlt_ray.storage.claim import claim
from cxrlt_ray.text import embedding_store, embeddings
from cxrlt_ray.text.embedding_store import Part, TextEmbeddings, as_part, text_keys
from cxrlt_ray.text.embeddings import embedded, open_embeddings
from cxrlt_ray.text.encoder_spec import TextSpec
from cxrlt_ray.text.encoders import TextEncoder, build_text_encoder

torch.set_num_threads(1)
WITHIN_HALF = {"rtol": 1e-3, "atol": 1e-3}


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    return TextSpec(str(bert_folder(tmp_path_factory.mktemp("bert"))), pooling="mean", max_tokens=32)


@pytest.fixture
def tokenized(monkeypatch) -> list[str]:
    """The texts that encoders are given, in their order."""
    given: list[str] = []
    tokenize = TextEncoder.tokenize

    def counting(self, texts):
        given.extend(texts)
        return tokenize(self, texts)

    monkeypatch.setattr(TextEncoder, "tokenize", counting)
    return given


def sentences(count: int, seed: int = 0) -> list[str]:
    """Distinct texts of one to 20 words."""
    rng = np.random.default_rng(seed)
    return [f"{' '.join(rng.choice(WORDS, rng.integers(1, 20)))} {'s' * k}" for k in range(count)]


def direct(texts: list[str], spec: TextSpec) -> np.ndarray:
    encoder = build_text_encoder(spec)
    with torch.no_grad():
        return np.concatenate([encoder(encoder.tokenize([text])).numpy() for text in texts])


def files(storage: Store) -> list:
    return sorted(features_folder(storage).rglob(f"{embedding_store.PREFIX}*"))


def test_rows_come_in_the_texts_order_and_are_the_encoders(spec, tokenized):
    texts = sentences(90)
    twice = [*texts, *reversed(texts)]
    result = embedded(twice, spec, None)
    assert result.dtype == np.float32
    assert sorted(tokenized) == sorted(texts)  # distinct texts only
    np.testing.assert_allclose(result, direct(twice, spec), **WITHIN_HALF)


def test_stored_embeddings_are_not_computed_again_and_are_bit_for_bit_the_same(spec, tmp_path, tokenized):
    texts, storage = sentences(50), Store(str(tmp_path))
    first = embedded(texts, spec, storage)
    tokenized.clear()
    np.testing.assert_array_equal(embedded(texts[::-1], spec, storage), first[::-1])
    assert tokenized == []
    np.testing.assert_array_equal(embedded(texts, spec, None), first)


def test_of_texts_of_which_some_are_stored_the_others_are_computed_and_added(spec, tmp_path, tokenized):
    texts, storage = sentences(60), Store(str(tmp_path))
    embedded(texts[:40], spec, storage)
    before = {path: path.read_bytes() for path in files(storage)}
    tokenized.clear()
    result = embedded(texts, spec, storage)
    assert sorted(tokenized) == sorted(texts[40:])
    np.testing.assert_allclose(result, direct(texts, spec), **WITHIN_HALF)
    assert {path: path.read_bytes() for path in before} == before
    assert len(files(storage)) == 2


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-9] + b"x" + b[-8:], lambda b: b[:100], lambda b: b"", lambda b: b * 2]
)
def test_a_damaged_file_is_computed_again_with_a_line_that_says_so(spec, tmp_path, tokenized, damage, capsys):
    texts, storage = sentences(20), Store(str(tmp_path))
    first = embedded(texts, spec, storage)
    (path,) = files(storage)
    path.write_bytes(damage(path.read_bytes()))
    tokenized.clear()
    np.testing.assert_array_equal(embedded(texts, spec, storage), first)
    assert sorted(tokenized) == sorted(texts)
    assert "damaged" in capsys.readouterr().out
    tokenized.clear()
    embedded(texts, spec, storage)
    assert tokenized == []


def test_another_encoder_pooling_or_length_has_embeddings_of_its_own(spec, tmp_path):
    from dataclasses import replace

    texts, storage = sentences(5), Store(str(tmp_path / "storage"))
    other = str(bert_folder(tmp_path / "other", seed=1))
    for changed in ({}, {"pooling": "cls"}, {"max_tokens": 4}, {"encoder": other}):
        own = replace(spec, **changed)
        np.testing.assert_allclose(embedded(texts, own, storage), direct(texts, own), **WITHIN_HALF)
    assert len({path.parent for path in files(storage)}) == 4


def test_a_file_copied_from_another_store_is_not_read(spec, tmp_path):
    from dataclasses import replace

    texts, storage = sentences(5), Store(str(tmp_path))
    embedded(texts, replace(spec, pooling="cls"), storage)
    (wrong,) = files(storage)
    expected = embedded(texts, spec, storage)
    (right,) = set(files(storage)) - {wrong}
    right.write_bytes(wrong.read_bytes())
    np.testing.assert_array_equal(embedded(texts, spec, storage), expected)


def test_cut_and_unknown_texts_are_counted_in_a_line(spec, capsys):
    embedded(["heart " * 20_000, "心臓は正常です", "", "no effusion"], spec, None)
    said = capsys.readouterr().out
    assert "1 of 4 texts are longer than 32 tokens" in said
    assert "1 of 4 texts hold hardly a word" in said
    assert "心" not in said


def test_no_texts_have_no_embeddings(spec, tmp_path):
    assert embedded([], spec, None).shape == (0, WIDTH)
    assert embedded([], spec, Store(str(tmp_path))).shape == (0, WIDTH)


def test_without_room_embeddings_are_computed_and_not_kept(spec, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(embeddings, "features_bound", lambda storage: 100)
    texts, storage = sentences(20), Store(str(tmp_path))
    np.testing.assert_allclose(embedded(texts, spec, storage), direct(texts, spec), **WITHIN_HALF)
    assert files(storage) == []
    assert "not kept" in capsys.readouterr().out


def test_a_disk_that_takes_no_more_costs_the_store_and_not_the_result(spec, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise CxrltError("the disk is full.")

    monkeypatch.setattr(embeddings, "write_part", full)
    texts = sentences(20)
    result = embedded(texts, spec, Store(str(tmp_path)))
    np.testing.assert_allclose(result, direct(texts, spec), **WITHIN_HALF)
    assert "the disk is full: embeddings of texts are not kept" in capsys.readouterr().out


def test_who_comes_second_waits_for_the_first_and_takes_its_embeddings(spec, tmp_path, tokenized, monkeypatch):
    monkeypatch.setattr(embedding_store, "PAUSE", 0.01)
    texts, storage = sentences(10), Store(str(tmp_path))
    embedded(texts[:1], spec, storage)
    store = Store(str(files(storage)[0].parent))
    with claim(store):
        second = threading.Thread(target=embedded, args=(texts, spec, storage))
        second.start()
        second.join(0.5)
        assert second.is_alive()
        assert tokenized == texts[:1]
    second.join(60)
    assert sorted(tokenized) == sorted(texts)


def test_stores_of_texts_are_forgotten_with_those_of_features(spec, tmp_path):
    storage = Store(str(tmp_path))
    embedded(sentences(3), spec, storage)
    count, size = FeatureStorage(features_folder(storage), 0).forget()
    assert count == 1
    assert size > 3 * WIDTH * 2
    assert files(storage) == []


def test_numbers_too_large_for_half_precision_stay_as_they_are_and_nan_is_an_error():
    large = np.array([[1e6, 1.0], [2.0, 3.0]], np.float32)
    np.testing.assert_array_equal(as_part(["a", "b"], large).embeddings, large)
    assert as_part(["a"], large[1:]).embeddings.dtype == np.float16
    with pytest.raises(CxrltError, match="not finite"):
        as_part(["a"], np.array([[np.nan]], np.float32))


def test_texts_are_looked_up_in_many_parts():
    texts = [str(k) for k in range(20_000)]
    values = np.arange(40_000, dtype=np.float32).reshape(-1, 2)
    order = np.random.default_rng(0).permutation(len(texts))
    parts = [Part(text_keys([texts[k] for k in piece]), values[piece]) for piece in np.array_split(order, 7)]
    store = TextEmbeddings(parts, 2)
    asked = np.random.default_rng(1).integers(0, len(texts), 5000)
    np.testing.assert_array_equal(store.at([texts[k] for k in asked]), values[asked])
    with pytest.raises(KeyError):
        store.at(["0", "never embedded"])


def test_opened_embeddings_are_memory_maps(spec, tmp_path):
    texts, storage = sentences(30), Store(str(tmp_path))
    opened = open_embeddings(iter(texts), spec, storage)
    np.testing.assert_array_equal(opened.at(texts[3:5]), embedded(texts, spec, storage)[3:5])
    assert not any(part.embeddings.flags.owndata for part in opened.parts)


def test_a_tuned_encoders_embeddings_are_not_kept(spec):
    from dataclasses import replace

    with pytest.raises(UsageError, match="tuning: tuned"):
        embedded(["heart"], replace(spec, tuning="tuned"), None)


def test_ray_data_gives_the_same_embeddings_and_files(spec, tmp_path, ray, monkeypatch):
    """Needs Ray: its actors hold the encoder."""
    texts = [*sentences(150), "", "心臓", "heart " * 100]
    monkeypatch.setattr(embeddings, "PART", 40)
    here = embedded(texts, spec, Store(str(tmp_path / "here")))
    monkeypatch.setattr(embeddings, "MANY", 100)
    monkeypatch.setattr(embeddings, "_here", None)  # not in this process
    by_ray = embedded(texts, spec, Store(str(tmp_path / "ray")))
    np.testing.assert_array_equal(by_ray, here)
    names = [{path.name for path in files(Store(str(tmp_path / name)))} for name in ("here", "ray")]
    assert names[0] == names[1]
    assert len(names[0]) == 4
