"""All that the package uses of Ray's private parts, behind functions of its own.

Ray may move any of it in a minor release, so pyproject.toml caps Ray below the next one. Before the cap is raised,
tests/cluster/test_ray_private.py says what is missing and what is called otherwise.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder
from types import SimpleNamespace
from typing import Any

PROGRESS_LOGGER = "ray.data._internal.progress"  # warns that progress bars are off


def listen_on_loopback() -> None:
    """Let a Ray that this process starts listen on 127.0.0.1 alone; LOOPBACK does so before Ray is imported."""
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = False


def directory_option(path: str) -> dict[str, str]:
    """The option of `ray.init` that puts sockets, logs and spilled objects below `path`."""
    return {"_temp_dir": path}


def job_of_this_package() -> Any:
    """A JobConfig whose workers find this package and do not look for modules in the driver's working folder.

    Ray puts that folder first on their path: a file torch.py or csv.py there would be imported for the library. It
    stays only where the package itself is found nowhere else.
    """
    from ray.job_config import JobConfig

    folder = os.path.realpath(os.curdir)
    others = [path for path in sys.path if os.path.realpath(path or os.curdir) != folder]
    paths = [] if PathFinder.find_spec("cxrlt_ray", others) else [folder]

    class PackageJob(JobConfig):
        @property
        def _py_driver_sys_path(self) -> list[str]:
            return list(paths)  # what Ray adds to it is lost

        @_py_driver_sys_path.setter
        def _py_driver_sys_path(self, value: list[str]) -> None:
            pass

    return PackageJob()


def started_address() -> str | None:
    """HOST:PORT of the Ray that `ray start` last started on this machine, be it gone or not; None without one."""
    from ray._private import services

    return services.find_bootstrap_address(None)


def dashboard_url() -> str:
    """Where the dashboard of the joined cluster listens, or nothing."""
    from ray._private import worker

    return getattr(worker._global_node, "webui_url", None) or ""


def requires_token() -> bool:
    """Whether Ray asks for an authentication token, by this process's environment."""
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    return is_token_auth_enabled()


def free_resources_by_node() -> dict[str, dict[str, float]]:
    """Node id -> free resources of that node by kind."""
    from ray._private.state import available_resources_per_node

    return available_resources_per_node()


def put_value(key: bytes, value: bytes, namespace: bytes) -> None:
    """Write to the cluster's key-value store."""
    from ray.experimental import internal_kv

    internal_kv._internal_kv_put(key, value, namespace=namespace)


def get_value(key: bytes, namespace: bytes) -> bytes | None:
    """The value of `key` in the cluster's key-value store; None where there is none."""
    from ray.experimental import internal_kv

    return internal_kv._internal_kv_get(key, namespace=namespace)


def list_keys(prefix: bytes, namespace: bytes) -> list[bytes]:
    """The keys of the cluster's key-value store that begin with `prefix`."""
    from ray.experimental import internal_kv

    return internal_kv._internal_kv_list(prefix, namespace=namespace)


def delete_keys(prefix: bytes, namespace: bytes) -> None:
    """Delete the keys of the cluster's key-value store that begin with `prefix`."""
    from ray.experimental import internal_kv

    internal_kv._internal_kv_del(prefix, del_by_prefix=True, namespace=namespace)


def asha_decision(scheduler: Any, trial_id: str, epoch: int, value: float) -> str:
    """What an ASHAScheduler with one bracket decides on a trial's result, which it records: STOP or CONTINUE."""
    return scheduler._brackets[0].on_result(SimpleNamespace(trial_id=trial_id), epoch, value)


def asha_max_epochs(scheduler: Any) -> int:
    """The max_t of an ASHAScheduler."""
    return scheduler._max_t


def forget_ended_trials(controller: Any) -> int:
    """Let a TuneController, as schedulers are given it, forget the trials that have ended; how many it forgot.

    Tune keeps each trial with its results and its JSON until the sweep ends, and writes all of them to disk every few
    seconds. One whose actor is still about to change hands stays until the next call.
    """
    controller = getattr(controller, "_tune_controller", controller)
    busy = controller._trial_to_actor.keys() | controller._staged_trials | controller._resetting_trials
    ended = (controller._stopped_trials | controller._failed_trials) - busy
    if not ended:
        return 0
    for trials in (
        controller._stopped_trials,
        controller._failed_trials,
        controller._live_trials,
        controller._trials_to_cache,
    ):
        trials -= ended
    for trial in ended:
        controller._trial_metadata.pop(trial.trial_id, None)
    for kept in (controller._trials, controller._pending_trials_list):  # callbacks and schedulers hold the first
        kept[:] = [trial for trial in kept if trial not in ended]
    return len(ended)


def silent_progress() -> Any:
    """A Tune callback in the place of Tune's own, which prints nothing at verbosity 0 and yet keeps every trial."""
    from ray.tune.progress_reporter import TrialProgressCallback

    class SilentProgress(TrialProgressCallback):
        def on_trial_result(self, *trial: Any, **info: Any) -> None:
            pass

        def on_trial_complete(self, *trial: Any, **info: Any) -> None:
            pass

        def on_trial_error(self, *trial: Any, **info: Any) -> None:
            pass

    return SilentProgress()


def trial_actor(trial: Any) -> Any:
    """The actor that runs a Tune trial; None where none does."""
    return trial.temporary_state.ray_actor


def trial_error_file(trial: Any) -> str | None:
    """The file in which Tune keeps the traceback of a trial's last failure."""
    return getattr(trial, "error_file", None)


def torch_trainer_without_cleaner() -> Any:
    """Ray's TorchTrainer class without its cleaner of placement groups, a process that outlives its trial.

    The cleaner asks the dashboard whether the trial lives. Where Ray has none, the cleaner stays, with the group's CPUs
    and GPUs, until the sweep ends; search/watchdog.py removes the groups instead.
    """
    from ray.train.torch import TorchTrainer

    class GroupTrainer(TorchTrainer):
        def _create_default_callbacks(self) -> Any:
            callbacks = super()._create_default_callbacks()  # type: ignore[misc]
            return [callback for callback in callbacks if type(callback).__name__ != "PlacementGroupCleanerCallback"]

    return GroupTrainer
