"""What an ensemble leaves on disk, and how it is read again."""

from __future__ import annotations

import pytest
from drawn_run import FINDINGS, make_run

from cxrlt_ray.data.tasks import Task
from cxrlt_ray.ensembling import stored
from cxrlt_ray.ensembling.compare import compare
from cxrlt_ray.ensembling.ensemble_file import EnsembleFile
from cxrlt_ray.ensembling.pool import gather
from cxrlt_ray.ensembling.tta import under_tta
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.runs.ensemble_record import EnsembleRecord
from cxrlt_ray.storage import Store


@pytest.fixture
def made(tmp_path):
    return make_run(tmp_path)


def test_members_remember_how_they_look(made):
    found = under_tta(gather(*made, made[0].trials()), "on")
    row = compare(EnsembleFile(selector="mean"), "mean", found, seed=0)[-1]
    table = stored.weights_table(found, row.weights, row.fitted.own, FINDINGS).set_index("trial")
    assert table["augmentations"].to_dict() == {"T0000": 2, "T0001": 2, "T0002": 1}
    about = [stored._member(found, m, row.weights[m], FINDINGS) for m in range(3)]
    assert [member.tta for member in about] == [True, True, False]


def record_at(run: str, fingerprint: str = "f") -> EnsembleRecord:
    return EnsembleRecord(task=Task("mine", FINDINGS, "test"), run=run, fingerprint=fingerprint, members=[])


def test_an_ensemble_finds_its_run_wherever_the_whole_was_moved(tmp_path, monkeypatch):
    moved, old = Store(str(tmp_path / "new" / "r")), Store(str(tmp_path / "old" / "r"))
    for store, fingerprint in ((moved, "f"), (old, "another run's")):
        store.write_json("run.json", {"fingerprint": fingerprint})
    assert stored.run_of(record_at(old.uri), f"{moved.uri}/ensembles/greedy").uri == moved.uri
    assert stored.run_of(record_at(moved.uri), f"{old.uri}/ensembles/greedy").uri == moved.uri  # the record alone moved
    monkeypatch.chdir(tmp_path / "new" / "r")
    assert stored.run_of(record_at("/gone/r"), "ensembles/greedy").uri == moved.uri


def test_a_run_copied_to_an_object_store_is_found_beside_its_ensemble(monkeypatch):
    monkeypatch.setattr(Store, "exists", lambda store, name: store.uri == "s3://bucket/runs/r")
    monkeypatch.setattr(Store, "read_json", lambda store, name: {"fingerprint": "f"})
    found = stored.run_of(record_at("/home/me/runs/r"), "s3://bucket/runs/r/ensembles/greedy")
    assert found.uri == "s3://bucket/runs/r"


@pytest.mark.parametrize("folder", ["/", "/models", "/models/x", "s3://bucket", "s3://bucket/models"])
def test_an_ensemble_alone_is_refused_in_a_sentence(folder, monkeypatch):
    monkeypatch.setattr(Store, "exists", lambda store, name: False)
    with pytest.raises(CxrltError, match="the run of this ensemble is not at /gone/r any more"):
        stored.run_of(record_at("/gone/r"), folder)


def test_an_ensemble_is_given_by_its_file_or_its_directory(tmp_path):
    folder = tmp_path / "r" / "ensembles" / "mean"
    with pytest.raises(UsageError, match="there is no ensemble in"):
        stored.load(str(folder))
    Store(str(tmp_path / "r")).write_json("run.json", {"fingerprint": "f"})
    record_at("/gone/r").write(Store(str(folder)))
    for uri in (folder, f"{folder}/", folder / "ensemble.json"):
        assert stored.load(str(uri)).findings == FINDINGS


def test_an_explanation_of_a_former_ensemble_does_not_stay(tmp_path):
    store = Store(str(tmp_path))
    for name in ("explain.json", "explain.png", "submission.csv"):
        store.write(name, b"")
    stored.remove_former(store, ["submission.csv"])
    assert store.list() == ["submission.csv"]
