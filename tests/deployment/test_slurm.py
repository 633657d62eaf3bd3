"""cluster/slurm.sbatch, with stand-ins for Slurm: whom it starts, when it resumes, how it ends. Never submitted."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import write_images

from cxrlt_ray.cluster import start
from cxrlt_ray.runs import store

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "cluster" / "slurm.sbatch"
ARGS = ["mimic", "/shared/runs", "task1", "--data", "/shared/a b", "--trials", "60"]

# what the stand-ins write down: a line a call, the name and its arguments each in <>
NOTE = """#!/bin/bash
echo "$(basename "$0")$(printf ' <%s>' "$@") token=${RAY_AUTH_TOKEN-} $RAY_AUTH_MODE" >>"$CALLS"
"""
STUBS = {
    "scontrol": NOTE + '[ "$1" != show ] || printf "localhost\\nnode2\\nnode3\\n"\n',
    # a node's Ray runs until it is ended
    "srun": NOTE + '[[ "$*" != *"ray start"* ]] || exec sleep 600\n',
    "python": NOTE
    + """case "$*" in
-c*) [ "$(grep -c '<ray> <start>' "$CALLS")" -ge 3 ] ;; # all nodes have joined
"-m cxrlt_ray.trials "*) exit "$RUN_IS_MISSING" ;;
"-m cxrlt_ray.sweep "*)
    [ -z "$LONG" ] && exit "$SWEEP_ENDS"
    trap 'echo "python asked to stop" >>"$CALLS"; sleep 0.5; exit "$SWEEP_ENDS"' TERM
    for _ in {1..600}; do sleep 0.1; done ;;
esac
""",
}


def place(folder: Path) -> tuple[Path, Path]:
    """A folder to submit from, with stand-ins in its .venv, and the file of their calls."""
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / "cluster").symlink_to(ROOT / "cluster")
    for name, text in STUBS.items():
        path = folder / ".venv" / "bin" / name
        path.write_text(text)
        path.chmod(0o755)
    calls = folder / "calls"
    calls.touch()
    return folder, calls


def free_job() -> tuple[int, socket.socket]:
    """A job's number whose port is free, and a socket that listens there in its head's place."""
    for job in range(1000 + os.getpid() % 900, 5000, 7):
        taken = socket.socket()
        try:
            taken.bind(("127.0.0.1", 20000 + job % 4000 * 3))
        except OSError:
            continue
        taken.listen()
        return job, taken
    raise AssertionError("no free port")


@pytest.fixture
def submit(tmp_path):
    """Runs the script as a job with the arguments ARGS; its process, where its stand-ins' calls stand, its number."""
    folder, calls = place(tmp_path / "here")
    job, head = free_job()
    begun = []

    def begin(missing=0, ends=0, long=False, args=ARGS) -> tuple[subprocess.Popen, Path, int]:
        given = {"SLURM_SUBMIT_DIR": folder, "SLURM_JOB_ID": job, "SLURM_JOB_NODELIST": "localhost,node[2-3]"}
        given |= {"SLURM_CPUS_PER_TASK": 16, "CALLS": calls}
        given |= {"RUN_IS_MISSING": missing, "SWEEP_ENDS": ends, "LONG": "yes" if long else ""}
        env = {**os.environ, **{name: str(value) for name, value in given.items()}}
        # in a group of its own, to be ended whole whatever happens
        begun.append(subprocess.Popen(["bash", SCRIPT, *args], env=env, stderr=subprocess.PIPE, start_new_session=True))
        return begun[-1], calls, job

    yield begin
    head.close()
    for process in begun:
        process.stderr.close()
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def lines(calls: Path, start: str) -> list[str]:
    return [line for line in calls.read_text().splitlines() if line.startswith(start)]


def wait_for(calls: Path, start: str) -> None:
    until = time.monotonic() + 30
    while not lines(calls, start):
        assert time.monotonic() < until, calls.read_text()
        time.sleep(0.05)


def test_it_is_a_shell_script_that_slurm_requeues_and_warns_before_its_limit():
    for name in ("slurm.sbatch", "sweep.sh"):
        subprocess.run(["bash", "-n", ROOT / "cluster" / name], check=True)
    text = SCRIPT.read_text()
    asked = re.findall(r"^#SBATCH (\S+)", text, re.MULTILINE)
    assert {"--requeue", "--signal=B:TERM@120", "--open-mode=append", "--ntasks-per-node=1"} <= set(asked)
    # Slurm reads its lines up to the first command
    assert text.index("\nset ") > text.rindex("#SBATCH")


