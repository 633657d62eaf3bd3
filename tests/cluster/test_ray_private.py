"""What the package uses of Ray's private parts is where it was, and is called as it is there."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

import cxrlt_ray
from cxrlt_ray.cluster import ray_private

PACKAGE = Path(cxrlt_ray.__file__).parent
# module, name, then positional and keyword arguments as ray_private passes them
CALLS = [
    ("ray.experimental.internal_kv", "_internal_kv_put", (b"key", b"value"), {"namespace": b"n"}),
    ("ray.experimental.internal_kv", "_internal_kv_get", (b"key",), {"namespace": b"n"}),
    ("ray.experimental.internal_kv", "_internal_kv_list", (b"key",), {"namespace": b"n"}),
    ("ray.experimental.internal_kv", "_internal_kv_del", (b"key",), {"del_by_prefix": True, "namespace": b"n"}),
    ("ray._private.state", "available_resources_per_node", (), {}),
    ("ray._private.authentication.authentication_utils", "is_token_auth_enabled", (), {}),
    ("ray.train.torch.TorchTrainer", "_create_default_callbacks", (None,), {}),
]
VALUES = [
    ("ray._private.ray_constants", "ENABLE_RAY_CLUSTER"),
    ("ray._private.worker", "_global_node"),
    ("ray._private.node.Node", "webui_url"),
    ("ray.train.v2._internal.callbacks.placement_group_callback", "PlacementGroupCleanerCallback"),
]


def part(owner, name):
    """The attribute `name` of a module or class; fails with a sentence that says which is missing."""
    missing = f"Ray has no {owner}.{name} any more: cxrlt_ray/cluster/ray_private.py uses it"
    try:
        found = importlib.import_module(owner)
    except ModuleNotFoundError:
        module, _, kind = owner.rpartition(".")
        try:
            found = getattr(importlib.import_module(module), kind)
        except (ModuleNotFoundError, AttributeError):
            pytest.fail(missing)
    if not hasattr(found, name):
        pytest.fail(missing)
    return getattr(found, name)


@pytest.mark.parametrize(("owner", "name", "arguments", "keywords"), CALLS)
def test_private_functions_take_what_we_pass(owner, name, arguments, keywords):
    signature = inspect.signature(part(owner, name))
    try:
        signature.bind(*arguments, **keywords)
    except TypeError as error:
        pytest.fail(f"Ray's {owner}.{name}{signature} is called otherwise by ray_private.py: {error}")


@pytest.mark.parametrize(("owner", "name"), VALUES)
def test_private_attributes_are_where_they_were(owner, name):
    part(owner, name)


def test_the_loopback_is_chosen_by_the_attribute_that_ray_reads(monkeypatch):
    from ray._private import ray_constants, services

    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
    ray_private.listen_on_loopback()
    assert services.get_node_ip_address() == "127.0.0.1"


def test_ray_still_reads_its_private_directory_option_and_environment():
    import ray
    from ray._private import ray_constants, worker
    from ray._private.accelerators import accelerator

    from cxrlt_ray.cluster.start import ENVIRONMENT, LOOPBACK

    (option,) = ray_private.directory_option("/tmp/somewhere")
    assert f'"{option}"' in inspect.getsource(worker.init), f"ray.init knows no {option}"
    assert ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR in LOOPBACK
    assert accelerator.RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO_ENV_VAR in ENVIRONMENT
    library = Path(ray.__file__).parent
    assert "RAY_AIR_NEW_OUTPUT" in (library / "tune/experimental/output.py").read_text()
    assert "RAY_DATA_LOG_LEVEL" in (library / "data/_internal/logging.py").read_text()
    core = (library / "core/src/ray/raylet/raylet").read_bytes()  # options of Ray's C++ are in no Python file
    for name in (
        "idle_worker_killing_time_threshold_ms",
        "num_workers_soft_limit",
        "worker_niceness",
        "RAY_BACKEND_LOG_LEVEL",
    ):
        assert name.encode() in core, f"Ray's core knows no {name}"


def test_the_progress_logger_is_one_of_rays_modules():
    importlib.import_module(ray_private.PROGRESS_LOGGER)


def test_asha_is_told_results_and_decides_as_its_rungs_say():
    from ray.tune.schedulers import ASHAScheduler, TrialScheduler

    scheduler = ASHAScheduler("epoch", metric="m", mode="max", max_t=9, grace_period=1, reduction_factor=2)
    assert ray_private.asha_max_epochs(scheduler) == 9
    decisions = [ray_private.asha_decision(scheduler, f"t{k}", 1, value) for k, value in enumerate((0.5, 0.6, 0.1))]
    assert decisions == [TrialScheduler.CONTINUE, TrialScheduler.CONTINUE, TrialScheduler.STOP]


def test_a_trial_says_which_actor_runs_it_and_where_its_error_is():
    from ray.tune.experiment import Trial

    trial = Trial("trainable", stub=True)
    assert ray_private.trial_actor(trial) is None
    assert ray_private.trial_error_file(trial) is None
    trial.temporary_state.ray_actor = "actor"
    assert ray_private.trial_actor(trial) == "actor"
    assert type(trial).error_file.fget, "Tune's trials have no error_file any more"
    assert ray_private.trial_error_file(None) is None


@pytest.fixture
def controller(tmp_path, monkeypatch):
    """Tune's controller of trials that no Ray runs."""
    from ray.tune.execution import tune_controller
    from ray.tune.schedulers import FIFOScheduler
    from ray.tune.search import BasicVariantGenerator

    monkeypatch.setattr(tune_controller, "PlacementGroupResourceManager", lambda: None)
    monkeypatch.setattr(tune_controller, "_get_max_pending_trials", lambda search: 1)
    return tune_controller.TuneController(search_alg=BasicVariantGenerator(), scheduler=FIFOScheduler())


