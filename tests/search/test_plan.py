"""What a sweep is said to cost before it starts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cxrlt_ray import sweep
from cxrlt_ray.errors import UsageError
from cxrlt_ray.models import ModelSpec
from cxrlt_ray.runs.records import EpochRecord, TrialRecord
from cxrlt_ray.runs.store import Trial
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.search import plan, rates, schedule
from cxrlt_ray.search.resources import plan_resources
from cxrlt_ray.search.space import grace
from cxrlt_ray.search.space_file import load_space
from cxrlt_ray.search.workload import Workload, feature_needs, trial_seconds
from cxrlt_ray.storage import Store
from cxrlt_ray.text.cost import training_flops
from cxrlt_ray.text.encoder_spec import TextSpec

seconds = st.lists(st.floats(1, 100), min_size=1, max_size=30)


@given(seconds, st.integers(1, 20), st.integers(1, 8))
def test_without_pruning_every_trial_has_all_epochs_and_devices_are_busy_for_just_these(each, epochs, together):
    found = schedule.simulate(each, epochs, together, prune=False)
    assert (found.epochs == epochs).all()
    used = min(together, len(each))
    overhead = used * schedule.START + (len(each) - used) * schedule.TURNAROUND
    assert found.busy == pytest.approx(sum(each) * epochs + overhead)
    assert found.busy / used <= found.wall + 1e-6
    assert found.wall >= max(each) * epochs


@given(seconds, st.integers(2, 20), st.integers(1, 8))
def test_pruning_costs_no_more_and_stops_at_rungs_only(each, epochs, together):
    pruned, whole = (schedule.simulate(each, epochs, together, prune=prune) for prune in (True, False))
    assert pruned.busy <= whole.busy + 1e-6
    rungs = {grace(epochs) * 3**k for k in range(5)} | {epochs}
    assert set(pruned.epochs.tolist()) <= rungs
    assert pruned.epochs.max() == epochs  # the best seen so far is never stopped


def test_the_rule_is_rays_own():
    """Ray's ASHAScheduler, told the same scores in the same order, stops the same trials."""
    from ray.tune.schedulers import ASHAScheduler, TrialScheduler

    class Trial:
        def __init__(self, number):
            self.trial_id = str(number)

    rng = np.random.default_rng(0)
    scheduler = ASHAScheduler(metric="m", mode="max", time_attr="e", max_t=9, grace_period=2, reduction_factor=3)
    seen: dict[int, list[float]] = {2: [], 6: []}
    for number in range(60):
        trial = Trial(number)
        scheduler.on_trial_add(None, trial)
        for epoch in range(1, 10):
            score = float(rng.normal())
            theirs = scheduler.on_trial_result(None, trial, {"e": epoch, "m": score}) == TrialScheduler.STOP
            before = seen.get(epoch, [])
            ours = epoch >= 9 or schedule.stops(score, before)
            if epoch in seen:
                seen[epoch].append(score)
            assert theirs == ours
            if ours:
                break


def test_more_devices_are_faster_until_the_longest_trial_binds():
    each = np.random.default_rng(0).uniform(10, 100, 40).tolist()
    walls = [schedule.simulate(each, 8, count, prune=False).wall for count in (1, 2, 8, 32)]
    assert walls == sorted(walls, reverse=True)
    assert walls[0] > 6 * walls[2]


def test_trials_are_drawn_from_the_space_its_start_points_first():
    space = load_space("laptop")
    configs = plan.draw_trials(space, 20)
    assert len(configs) == 20
    assert configs[0] == space.to_config(space.start[0])
    assert len({config.lr for config in configs}) > 10


