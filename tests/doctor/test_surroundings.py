"""What the doctor says of the driver's surroundings."""

from __future__ import annotations

import os

import pytest

from cxrlt_ray import doctor
from cxrlt_ray.doctor import surroundings
from cxrlt_ray.doctor.check import OK, WARN


def only(checks):
    (check,) = checks
    assert bool(check.mend) == (check.state != OK)
    return check


@pytest.mark.parametrize(
    ("encoding", "state"), [("utf-8", OK), ("UTF8", OK), ("ascii", WARN), ("latin-1", WARN), (None, WARN)]
)
def test_an_output_that_is_not_utf_8_is_a_warning(encoding, state):
    assert only(surroundings._terminal(encoding)).state == state


@pytest.mark.parametrize("home", ["", "/proc", "/no/such/folder"])
def test_a_home_that_is_not_set_or_cannot_be_written_is_a_warning(home):
    check = only(surroundings._home({"HOME": home} if home else {}))
    assert (check.state, home in check.message) == (WARN, True)
    assert "HF_HOME" in check.mend


def test_a_home_of_ones_own_is_well(tmp_path):
    assert only(surroundings._home({"HOME": str(tmp_path)})).state == OK
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_directory_too_long_for_sockets_is_a_warning_with_where_they_go(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    long = tmp_path / ("x" * 100)
    long.mkdir()
    for folder, state in ((long, WARN), ("/tmp", OK)):
        monkeypatch.setattr(surroundings.tempfile, "tempdir", str(folder))
        check = only(surroundings._temporary(str(folder)))
        assert check.state == state
        assert f"/tmp/cxrlt_ray-{os.getuid()}/ray" in check.message


def test_a_proxy_is_named_without_its_password():
    check = only(surroundings._proxy({"https_proxy": "http://me:secret@proxy:3128"}))
    assert (check.state, "https_proxy" in check.message, "secret" in str(check)) == (OK, True, False)
    assert list(surroundings._proxy({})) == []


def raylet(proc, process, parent):
    (proc / process).mkdir(parents=True)
    (proc / process / "stat").write_text(f"{process} (raylet) S {parent} 1 1")
    (proc / process / "cmdline").write_bytes(b"/venv/ray/core/src/ray/raylet/raylet\0--temp_dir=/tmp/ray\0")


def test_other_rays_of_the_machine_are_counted_and_our_own_is_not(tmp_path):
    raylet(tmp_path, "11", os.getpid())
    assert list(surroundings._other_rays(tmp_path, None)) == []
    raylet(tmp_path, "12", 1)
    check = only(surroundings._other_rays(tmp_path, None))
    assert (check.state, check.message.startswith("1 runs on this machine")) == (WARN, True)
    assert list(surroundings._other_rays(tmp_path, "auto")) == []


def test_each_check_is_shown_on_the_page():
    names = [check.name for check in surroundings.examine_surroundings(None)]
    assert set(names) <= set(doctor.GROUPS["Surroundings"])
    assert {"terminal", "home", "temporary files", "compiled code"} <= set(names)