def test_a_head_on_the_first_node_a_worker_on_each_other_and_the_sweep_beside_the_head(submit):
    job, calls, number = submit(missing=2)
    assert job.wait(60) == 0
    port = 20000 + number % 4000 * 3
    begun = [line for line in lines(calls, "srun") if "<ray> <start>" in line]
    (head,) = [line for line in begun if "<--head>" in line]
    workers = [line for line in begun if line != head]
    assert "<--nodelist=localhost>" in head
    assert f"<--head> <--port={port}>" in head
    assert "<--dashboard-host=127.0.0.1>" in head
    assert sorted(re.search(r"--nodelist=(\w+)", line)[1] for line in workers) == ["node2", "node3"]
    for line in workers:
        assert f"<--address=localhost:{port}>" in line
    for line in (head, *workers):
        assert "<--overlap> <--nodes=1> <--ntasks=1> <--cpus-per-task=16>" in line
        assert f"<--temp-dir=/tmp/ray-{number}>" in line
        assert "<--block>" in line
    (sweep,) = lines(calls, "python <-m> <cxrlt_ray.sweep>")
    wanted = f"<task1> <--data> </shared/a b> <--trials> <60> <--address> <localhost:{port}>"
    assert f"{wanted} <--name> <mimic> <--storage> </shared/runs> token" in sweep
    assert f"<rm> <-rf> </tmp/ray-{number}>" in lines(calls, "srun")[-1]
    assert not lines(calls, "scontrol <requeue>")


def test_every_process_gets_the_jobs_own_token_and_no_command_line_shows_it(submit):
    tokens = set()
    for _ in range(2):
        job, calls, _ = submit()
        assert job.wait(60) == 0
        found = re.findall(
            r"token=(\w*) (\w*)$", "\n".join(lines(calls, "srun") + lines(calls, "python")), re.MULTILINE
        )
        assert {mode for _, mode in found} == {"token"}
        (token,) = {token for token, _ in found}
        assert re.fullmatch(r"[0-9a-f]{64}", token)
        assert f"<{token}" not in calls.read_text()
        tokens.add(token)
        calls.write_text("")
    assert len(tokens) == 2


@pytest.mark.parametrize(("missing", "resumes"), [(0, True), (2, False)])
def test_a_run_that_is_there_is_resumed_and_one_that_is_not_is_begun(submit, missing, resumes):
    job, calls, _ = submit(missing=missing)
    assert job.wait(60) == 0
    assert lines(calls, "python <-m> <cxrlt_ray.trials>")[0].startswith(
        "python <-m> <cxrlt_ray.trials> <mimic> <--storage> </shared/runs>"
    )
    assert ("<--resume>" in lines(calls, "python <-m> <cxrlt_ray.sweep>")[0]) is resumes


def test_before_the_limit_the_sweep_is_asked_to_stop_waited_for_and_the_job_requeued_last(submit):
    job, calls, number = submit(ends=1, long=True)
    wait_for(calls, "python <-m> <cxrlt_ray.sweep>")
    time.sleep(0.3)
    job.send_signal(signal.SIGTERM)
    assert job.wait(60) == 1
    told = calls.read_text().splitlines()
    assert "python asked to stop" in told
    assert told[-1].startswith(f"scontrol <requeue> <{number}>")
    assert told.index("python asked to stop") < next(k for k, line in enumerate(told) if "<rm> <-rf>" in line)


@pytest.mark.parametrize(("signalled", "ends"), [(True, 0), (False, 1)])
def test_a_sweep_that_ended_is_not_requeued(submit, signalled, ends):
    """One that was done when it was asked to stop, and one that failed by itself."""
    job, calls, _ = submit(ends=ends, long=signalled)
    if signalled:
        wait_for(calls, "python <-m> <cxrlt_ray.sweep>")
        time.sleep(0.3)
        job.send_signal(signal.SIGTERM)
    assert job.wait(60) == ends
    assert not lines(calls, "scontrol <requeue>")