def test_rates_measured_before_are_used_and_scale_the_others(tmp_path):
    space = load_space("laptop")
    spec, other = (space.to_config(config).spec() for config in _params(space))
    known = rates.Rates(Store(str(tmp_path)))
    guess = known.rate_of(spec, 40, "cpu-2", 2)
    assert guess.source == "estimated"
    known.note("cpu-2", spec.backbone, spec.resolution, 10 * guess.rate, "probe")
    before = known.rate_of(other, 40, "H100")
    known.save()
    again = rates.Rates(Store(str(tmp_path)))
    assert again.rate_of(spec, 40, "cpu-2", 2).rate == pytest.approx(10 * guess.rate, rel=0.01)
    assert "measured" in again.rate_of(spec, 40, "cpu-2", 2).source
    scaled = again.rate_of(other, 40, "cpu-2", 2)
    assert "scaled" in scaled.source
    assert scaled.rate == pytest.approx(
        10 * rates.Rates(Store(str(tmp_path / "none"))).rate_of(other, 40, "cpu-2", 2).rate, rel=0.01
    )
    assert again.rate_of(other, 40, "H100").rate == before.rate  # what was measured here says nothing of a GPU


@pytest.mark.parametrize(
    ("device", "wanted"),
    [
        ("NVIDIA-H100-80GB-HBM3", "H100"),
        ("NVIDIA-L40S", "L40S"),
        ("NVIDIA-L4", "L4"),
        ("Tesla-T4", "T4"),
        ("A100-80G", "A100"),
        ("NVIDIA-A10G", "A10G"),
        ("cpu-2", "cpu-2"),
        ("NVIDIA-GeForce-RTX-4090", "NVIDIA-GeForce-RTX-4090"),
    ],
)
def test_a_gpu_is_one_whatever_torch_ray_and_the_option_call_it(device, wanted, tmp_path):
    assert rates.family(device) == wanted
    known = rates.Rates(Store(str(tmp_path)))
    known.note(device, "test_resnet", 96, 123.0, "trials")
    spec = ModelSpec("test_resnet", 96, pretrained=False)
    assert known.rate_of(spec, 40, wanted).rate == known.rate_of(spec, 40, device).rate == 123.0


def _params(space):
    return [
        {"backbone": name, "lr": 1e-3, "weight_decay": 0.01, "loss": "bce", "augment": 0.1, "drop_rate": 0.0}
        | {"batch_size@1": 32}
        | {f"{key}@{rule}": value for key, value in (("resolution", 96), ("lr", 1e-3)) for rule in (1, 2)}
        for name in ("test_resnet", "test_convnext")
    ]


def test_images_are_split_as_the_challenges():
    work = Workload.of_count(377_110)
    assert (work.train, work.val, work.test) == (258_871, 39_293, 78_946)
    assert Workload.of_count(10_000_000).images == 10_000_000


def test_a_plan_names_rates_disk_ingest_time_and_cost_and_starts_nothing(tmp_path, capsys):
    sweep.main("task1", space="laptop", plan=True, images=10_000, gpu="L4", price=2.0, storage=str(tmp_path / "runs"))
    told = capsys.readouterr().out
    for wanted in ("estimated (L4)", "10,000 originals", "Disk: ", "1 x L4", "8 x L4", "32 x L4", "2.00 a device-hour"):
        assert wanted in told
    assert not (tmp_path / "runs").exists()


def test_a_probe_measures_every_kind_of_model_and_is_kept(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plan, "PROBE_SECONDS", 0.5)
    sweep.main("task1", space="laptop", plan=True, probe=True, images=10_000, storage=str(tmp_path))
    assert "measured (probe)" in capsys.readouterr().out
    assert all(rate["images_per_second"] > 0 for rate in rates.Rates(Store(str(tmp_path))).known.values())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"plan": True, "images": 3}, "--images"),
        ({"images": 1000}, "--images is for --plan"),
        ({"probe": True, "images": 1000}, "--images is for --plan"),
        ({"gpu": "H100"}, "--gpu is for --plan"),
        ({"plan": True, "gpu": "B9000"}, "--gpu is one of"),
        ({"plan": True, "price": -1.0}, "--price"),
        ({"ingest": "magic"}, "--ingest is auto, threads or ray"),
        ({"sizes": "big"}, "--sizes"),
        ({"quality": "best"}, "--quality"),
        ({"cache_gb": -1.0}, "--cache-gb"),
        ({"features_gb": -1.0}, "--features-gb"),
        ({"objectives": "cost"}, "--objectives is map or map,cost"),
    ],
)
def test_wrong_options_are_told(options, told, tmp_path):
    with pytest.raises(UsageError, match=told):
        sweep.main("task1", storage=str(tmp_path), **options)


