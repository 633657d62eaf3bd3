import numpy as np
import pytest

from cxrlt_ray.data import tasks
from cxrlt_ray.errors import UsageError


def test_challenge_tasks_have_their_published_sizes_and_orders():
    assert [len(tasks.load_task(name).findings) for name in ("task1", "task2", "task3")] == [40, 26, 5]
    assert len(tasks.ALL_FINDINGS) == 45
    task1, task2 = tasks.TASK1, tasks.TASK2
    assert task1.index("Mass") + 1 == task1.index("Nodule") == task1.index("Normal") - 1
    assert task2.index("Mass") + 1 == task2.index("Normal") == task2.index("Nodule") - 1


def test_the_tasks_of_2026_have_their_published_sizes_and_share_no_finding():
    known, unseen = (tasks.load_task(f"2026-task{n}") for n in (1, 2))
    assert (len(known.findings), len(unseen.findings)) == (30, 6)
    assert len({name.lower() for name in (*known.findings, *unseen.findings)}) == 36
    assert {known.id_column, unseen.id_column} == {"ImageID"}
    assert tasks.load_task("task1").id_column == "dicom_id"


def test_rarity_follows_the_share_of_labelled_images_only():
    targets = np.zeros((1000, 4), np.int8)
    targets[:101, 0] = 1  # 10.1 %
    targets[:10, 1] = 1  # 1 %
    targets[:9, 2] = 1  # 0.9 %
    targets[:, 3] = -1
    targets[:20, 3] = [1] * 5 + [0] * 15  # 25 % of the 20 labelled
    assert tasks.rarity(targets) == ["head", "medium", "tail", "head"]


def test_a_task_file_lists_findings_in_its_own_order(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("findings: [Nodule, Mass]\n")
    assert tasks.load_task(str(path)) == tasks.Task("mine", ("Nodule", "Mass"))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("findings: [Mass, Mass]", "each once"),
        ("findings: []", "at least one"),
        ("finding: [Mass]", "unknown key 'finding'"),
        ("[Mass]", "mapping"),
        ("findings: [Mass", "cannot be read as YAML"),
        ("findings: [Mass]\nfindings: [Nodule]", "key .findings. is given twice"),
    ],
)
def test_a_wrong_task_file_is_refused_in_a_sentence_that_names_it(tmp_path, content, told):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(UsageError, match=told) as refusal:
        tasks.load_task(str(path))
    assert str(path) in str(refusal.value)


def test_an_unknown_task_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="task1, task2, task3, 2026-task1, 2026-task2, auto"):
        tasks.load_task("task4")