def test_nothing_of_it_runs_on(submit):
    job, _, _ = submit()
    assert job.wait(60) == 0
    with pytest.raises(ProcessLookupError):
        os.killpg(job.pid, 0)


def test_without_a_task_it_says_how_it_is_called(submit):
    job, calls, _ = submit(args=["mimic", "/shared/runs"])
    assert job.wait(60) == 2
    assert b"usage: sbatch cluster/slurm.sbatch NAME STORAGE TASK" in job.stderr.read()
    assert calls.read_text() == ""


def test_its_ray_is_given_what_a_ray_of_our_own_is_given():
    given = dict(re.findall(r"(\w+)=(\w+)", re.search(r"^export (RAY_idle.*)$", SCRIPT.read_text(), re.MULTILINE)[1]))
    assert given == {name: start.ENVIRONMENT[name] for name in given}
    assert len(given) == 2


SPACE = """
trials: 2
epochs: 60
prune: false
parameters:
  backbone: test_convnext
  pretrained: false
  resolution: 32
  batch_size: 8
  lr: {low: 1e-3, high: 1e-2}
"""


@pytest.mark.slow
def test_real_ray_on_two_nodes_is_stopped_at_the_limit_and_goes_on_in_the_next_job(tmp_path):
    """Only Slurm is played: srun runs its command here."""
    stubs, here, storage = tmp_path / "stubs", tmp_path / "here", tmp_path / "runs"
    for folder in (stubs, here):
        folder.mkdir()
    (stubs / "scontrol").write_text(NOTE + '[ "$1" != show ] || printf "localhost\\nlocalhost\\n"\n')
    (stubs / "srun").write_text(NOTE + 'while [[ "$1" == --* ]]; do shift; done; exec "$@"\n')
    for stub in stubs.iterdir():
        stub.chmod(0o755)
    (here / "cluster").symlink_to(ROOT / "cluster")
    (here / ".venv").symlink_to(sys.prefix)
    manifest = write_images(tmp_path / "images", 48)
    manifest.table[["image_id", "path", "subject_id", "study_id", "view", "split", "Mass", "Nodule"]].to_csv(
        tmp_path / "images" / "labels.csv", index=False
    )
    (here / "search_spaces").mkdir()
    (here / "search_spaces" / "tiny.yaml").write_text(SPACE)
    number, head = free_job()
    head.close()
    calls = tmp_path / "calls"
    given = {"SLURM_SUBMIT_DIR": here, "SLURM_JOB_ID": number, "SLURM_JOB_NODELIST": "two", "SLURM_CPUS_PER_TASK": 1}
    given |= {"CALLS": calls, "PATH": f"{stubs}:{os.environ['PATH']}", "HOME": tmp_path}
    env = {**os.environ, **{name: str(value) for name, value in given.items()}}
    words = ["limit", storage, "auto", "--data", tmp_path / "images", "--space", "tiny"]
    command = ["bash", SCRIPT, *words, "--ingest", "threads"]

    def submit(out: str) -> subprocess.Popen:
        with (tmp_path / out).open("w") as file:
            return subprocess.Popen(command, env=env, stdout=file, stderr=file, start_new_session=True)

    def epochs() -> int:
        try:
            return sum(len(trial.record.epochs) for trial in store.load_run(str(storage), "limit").trials())
        except Exception:  # not there yet
            return 0

    first = submit("first")
    try:
        until = time.monotonic() + 150
        while epochs() < 2:
            assert time.monotonic() < until, (tmp_path / "first").read_text()
            assert first.poll() is None, (tmp_path / "first").read_text()
            time.sleep(0.2)
        first.send_signal(signal.SIGTERM)
        assert first.wait(120) != 0
        assert calls.read_text().splitlines()[-1].startswith(f"scontrol <requeue> <{number}>")
        assert not Path(f"/tmp/ray-{number}").exists()
        before = epochs()
        assert before < 120
        second = submit("second")
        assert second.wait(300) == 0, (tmp_path / "second").read_text()
    finally:
        for process in (first, *([second] if "second" in locals() else [])):
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        shutil.rmtree(f"/tmp/ray-{number}", ignore_errors=True)
    done = store.load_run(str(storage), "limit").trials()
    assert [trial.state for trial in done] == ["finished", "finished"]
    assert [[epoch.epoch for epoch in trial.record.epochs] for trial in done] == [list(range(60))] * 2
