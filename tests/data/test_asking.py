"""What is asked for by text: which findings a fold's model is trained without, judged on, and predicts."""

from __future__ import annotations

from cxrlt_ray.data.asking import ALWAYS, MINED, Asking

ASKING = Asking(("Bulla", "Hilum"), ("Mass", "Normal", "Edema", "Nodule"), (0, ALWAYS, 1, 1))


def test_a_fold_is_trained_without_its_own_findings_and_the_asked_ones():
    assert ASKING.folds == 2
    assert ASKING.hidden(0) == {"Bulla", "Hilum", "Mass"}
    assert ASKING.hidden(1) == {"Bulla", "Hilum", "Edema", "Nodule"}
    assert ASKING.hidden(2) == {"Bulla", "Hilum"}  # a model after the folds is trained on all that is seen
    assert [ASKING.judged(fold) for fold in (0, 1, 2)] == [{"Mass"}, {"Edema", "Nodule"}, set()]


def test_asked_findings_never_judge_and_are_predicted_by_every_fold():
    assert not any(set(ASKING.asked) & ASKING.judged(fold) for fold in range(3))
    assert ASKING.predicted == ("Mass", "Edema", "Nodule", "Bulla", "Hilum")
    assert ASKING.fold_of_predicted.tolist() == [0, 1, 1, ALWAYS, ALWAYS]
    assert set(ASKING.predicted) < set(ASKING.trained)


def test_mined_labels_of_asked_findings_are_trained_on():
    mined = Asking(ASKING.asked, ASKING.seen, ASKING.fold, MINED)
    assert mined.hidden(0) == {"Mass"}
    assert mined.judged(0) == {"Mass"}