def staged(**options):
    return TrialConfig(backbone="test_convnext", resolution=64, epochs=1, pretrained=False, **options)


def test_a_trial_of_stages_is_priced_epoch_by_epoch():
    kinds = {
        ("test_convnext", 64): rates.ModelRate("test_convnext", 64, 100.0, "measured", 0),
        ("test_convnext", 96): rates.ModelRate("test_convnext", 96, 50.0, "measured", 0),
    }
    work = Workload(1000, 300, 0, outside={"nih": 4000, "brax": 500})
    config = staged(
        stages=(
            {"epochs": 1, "cohorts": "nih"},
            {"epochs": 2, "cohorts": "main"},
            {"epochs": 1, "cohorts": "all", "resolution": 96},
            {"epochs": 1, "cohorts": "main", "frozen_backbone": True},
        )
    )
    seconds = trial_seconds(config, kinds, work)
    # validation costs a third of training an image; so does an image through a frozen backbone
    assert seconds == pytest.approx([41, 11, 11, 5500 / 50 + 2, 1000 / 150 + 2])
    refit = trial_seconds(staged(refit=True), kinds, work)
    assert refit == pytest.approx([22])


def test_a_pair_is_priced_as_two_images_and_a_text_by_its_operations():
    rate = {("test_vit", 64): rates.ModelRate("test_vit", 64, 100.0, "measured", 0, flops=10**9)}
    plain = {"backbone": "test_vit", "resolution": 64, "epochs": 1, "pretrained": False, "pool": "avg"}
    work = Workload(train=1000, val=0, test=0)

    def seconds(**options):
        return sum(trial_seconds(TrialConfig(**plain, **options), rate, work))

    assert seconds() == pytest.approx(10)
    assert seconds(objective="simclr") == pytest.approx(20)
    read = 10 * training_flops(TextSpec("minilm")) / 3e9
    assert seconds(objective="clip", text="minilm") == pytest.approx(seconds())  # once for all trials
    assert seconds(objective="mama", text="minilm") - 2 * seconds() == pytest.approx(read)  # its words
    assert seconds(objective="clip", text="minilm", text_tuning="tuned") - seconds() == pytest.approx(3 * read)
    assert seconds(objective="mama", text="biomedlm") > 50 * seconds()


def test_a_frozen_stage_is_priced_once_where_its_features_fit():
    kinds = {("test_convnext", 64): rates.ModelRate("test_convnext", 64, 100.0, "measured", 0)}
    work = Workload(1000, 300, 0)
    stages = ({"epochs": 2}, {"epochs": 5, "frozen_backbone": True, "feature_copies": 2, "fusion": "attention"})
    trained, fused = feature_needs(staged(stages=stages), work)
    assert trained is None
    assert (fused.tokens, fused.shared) == (1, False)
    assert fused.size == 2 * fused.width * (2 * 1000 + 300)
    (probe,) = feature_needs(staged(frozen_backbone=True, head="ml_decoder"), work)
    assert (probe.tokens, probe.shared, probe.size) == (4, True, 2 * 4 * probe.width * 1300)
    seconds = trial_seconds(staged(stages=stages), kinds, work, features=fused.size)
    one = 1000 / 300 + 1
    assert seconds == pytest.approx([11, 11, one, one, one / 20, one / 20, one / 20])
    assert trial_seconds(staged(stages=stages), kinds, work, features=fused.size - 1) == pytest.approx(
        [11, 11] + 5 * [one]
    )
    anew = staged(frozen_backbone=True, feature_copies=None)
    assert feature_needs(anew, work) == [None]


def test_a_plan_says_what_frozen_backbones_store_and_what_does_not_fit(tmp_path, capsys):
    space = tmp_path / "frozen.yaml"
    space.write_text(
        "trials: 3\nparameters:\n  backbone: vit_base_patch14_reg4_dinov2.lvd142m\n  resolution: 224\n"
        "  frozen_backbone: true\n  seed: {choices: [0, 1, 2]}\n"
        "stages:\n  - {epochs: 3}\n  - {epochs: 10, fusion: transformer}\n"
    )
    options = {"space": str(space), "plan": True, "images": 10_000, "storage": str(tmp_path)}
    sweep.main("task1", features_gb=1.0, **options)
    output = capsys.readouterr().out
    assert "computed once and kept in up to 1.0 GB of disk" in output
    assert "at 224 px, 1 x 768 an image: 12 MB for all trials\n" in output
    assert "at 224 px, 256 x 768 an image: 3.1 GB for all trials: does not fit (--features-gb)" in output


