"""Scores on disk, a finding's together: what comes back is what was added, whatever the size of a block."""

from __future__ import annotations

import tempfile

import numpy as np
import pytest

from cxrlt_ray.ensembling import scratch


@pytest.mark.parametrize("block", [1, 4 * 30 * 3 * 2, 1 << 27])
def test_a_findings_scores_lie_together_whatever_the_block(block, monkeypatch, tmp_path):
    monkeypatch.setattr(scratch, "BLOCK", block)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    scores = np.random.default_rng(0).random((5, 30, 3)).astype(np.float32)
    with scratch.scratch_scores(members=7, images=30, findings=3) as store:
        for member in scores:
            store.add(member)
        for c in range(3):
            np.testing.assert_array_equal(store.finding(c), scores[:, :, c])
        assert not store.finding(0).flags.writeable
        assert any(tmp_path.iterdir())
    assert not any(tmp_path.iterdir())


def test_room_is_asked_of_the_folder_of_temporary_files(monkeypatch):
    monkeypatch.setattr(scratch.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    assert scratch.has_room(2, 10, 3)
    assert not scratch.has_room(20, 10, 3)
