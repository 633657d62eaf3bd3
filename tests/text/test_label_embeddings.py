"""The label embeddings that a run keeps: the same by name and kind after a file, refused where their texts changed."""

from __future__ import annotations

import numpy as np
import pytest

from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.storage import Store
from cxrlt_ray.text import embeddings
from cxrlt_ray.text.descriptions import Description
from cxrlt_ray.text.finding_embeddings import finding_embeddings
from cxrlt_ray.text.label_embeddings import FILE, LabelEmbeddings, make

KINDS = [("letters", "names"), ("owner/letters", "description"), ("letters", "names")]
FINDINGS = ("Mass", "Bulla", "Pleural Mass")


def pleural_mass(appearance="A rounded density along the chest wall."):
    keywords = ("pleural mass", "pleural based opacity", "obtuse angles")
    return Description(finding="Pleural Mass", names=("pleural mass",), appearance=appearance, keywords=keywords)


@pytest.fixture
def loaded(monkeypatch):
    """Counts letters; the encoders that were loaded."""
    encoders: list[str] = []

    def embedded(texts, spec, folder):
        encoders.append(spec.encoder)
        return np.array([[1 + text.lower().count(letter) for letter in "aeiou"] for text in texts], np.float32)

    monkeypatch.setattr(embeddings, "embedded", embedded)
    return encoders


def test_they_come_back_from_their_file_by_kind_and_name_without_an_encoder(loaded, tmp_path):
    own = (pleural_mass(),)
    made = make(FINDINGS, KINDS, own, None)
    assert loaded == ["letters", "owner/letters"]  # each kind once
    store = Store(str(tmp_path))
    store.write(FILE, made.as_bytes())
    expected = {kind: finding_embeddings(("Bulla", "Mass"), *kind) for kind in KINDS}
    loaded.clear()
    kept = LabelEmbeddings.read(store)
    for kind, rows in expected.items():
        np.testing.assert_array_equal(kept.of(kind, ("Bulla", "Mass")), rows)
    assert kept.of(("letters", "question"), ("Bulla",)) is None
    assert kept.of(("letters", "names"), ("Edema",)) is None
    kept.check(own)
    assert loaded == []
    (tmp_path / FILE).write_bytes(made.as_bytes()[:-7])
    with pytest.raises(CxrltError, match=f"{FILE} is damaged"):
        LabelEmbeddings.read(store)


def test_texts_that_have_changed_since_are_refused_by_finding(loaded):
    made = make(FINDINGS, KINDS, (pleural_mass(),), None)
    made.check((pleural_mass(),))
    with pytest.raises(UsageError, match=r"other texts \(prompts: description\) of Pleural Mass: the descriptions"):
        made.check((pleural_mass("A lens-shaped density."),))