def ended_trial(controller, status):
    from ray.tune.experiment import Trial

    trial = Trial("trainable", stub=True)
    trial.create_placement_group_factory = lambda: None
    controller.add_trial(trial)
    for following in (Trial.RUNNING, status):
        controller._set_trial_status(trial, following)
    controller._trial_metadata[trial.trial_id] = "its state as JSON"
    return trial


def holders(controller, trial):
    """The attributes of Tune's controller in which a trial stands, by itself or by its id."""
    kept = {name: value for name, value in vars(controller).items() if isinstance(value, (dict, list, set))}
    return sorted(name for name, value in kept.items() if trial in value or trial.trial_id in value)


def test_tunes_controller_has_the_attributes_that_are_emptied(controller):
    names = set(re.findall(r"controller\.(_\w+)", inspect.getsource(ray_private.forget_ended_trials)))
    assert len(names) > 5
    missing = sorted(name for name in names if not hasattr(controller, name))
    assert not missing, f"Ray's TuneController has no {', '.join(missing)} any more: forget_ended_trials uses it"


@pytest.mark.parametrize("status", ["TERMINATED", "ERROR"])
def test_tune_forgets_a_trial_that_has_ended_wherever_it_kept_it(controller, status):
    ended = ended_trial(controller, status)
    running = ended_trial(controller, "RUNNING")
    seen_by_callbacks = controller._trials
    before = holders(controller, ended)
    assert {"_trials", "_trial_metadata"} < set(before), f"Tune keeps trials elsewhere now: {before}"
    assert ray_private.forget_ended_trials(controller._wrapped()) == 1
    assert holders(controller, ended) == []
    assert {"_trials", "_running_trials"} < set(holders(controller, running))
    assert seen_by_callbacks == [running]
    assert ray_private.forget_ended_trials(controller) == 0


