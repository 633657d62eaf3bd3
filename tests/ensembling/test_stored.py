"""What an ensemble leaves on disk, and how it is read again."""

from __future__ import annotations

import pytest
from drawn_run import FINDINGS, make_run

from cxrlt_ray.ensembling import stored
from cxrlt_ray.ensembling.compare import compare
from cxrlt_ray.ensembling.ensemble_file import EnsembleFile
from cxrlt_ray.ensembling.pool import gather
from cxrlt_ray.ensembling.tta import under_tta


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
