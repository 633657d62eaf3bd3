"""A sign drawn fainter in one group of patients: there alone, by the stated share, and in no table."""

from __future__ import annotations

import hashlib
import json
from types import MappingProxyType

import cv2
import numpy as np
import pandas as pd
import pytest

from cxrlt_ray import phantom
from cxrlt_ray.errors import UsageError
from cxrlt_ray.phantom.options import PhantomOptions, checked
from cxrlt_ray.phantom.pictures import Picture, draw_picture

FINDING, SEED = "Pleural Effusion", 3


def write(folder, **options):
    phantom.write_phantom(folder, 200, 32, SEED, options=PhantomOptions(**options), say=lambda _: None, processes=1)
    return folder


def digests(root):
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write(tmp_path_factory.mktemp("plain") / "p")


def test_strength_0_gives_the_same_bytes_whatever_sign_and_group_are_named(plain, tmp_path):
    other = write(tmp_path / "p", hidden_bias=0.0, hidden_finding="Mass", hidden_group="40-59")
    assert digests(other) == digests(plain)


@pytest.mark.parametrize("group", ["F", "60-79"])
def test_only_pictures_of_that_group_with_that_finding_change_and_no_table_does(plain, tmp_path, group):
    biased = digests(write(tmp_path / "p", hidden_bias=0.8, hidden_finding=FINDING, hidden_group=group))
    changed = {name for name, digest in digests(plain).items() if biased[name] != digest}
    assert json.loads((tmp_path / "p" / "phantom.json").read_text())["hidden_group"] == group
    labels = pd.read_csv(plain / "cxr-lt-2024" / "labels.csv")
    people = pd.read_csv(plain / "patients.csv.gz").set_index("subject_id").loc[labels["subject_id"]]
    inside = people["gender"] == "F" if group == "F" else people["anchor_age"].between(60, 79)
    from cxrlt_ray.data.tasks import ALL_FINDINGS
    from cxrlt_ray.phantom.labels import draw_cohort

    cohort = draw_cohort(200, SEED)
    truth = dict(zip(cohort.studies["study_id"], cohort.truth[:, ALL_FINDINGS.index(FINDING)], strict=True))
    present = labels["study_id"].str.removeprefix("s").astype(int).map(truth)
    expected = set(labels["fpath"][inside.to_numpy() & present.to_numpy(bool)])
    assert expected
    assert changed - {"phantom.json"} <= expected
    assert len(changed) > 0.8 * len(expected)  # one behind the heart may not show


def test_the_sign_fades_in_proportion_and_is_gone_at_1():
    def picture(left, findings=MappingProxyType({FINDING: (0.9, 1)})):
        shown = Picture(7, 9, "0000004d-x", False, False, findings, {FINDING: left})
        return draw_picture(shown, 128, SEED).astype(int)

    healthy = picture(1.0, {})
    change = [np.abs(picture(left) - healthy).sum() for left in (1.0, 0.5, 0.0)]
    assert change[2] == 0
    assert change[1] == pytest.approx(change[0] / 2, rel=0.25)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_bias": 1.5}, "--hidden-bias 1.5 is out of range"),
        ({"hidden_bias": 0.5, "hidden_finding": "Cardiomegaly"}, "none of the painted signs: "),
        ({"hidden_bias": 0.5, "hidden_finding": "Flu"}, "none of the painted signs: "),
        ({"hidden_bias": 0.5, "hidden_group": "X"}, "--hidden-group X is none of F, M, 0-17"),
    ],
)
def test_a_bias_that_cannot_be_drawn_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        checked(PhantomOptions(**options))


def test_the_command_takes_it(tmp_path, capsys):
    phantom.main(tmp_path / "p", images=200, size=32, hidden_bias=0.5, hidden_finding="Pneumothorax", processes=1)
    assert json.loads((tmp_path / "p" / "phantom.json").read_text())["hidden_finding"] == "Pneumothorax"
    assert cv2.imread(str(next((tmp_path / "p").glob("files/**/*.jpg"))), cv2.IMREAD_UNCHANGED).shape == (32, 32)
    assert "Next:" in capsys.readouterr().out
