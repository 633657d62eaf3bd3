"""Answers are on disk when they are given, whole, and are found again by key."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys

import pytest

from cxrlt_ray.errors import CxrltError
from cxrlt_ray.labelling.llm.cache import FAILED, Answer, Journal, read_answers


def key(k):
    return hashlib.sha256(str(k).encode()).digest()


def labels(folder, keys):
    return [answer and answer.label for answer in read_answers(folder).get([key(k) for k in keys])]


def names(folder):
    return sorted(path.suffix for path in folder.iterdir())


def test_answers_are_found_by_key_with_all_that_was_written(tmp_path):
    journal = Journal(tmp_path / "answers")
    written = [Answer(key(k), "present", k, k + 3, "", "so", 100, 10, 0.5) for k in range(50)]
    for answer in written:
        journal.add(answer)
    assert read_answers(tmp_path / "answers").get([answer.key for answer in written]) == written
    journal.close()
    answers = read_answers(tmp_path / "answers")
    assert names(tmp_path / "answers") == [".parquet"]
    assert answers.get([answer.key for answer in written]) == written
    assert answers.get([key("other"), written[7].key]) == [None, written[7]]
    assert read_answers(tmp_path / "none").get([key(1)]) == [None]


def test_of_two_answers_the_one_with_a_label_counts(tmp_path):
    for order in ((FAILED, "absent"), ("absent", FAILED)):
        for label in order:
            journal = Journal(tmp_path)
            journal.add(Answer(key(1), label))
            journal.close()
    journal = Journal(tmp_path)
    journal.add(Answer(key(2), FAILED, reason="truncated reply"))
    journal.close()
    assert labels(tmp_path, [1, 2, 3]) == ["absent", FAILED, None]
    labelled, failed = read_answers(tmp_path).known([key(1), key(2), key(3)])
    assert (labelled.tolist(), failed.tolist()) == ([True, False, False], [False, True, False])


def test_what_a_killed_process_had_added_is_there_and_becomes_a_part(tmp_path):
    code = (
        "import os, sys, hashlib; from pathlib import Path\n"
        "from cxrlt_ray.labelling.llm.cache import Answer, Journal\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "for k in range(20): journal.add(Answer(hashlib.sha256(str(k).encode()).digest(), 'present'))\n"
        "os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -9
    assert names(tmp_path) == [".jsonl"]
    assert labels(tmp_path, range(21)) == ["present"] * 20 + [None]
    assert names(tmp_path) == [".parquet"]
    assert labels(tmp_path, range(21)) == ["present"] * 20 + [None]


def test_a_line_that_was_cut_is_no_answer(tmp_path):
    journal = Journal(tmp_path)
    journal.add(Answer(key(1), "present"))
    path = next(tmp_path.iterdir())
    line = path.read_bytes()
    path.write_bytes(line + line[: len(line) // 2])
    assert labels(tmp_path, [1]) == ["present"]


def test_a_full_journal_becomes_a_part_while_the_process_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("cxrlt_ray.labelling.llm.cache.JOURNAL_LINES", 3)
    journal = Journal(tmp_path)
    for k in range(7):
        journal.add(Answer(key(k), "present"))
    assert names(tmp_path) == [".jsonl", ".parquet", ".parquet"]
    assert labels(tmp_path, range(8)) == ["present"] * 7 + [None]


def test_the_cache_is_its_owners_alone(tmp_path):
    journal = Journal(tmp_path / "answers")
    journal.add(Answer(key(1), "present"))
    assert stat.S_IMODE((tmp_path / "answers").stat().st_mode) == 0o700


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_is_a_sentence(tmp_path):
    journal = Journal(tmp_path)
    journal.add(Answer(key(1), "present"))
    os.dup2(os.open("/dev/full", os.O_WRONLY), journal._file)
    with pytest.raises(CxrltError, match="the disk is full"):
        journal.add(Answer(key(2), "present"))


def test_a_file_that_is_no_part_is_refused_by_name(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"none")
    with pytest.raises(CxrltError, match=r"x\.parquet is no part of a cache"):
        read_answers(tmp_path)
