"""Ray workers that are there at once: forks of a process that has imported torch, Ray Tune and this package.

A Ray worker is a new interpreter, which imports for 5 to 30 s what a trial needs; a sweep needs one or two of them. In
the session's Ray they are forked instead, with their own environment, arguments and files; what runs in them, how Ray
starts, watches and kills them is the same. `python warm_workers.py setup_worker.py ... default_worker.py ...`, as Ray
calls its interpreter, asks the process that has imported everything for a fork, and lasts as long as the fork does.
"""

from __future__ import annotations

import os
import sys

SOCKET = "CXRLT_RAY_WARM_WORKERS"  # environment: path of the socket where forks are asked for
WORKER = "default_worker.py"
SETUP = ("--serialized-runtime-env-context", "--language")
IMPORTS = (
    "cv2",
    "pandas",
    "pyarrow.parquet",
    "timm",
    "torch",
    "ray._private.workers.default_worker",
    "ray.data",
    "ray.train.torch",
    "ray.tune.trainable.function_trainable",
    "ray.tune.integration.ray_train",
    "cxrlt_ray.data.prepare",
    "cxrlt_ray.search.trainable",
    "cxrlt_ray.training.trial",
)


def launcher(folder: str) -> str:
    """Write the script that stands in for the interpreter with which Ray starts its processes; its path."""
    path = os.path.join(folder, "python")
    with open(path, "w") as file:
        file.write(f'#!/bin/sh\nexec "{sys.executable}" -S -E "{os.path.abspath(__file__)}" "{sys.executable}" "$@"\n')
    os.chmod(path, 0o700)
    os.environ[SOCKET] = os.path.join(folder, "socket")
    return path


def ask(interpreter: str, words: list[str]) -> None:
    """Have a worker forked and wait for its end; what is no plain worker is started as Ray would."""
    import json
    import socket

    at = next((k for k, word in enumerate(words) if word.endswith(WORKER)), None)
    # arguments for setup_worker.py, which prepares a worker's environment and then is the worker
    options = dict(word.partition("=")[::2] for word in words if word.startswith(SETUP))
    context = json.loads(options.get(SETUP[0]) or "{}")
    prepared = {key: value for key, value in context.items() if key not in ("env_vars", "py_executable")}
    if at is None or any(prepared.values()) or context.get("py_executable", interpreter) != interpreter:
        os.execv(interpreter, [interpreter, *words])
    environ = {**os.environ, **(context.get("env_vars") or {})}
    argv = [word for word in words[at:] if not word.startswith(SETUP)]
    with socket.socket(socket.AF_UNIX) as connection:
        _connect(connection, interpreter)
        request = json.dumps({"argv": argv, "environ": environ, "cwd": os.getcwd()}).encode()
        socket.send_fds(connection, [len(request).to_bytes(8, "big")], [0, 1, 2])
        connection.sendall(request)
        connection.recv(1)  # nothing comes; it is closed when the worker ends


def _connect(connection, interpreter: str) -> None:
    """Connect to the process that forks; the first that asks starts it, with the environment that Ray gives it."""
    import fcntl
    import subprocess

    path = os.environ[SOCKET]
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            connection.connect(path)
        except OSError:
            ready, started = os.pipe()
            subprocess.Popen(
                [interpreter, os.path.abspath(__file__), "--serve", path, str(started)],
                pass_fds=[started],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            os.close(started)
            os.read(ready, 1)  # it listens; it has not imported yet
            connection.connect(path)


def serve(path: str, started: int) -> None:
    """Import, then fork a worker for whoever asks, until the process that started Ray is gone."""
    import importlib
    import json
    import signal
    import socket

    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen(64)
    os.write(started, b"1")
    os.close(started)
    for name in IMPORTS:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended forks leave nothing
    while True:
        listening.settimeout(5)
        try:
            connection, _ = listening.accept()
        except TimeoutError:
            if not os.path.exists(f"{path}.lock"):  # the session has removed its folder
                return
            continue
        connection.settimeout(None)
        head, files, _, _ = socket.recv_fds(connection, 8, 3)
        length, content = int.from_bytes(head, "big"), b""
        while len(content) < length:
            content += connection.recv(length - len(content))
        if os.fork() == 0:
            os.setsid()  # Ray may end a worker's process group
            listening.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _become(json.loads(content), files)
        for file in files:
            os.close(file)
        connection.close()


def _become(request: dict, files: list[int]) -> None:
    """Be the worker that was asked for."""
    import runpy

    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["environ"])
    os.chdir(request["cwd"])
    sys.argv = request["argv"]
    sys.path[0] = os.path.dirname(request["argv"][0])
    code = 1
    try:
        runpy.run_path(request["argv"][0], run_name="__main__")
        code = 0
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(sys.argv[2], int(sys.argv[3]))
    else:
        ask(sys.argv[1], sys.argv[2:])
