"""How long a budget's trials are: the space's own epochs, and at the end what the time left holds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxrlt_ray.runs.records import EpochRecord, TrialRecord
from cxrlt_ray.runs.store import Trial
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.search.pacing import BETWEEN, Pace
from cxrlt_ray.search.plan import draw_trials
from cxrlt_ray.search.space_file import load_space
from cxrlt_ray.storage import Store

EPOCHS = 12


def config(epochs=EPOCHS, **others):
    return TrialConfig(backbone="test_resnet", resolution=64, epochs=epochs, pretrained=False, **others)


def pace(left, planned=10.0, trials=1, longest=EPOCHS):
    """`left` seconds for trials' epochs, each planned to take `planned` seconds."""
    return Pace(BETWEEN + left, lambda config: [planned] * config.epochs, trials, longest, clock=lambda: 0.0)


def ended(seconds, state="finished", epochs=EPOCHS, attempt=1):
    """A trial that took so long."""
    records = [EpochRecord(fold=0, stage=0, epoch=k, score=0.5, loss=0.1, images_per_second=9.0) for k in range(epochs)]
    record = TrialRecord(
        name="T0000", state=state, config=config(), began=100.0, ended=100.0 + seconds, attempt=attempt, epochs=records
    )
    return Trial(Store("nowhere"), record)


@pytest.mark.parametrize(
    ("left", "epochs"),
    [(1000, 12), (180, 12), (179, 17), (130, 13), (120, 12), (119, 11), (60, 6), (9, 1)],
)
def test_a_trial_has_its_own_epochs_and_the_last_what_the_time_left_holds(left, epochs):
    assert pace(left).length(config(), []).epochs == epochs


def test_only_a_trial_that_has_all_the_time_left_follows_its_own_rate():
    assert pace(130.0).length(config(), []).all_left
    assert pace(60.0).length(config(), []).all_left
    assert not pace(1000.0).length(config(), []).all_left
    assert not pace(240.0, trials=3).length(config(6), []).all_left


def test_a_machine_that_is_slower_than_planned_gives_shorter_trials():
    slow = [ended(240.0), ended(250.0), ended(230.0, "pruned")]
    assert pace(240.0).correction(slow) == pytest.approx(2.0)
    assert pace(240.0).length(config(), slow).epochs == 12
    assert pace(200.0).length(config(), slow).epochs == 10


def test_what_a_pruned_trial_took_is_compared_with_the_epochs_it_had():
    assert pace(100.0).correction([ended(60.0, "pruned", epochs=3)]) == pytest.approx(2.0)


def test_a_trial_pruned_in_its_first_fold_took_the_time_of_one_model():
    whole, pruned = ended(360.0), ended(20.0, "pruned", epochs=2)
    whole.record.epochs += [epoch.model_copy(update={"fold": k}) for k in (1, 2) for epoch in whole.record.epochs]
    for trial, ratio in ((whole, 360.0), (pruned, 60.0)):
        planned = sum(pace(100.0).plan(trial.record.config)[: len(trial.record.epochs_of())])
        assert replace(pace(100.0), models=3).correction([trial]) == pytest.approx(ratio / planned)


def test_a_trial_that_was_begun_anew_says_nothing_of_speed():
    assert pace(100.0).correction([ended(9000.0, attempt=2)]) == 1.0


def test_no_trial_is_begun_that_would_have_less_than_half_of_its_length():
    before = [ended(120.0)]
    assert pace(61.0).holds_another(before)
    assert not pace(59.0).holds_another(before)


def test_a_run_without_a_whole_trial_always_begins_one():
    assert pace(0.0).holds_another([])
    assert pace(0.0).holds_another([ended(10.0, "pruned"), ended(10.0, "failed")])
    assert pace(0.0).length(config(), []).epochs == 1


@pytest.mark.parametrize(
    ("held", "planned", "epochs", "wanted"),
    [
        (36, 3, 12, 12),  # as planned
        (35, 3, 12, 12),  # two share it
        (24, 2, 6, 12),  # faster than planned: each is longer
        (100, 2, 6, 12),  # but no longer than the space says
        (20, 3, 12, 12),  # slower: fewer of them
        (17, 3, 12, 17),  # the last has it all
        (7, 2, 3, 3),
        (5, 2, 3, 5),
    ],
)
def test_planned_trials_share_the_time_that_is_left(held, planned, epochs, wanted):
    assert pace(10.0 * held, trials=planned).length(config(epochs), []).epochs == wanted


def budget(left, **options):
    """Epochs of 10 seconds; of a probe the first takes 24 and the others 1: 35 seconds in all."""

    def plan(config):
        return [24.0, *[1.0] * (config.epochs - 1)] if config.frozen_backbone else [10.0] * config.epochs

    start = tuple(draw_trials(load_space("laptop"), 4))
    how = {"trials": 2, "longest": EPOCHS, "start": start, "clock": lambda: 0.0}
    return Pace(BETWEEN + left, plan, **{**how, **options})