def test_trials_of_different_length_are_played_to_their_own_ends():
    found = schedule.simulate([[1.0, 1.0], [2.0, 2.0, 2.0], 5.0], 4, 1, prune=False)
    assert found.epochs.tolist() == [2, 3, 4]
    assert found.busy == pytest.approx(2 + 6 + 20 + schedule.START + 2 * schedule.TURNAROUND)


def test_rates_come_from_stages_that_trained_the_backbone_on_single_images():
    config = staged(
        stages=(
            {"epochs": 1, "frozen_backbone": True},
            {"epochs": 2, "frozen_backbone": False, "resolution": 96},
            {"epochs": 1, "fusion": "attention"},
        )
    )
    epochs = [
        EpochRecord(fold=0, stage=stage, epoch=k, images_per_second=speed)
        for k, (stage, speed) in enumerate(((0, 900), (1, 80), (1, 100), (2, 60)))
    ]
    speeds = rates.trained_rates(TrialRecord(name="T0000", state="finished", config=config, epochs=epochs))
    assert [(stage.resolution, speed) for stage, speed in speeds] == [(96, 100.0)]
    assert rates.trained_rates(TrialRecord(name="T0000", state="failed")) == []


def planner(tmp_path, slowness=None, concurrent=1):
    """The plan of the demo's search on 2 cores; slowness: of the rates, as if they were measured."""
    space, storage = load_space("laptop"), Store(str(tmp_path))
    resources = plan_resources(2, 0, cpus_per_trial=0.5, max_concurrent=concurrent)
    made = plan.Planner(space, space.trials, 0, 0, resources, storage, features=10**9)
    if slowness:
        for backbone, rate in (("tf_efficientnet_lite0", 142), ("test_resnet", 815), ("test_convnext", 900)):
            made.rates.note(made.device, backbone, 96, rate / slowness, "probe")
    return made


DEMO = Workload(1098, 167, 335)


@pytest.fixture
def demo(monkeypatch):
    monkeypatch.setattr(plan.Planner, "workload", lambda self, images, others=(): DEMO)
    monkeypatch.setattr(plan, "probe", lambda *_: pytest.fail("rates are known"))


def test_the_demos_search_is_as_it_is_with_ample_time_and_has_two_long_trials_in_little(demo, tmp_path):
    quick, slow = (planner(tmp_path / str(slowness), slowness) for slowness in (1, 4))
    short = quick.fit(240, 1600, fewest=2).size
    assert short.trials == 2
    assert short.epochs >= 8
    alone = quick.fit(240, 1600).size
    assert alone.trials == 1
    assert short.epochs < alone.epochs < 1.8 * short.epochs  # the second is a probe, which takes little
    fit = quick.fit(4000, 1600, fewest=2)
    assert fit.size.full
    assert quick.space.fitted(fit.size) == quick.space
    fit = slow.fit(170, 1600, fewest=2)
    assert fit.fits
    assert (fit.size.trials, fit.size.pixels) == (2, 96)
    space = slow.space.fitted(fit.size)
    assert not space.prune  # both are trained to their end
    drawn = plan.draw_trials(space, 6)
    assert {config.resolution for config in drawn if not config.frozen_backbone} == {96}
    assert plan.draw_trials(space, 2)[0].backbone == "tf_efficientnet_lite0"  # the start points are tried first still


@given(st.floats(30, 3000), st.floats(30, 3000), st.sampled_from([0.3, 1.0, 4.0, 20.0]))
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_the_demos_search_grows_with_its_budget_at_any_speed(demo, tmp_path, one, other, slowness):
    few, many = (planner(tmp_path, slowness).fit(budget, 1600, fewest=2) for budget in sorted((one, other)))
    assert few.size.trials <= many.size.trials
    assert few.size.epochs <= many.size.epochs
    assert few.size.pixels <= many.size.pixels
    for fit, budget in zip((few, many), sorted((one, other)), strict=True):
        assert fit.fits == (fit.seconds <= budget)
        assert fit.size.trials >= 2


