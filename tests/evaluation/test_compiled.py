"""Compiled code has a place where neither the package nor a home can be written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cxrlt_ray

NOBODY = 65534
SELECT = """
import numpy as np, os
from cxrlt_ray.selection.average_precision import precision
print(*precision(np.array([[0.9], [0.1], [0.8]]), np.array([[1], [0], [0]])))
print(os.environ.get("NUMBA_CACHE_DIR", ""))
"""


@pytest.mark.skipif(os.getuid() != 0 or shutil.which("setpriv") is None, reason="needs root, to become another user")
def test_a_user_without_a_home_and_a_package_that_is_read_only():
    """As `docker run --user 2000` or a read-only image has it."""
    temporary = Path("/tmp") / f"cxrlt-compiled-{os.urandom(4).hex()}"  # pytest's own directories are root's alone
    temporary.mkdir()
    os.chown(temporary, NOBODY, NOBODY)
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(Path(cxrlt_ray.__file__).parents[1])}
    for name in ("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR"):
        environment.pop(name, None)
    command = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", sys.executable, "-c", SELECT]
    try:
        reached = subprocess.run([*command[:4], "test", "-r", cxrlt_ray.__file__], check=False).returncode == 0
        if not reached:
            pytest.skip("other users cannot read this checkout")
        done = subprocess.run(command, cwd=temporary, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-500:]
        score, cache = done.stdout.split()
        assert score == "1.0"
        assert cache == str(temporary / f"cxrlt_ray-{NOBODY}" / "numba")
        assert list(Path(cache).rglob("*.nbi"))
        assert Path(cache).stat().st_mode & 0o777 == 0o700
    finally:
        shutil.rmtree(temporary)


def test_where_numba_finds_a_place_none_is_given(monkeypatch):
    from cxrlt_ray.evaluation import compiled

    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    assert compiled.temporary_cache() is None
    assert "NUMBA_CACHE_DIR" not in os.environ