def test_a_probe_has_all_its_epochs_where_it_takes_little_of_the_time():
    probe = config(5, frozen_backbone=True)
    assert budget(140.0).length(probe, []).epochs == EPOCHS
    assert not budget(139.0).is_probe(probe)
    assert not budget(140.0).is_probe(probe, [ended(240.0)])  # a machine that is slower than planned
    assert not budget(1000.0).is_probe(config())
    assert not budget(1000.0).is_probe(config(frozen_backbone=True, augment=0.3, feature_copies=None))


def test_what_a_probe_took_says_nothing_of_trainings():
    probe = ended(3.0)
    probe.record.config = config(frozen_backbone=True)
    assert budget(100.0).correction([probe]) == 1.0
    assert budget(100.0).correction([probe, ended(240.0)]) == pytest.approx(2.0)


def test_probes_come_first_where_there_is_time_for_them():
    space = load_space("laptop")
    space = replace(space, start=space.start[:4])
    first = budget(140.0).probes_first(space)
    assert [bool(point.get("frozen_backbone")) for point in first.start][:2] == [True, False]
    assert sorted(map(str, first.start)) == sorted(map(str, space.start))
    assert first.start[1] == space.start[0]  # and the others keep their order
    assert budget(130.0).probes_first(space).start == space.start
    assert budget(140.0, trials=1).probes_first(space).start == space.start  # one trial alone is wanted
    assert budget(140.0, open_ended=True).probes_first(space).start == space.start  # a training has its time


def test_a_probe_is_begun_where_it_fits_however_long_others_take():
    made = budget(36.0, open_ended=True)
    assert made.holds_another([ended(120.0)])
    assert made.length(config(5, frozen_backbone=True), [ended(120.0)]).epochs == EPOCHS
    assert not budget(34.0, open_ended=True).holds_another([ended(120.0)])
    assert not budget(36.0, open_ended=True).holds_another([ended(120.0), ended(120.0)])  # the next one is none


def test_trials_that_run_together_do_not_share_time():
    alone = pace(240.0, trials=4)
    assert alone.length(config(6), []).epochs == 6
    assert replace(alone, together=2).length(config(6), []).epochs == 12
    assert replace(alone, together=4).length(config(6), []).epochs == 12


def test_trials_that_are_begun_take_no_share():
    assert pace(240.0, trials=3).length(config(6), []).epochs == 8
    assert pace(240.0, trials=3).length(config(6), [ended(120.0)]).epochs == 12


def test_what_follows_the_last_epoch_is_part_of_what_a_trial_takes():
    """A refit that doubles a trial leaves room for half as many epochs."""

    def with_refit(config):
        return [5.0] * (config.epochs - 1) + [5.0 * (config.epochs + 1)]

    for left in (60.0, 120.0, 170.0):
        doubled = Pace(BETWEEN + left, with_refit, 1, EPOCHS, clock=lambda: 0.0)
        assert doubled.length(config(), []).epochs == pace(left, planned=10.0).length(config(), []).epochs


@pytest.mark.parametrize(
    ("states", "trials", "out_of_time", "ended"),
    [
        (("finished", "pruned", "failed"), 3, False, True),
        (("finished", "finished"), 3, False, False),
        (("finished", "finished"), 3, True, True),  # the time left holds no third
        (("finished", "finished", "running"), 3, True, False),  # one that was stopped goes on when it is resumed
        (("finished", "finished", "running"), 2, False, False),  # beyond what was planned, too
    ],
)
def test_a_search_is_done_when_no_trial_goes_on_and_none_is_missing(states, trials, out_of_time, ended):
    from types import SimpleNamespace

    from cxrlt_ray.search.tuner import has_ended

    run = SimpleNamespace(trials=lambda: [SimpleNamespace(state=state) for state in states])
    assert has_ended(run, trials, out_of_time) is ended


def test_stages_keep_their_epochs():
    staged = config(stages=({"epochs": 2}, {"epochs": 3, "lr": 1e-4}))
    assert pace(1.0).length(staged, []).epochs == staged.epochs


@given(st.floats(0, 1e5), st.floats(0.01, 1e4), st.integers(1, 50))
def test_a_planned_trial_ends_in_time_unless_one_epoch_does_not(left, planned, epochs):
    given_ = pace(left, planned, longest=epochs).length(config(epochs), []).epochs
    assert 1 <= given_ <= 1.5 * epochs
    assert given_ == 1 or given_ * planned <= left * (1 + 1e-9)


def test_where_all_planned_trials_have_failed_no_more_are_begun():
    failed = [ended(1.0, "failed", epochs=0)] * 3
    assert pace(1000.0, trials=4).holds_another(failed)
    assert not pace(1000.0, trials=3).holds_another(failed)
    assert pace(1000.0, trials=3).holds_another([*failed, ended(60.0, "pruned", epochs=3)])