def test_rates_that_are_not_known_are_measured_before_a_search_is_fitted_and_not_where_all_of_it_fits_anyway(
    tmp_path, monkeypatch
):
    measured = []

    def probe(configs, findings, threads, gpu, seconds):
        measured.extend((config.backbone, config.resolution) for config in configs)
        assert seconds <= 15
        return rates.Probe("cpu-2", {key: 20.0 for key in measured})

    monkeypatch.setattr(plan, "probe", probe)
    assert planner(tmp_path).fit(1e6, 1600).size.full
    assert not measured
    fit = planner(tmp_path).fit(240, 1600)
    assert measured == [("tf_efficientnet_lite0", 96)]
    assert not fit.size.full
    assert planner(tmp_path).first_rate().source.startswith("scaled from 1 measured")  # kept, for 112 px too


def test_a_space_can_be_capped_to_its_smaller_resolutions():
    space = load_space("laptop")
    assert space.sizes() == [224, 160, 128, 112, 96]
    for pixels, largest in ((112, 112), (96, 96), (10, 96)):
        capped = space.capped(pixels)
        drawn = plan.draw_trials(capped, 20)
        assert max(config.resolution for config in drawn if not config.frozen_backbone) == largest
        assert [point.get("lr") for point in capped.start] == [point.get("lr") for point in space.start]


def test_sizes_that_the_first_trial_does_not_have_are_not_given_up_before_its_epochs(demo, tmp_path):
    slow = planner(tmp_path, 4)
    first = slow.configs[0]
    assert (first.resolution, slow.space.sizes()[0]) == (112, 224)
    fit = slow.fit(100, 1600)
    assert (fit.size.trials, fit.size.pixels) == (1, 96)
    at_8 = [fit for budget in range(280, 440, 20) if (fit := slow.fit(budget, 1600).size).epochs == 8]
    assert {size.pixels for size in at_8} == {224, 96}  # from all sizes at once to the one that saves time


def planned(tmp_path, **shared):
    space = load_space("laptop")
    return plan.Planner(space, 6, 1, 0, plan_resources(64, 8, **shared), Store(str(tmp_path)), "auto", "H100")


@pytest.fixture
def cluster(monkeypatch):
    """A cluster of H100, as far as a plan looks at it."""
    monkeypatch.setattr(plan, "device_name", lambda address, resources: "H100")


def test_a_trial_on_several_devices_is_planned_to_be_faster_and_takes_no_fewer_device_hours(tmp_path, cluster):
    alone, spread, halves = (
        planned(tmp_path, **asked) for asked in ({}, {"workers_per_trial": 4}, {"gpus_per_trial": 0.5})
    )
    config = alone.configs[0]
    seconds = [sum(planner.epoch_seconds(20_000)(config)) for planner in (alone, spread, halves)]
    assert seconds[1] == pytest.approx(seconds[0] / 4)
    assert seconds[2] == pytest.approx(seconds[0] * 2)
    assert alone.devices == spread.devices == halves.devices == 8
    for planner in (spread, halves):
        one = planner.plan(2_000_000).forecasts[0].unpruned
        assert one.busy == pytest.approx(alone.plan(2_000_000).forecasts[0].unpruned.busy, rel=0.1)


@pytest.mark.parametrize(("shared", "share"), [({}, 1), ({"workers_per_trial": 4}, 4), ({"gpus_per_trial": 0.5}, 0.5)])
def test_the_rate_that_is_kept_is_of_one_device(tmp_path, cluster, shared, share):
    planner = planned(tmp_path, **shared)
    config = planner.configs[0].model_copy(update={"frozen_layers": 0})
    record = TrialRecord(name="T0000", state="finished", config=config, environment={"device": "NVIDIA-H100"})
    record.epochs = [EpochRecord(fold=0, stage=0, epoch=0, images_per_second=800.0)]
    planner.keep_rates([Trial(Store(str(tmp_path)), record)])
    assert rates.Rates(Store(str(tmp_path))).rate_of(config.spec(), 40, "H100").rate == pytest.approx(800 / share)