@pytest.mark.parametrize("where", ["_trial_to_actor", "_staged_trials", "_resetting_trials"])
def test_tune_keeps_an_ended_trial_whose_actor_is_still_in_its_hands(controller, where):
    ended = ended_trial(controller, "TERMINATED")
    kept = getattr(controller, where)
    kept.update({ended: None} if isinstance(kept, dict) else {ended})
    assert ray_private.forget_ended_trials(controller) == 0
    kept.clear()
    assert ray_private.forget_ended_trials(controller) == 1


def test_no_callback_of_tunes_own_is_added_that_would_keep_every_trial():
    from ray.tune.utils.callback import _create_default_callbacks

    own = ray_private.silent_progress()
    assert _create_default_callbacks([own], air_verbosity=None)[0] is own
    kinds = [type(callback).__name__ for callback in _create_default_callbacks([own], air_verbosity=None)]
    assert "TrialProgressCallback" not in kinds
    for hook in (own.on_trial_result, own.on_trial_complete, own.on_trial_error):
        hook(iteration=1, trials=[], trial="trial", result={})
    assert not any(vars(own)[name] for name in ("_last_print", "_completed_trials", "_last_result_str"))


def test_the_schedulers_of_a_sweep_let_tune_forget_at_every_step(controller):
    from cxrlt_ray.search.asha import ForgetfulScheduler, ResumableASHA

    for scheduler in (ForgetfulScheduler(), ResumableASHA("epoch", metric="m", mode="max")):
        ended_trial(controller, "TERMINATED")
        assert scheduler.choose_trial_to_run(controller._wrapped()) is None
        assert controller._trials == []


def test_the_trainer_lacks_only_the_cleaner_of_placement_groups():
    from ray.train.torch import TorchTrainer

    own = ray_private.torch_trainer_without_cleaner()(lambda: None)._create_default_callbacks()
    theirs = TorchTrainer(lambda: None)._create_default_callbacks()
    names = [[type(callback).__name__ for callback in callbacks] for callbacks in (own, theirs)]
    assert names[0] == [name for name in names[1] if name != "PlacementGroupCleanerCallback"]
    assert len(names[0]) == len(names[1]) - 1


def test_the_key_value_store_keeps_lists_and_deletes(ray):
    space = b"test_ray_private"
    ray_private.put_value(b"a/1", b"one", space)
    ray_private.put_value(b"a/2", b"two", space)
    ray_private.put_value(b"b/1", b"three", space)
    assert sorted(ray_private.list_keys(b"a/", space)) == [b"a/1", b"a/2"]
    assert ray_private.get_value(b"a/2", space) == b"two"
    ray_private.delete_keys(b"a/", space)
    assert ray_private.list_keys(b"", space) == [b"b/1"]
    assert ray_private.get_value(b"a/2", space) is None
    ray_private.delete_keys(b"", space)


def test_a_ray_of_ones_own_has_a_token_free_resources_and_no_dashboard(ray):
    assert ray_private.dashboard_url() == ""
    assert ray_private.requires_token()
    (resources,) = ray_private.free_resources_by_node().values()
    assert resources["CPU"] > 0


def private_uses(path):
    """(line, text) where a file names a private part of Ray: a module with an underscore, or an attribute so used."""
    lines = path.read_text().splitlines()
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute) and re.match(r"_(?!_)", node.attr):
            names = [f"ray.{node.attr}"] if f"{node.attr}" in PRIVATE_NAMES else []
        else:
            continue
        private = [name for name in names if re.match(r"ray\.(.*\.)?_(?!_)", name) or "internal_kv" in name]
        yield from ((node.lineno, name) for name in private)


PRIVATE_NAMES = {
    *(name for _, name, *_ in CALLS),
    *(name for _, name in VALUES),
    *("_brackets", "_max_t", "_rungs", "_trial_info", "_temp_dir", "_private", "_internal"),
}


def test_no_other_module_of_the_package_names_a_private_part_of_ray():
    own = Path(ray_private.__file__)
    uses = [
        f"{path.relative_to(PACKAGE)}:{line} {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path != own
        for line, name in private_uses(path)
    ]
    assert not uses
