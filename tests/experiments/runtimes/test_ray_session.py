"""A Ray that is started here takes nobody else's code, and leaves nothing behind."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import experiments.runtimes.ray_session as ray_session
from experiments.runtimes.ray_session import environment, private_session

ROOT = Path(__file__).resolve().parents[3]
JOIN = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
print("it ran:", ray.get(ray.remote(lambda: "code").remote()))
"""
START = """
import os, sys
from experiments.runtimes.ray_session import end_sessions
from experiments.runtimes.ray import ray_cluster
from experiments.settings import composed
from fedpgp.config import RuntimeSection
runtime = RuntimeSection.of(composed(["runtime.workers=64"])["runtime"])
with ray_cluster(runtime, "cpu", 2) as workers:
    import ray
    address = ray.get_runtime_context().gcs_address
    print("up", address, os.environ["RAY_AUTH_TOKEN"], workers.count, flush=True)
    if "at once" in sys.stdin.readline():
        end_sessions()
        os._exit(1)
print("token" if "RAY_AUTH_TOKEN" in os.environ else "the environment is as before")
"""


def process(code: str, *arguments: str, **variables: str) -> subprocess.Popen:
    """Python that knows no token but what it is told."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name == "RAY_TMPDIR" or not name.startswith("RAY_")
    }
    own = {"PYTHONPATH": str(ROOT), **variables}
    streams = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
    command = [sys.executable, "-u", "-c", code, *arguments]
    return subprocess.Popen(
        command, env={**kept, **own}, stderr=subprocess.STDOUT, text=True, **streams
    )


def alive(family: list[psutil.Process]) -> list[psutil.Process]:
    return [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def started(code: str) -> tuple[subprocess.Popen, str, str, int]:
    """(process, address, token, workers) of a session in a process of its own."""
    owner = process(code)
    for line in owner.stdout:
        if line.startswith("up "):
            _, address, token, workers = line.split()
            return owner, address, token, int(workers)
    pytest.fail("it did not start")


@pytest.fixture
def sessions(tmp_path_factory, monkeypatch) -> Path:
    """A folder for temporary files of these tests alone; its path is short, for sockets below
    it."""
    folder = Path(f"/tmp/{os.getpid()}")
    folder.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    yield folder
    for left in folder.iterdir():
        ray_session.remove_session(left)
    folder.rmdir()


WITH_TOKEN = "import os; os.environ['RAY_AUTH_MODE'] = 'token'; import ray"


def test_a_program_that_imported_ray_before_is_told_what_to_do(sessions):
    """Ray has read by then that it asks for no token. Nothing starts."""
    owner = process("import ray" + START)
    said, _ = owner.communicate("end\n", timeout=60)
    assert owner.returncode == 1 and "set RAY_AUTH_MODE=token before `import ray`" in said
    assert not list(sessions.iterdir())


@pytest.mark.parametrize("before", ["", WITH_TOKEN])
def test_nobody_joins_without_the_token(sessions, before):
    """Nor enters the session's folder, nor comes over the network."""
    owner, address, token, workers = started(before + START)
    assert workers == 2, "no more workers than clients"
    (folder,) = sessions.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    family = psutil.Process(owner.pid).children(recursive=True)
    assert not any(token in word for one in family for word in one.cmdline())
    doors = [
        c.laddr.ip
        for one in family
        for c in one.net_connections()
        if c.status == psutil.CONN_LISTEN
    ]
    loopback = [ip.removeprefix("::ffff:") == "127.0.0.1" for ip in doors]
    assert len(doors) > 3 and (all(loopback) or before), doors
    where = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0" if all(loopback) else "1"}
    for variables in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
        stranger = process(JOIN, address, **where, **variables)
        said = []
        for line in stranger.stdout:
            said.append(line)
            if "InvalidAuthToken" in line:
                break
        stranger.kill()
        stranger.wait()
        assert "InvalidAuthToken" in said[-1] and "it ran" not in "".join(said), said
    friend = process(JOIN, address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token, **where)
    said, _ = friend.communicate(timeout=60)
    assert "it ran: code" in said, said
    said, _ = owner.communicate("end\n", timeout=60)
    assert "the environment is as before" in said
    psutil.wait_procs(family, timeout=60)
    assert not alive(family) and not list(sessions.iterdir())


@pytest.mark.parametrize("how", ["killed", "at once"])
def test_nothing_is_left_of_a_process_that_does_not_end_in_the_usual_way(sessions, how):
    owner, *_ = started(START)
    family = psutil.Process(owner.pid).children(recursive=True)
    assert {"gcs_server", "raylet"} <= {
        one.name() for one in family
    }  # agents take their names later
    if how == "killed":
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        with private_session() as session:  # of the next start
            assert list(sessions.iterdir()) == [session.folder]
    else:
        owner.communicate(f"{how}\n", timeout=60)
    psutil.wait_procs(family, timeout=60)
    assert not alive(family) and not list(sessions.iterdir())


def test_a_session_that_is_in_use_is_left_alone(sessions):
    with private_session() as one:
        (one.folder / "ray").mkdir()
        other = process(
            "from experiments.runtimes.ray_session import private_session\n"
            "with private_session(): pass"
        )
        other.communicate(timeout=60)
        assert other.returncode == 0 and (one.folder / "ray").is_dir()


def test_a_ray_that_does_not_start_leaves_its_logs(sessions):
    with private_session() as session:
        session.keep = True
    assert session.folder.is_dir()
    with private_session() as other:
        assert list(sessions.iterdir()) == [other.folder]


def test_the_environment_is_as_before(monkeypatch):
    monkeypatch.setenv("FEDPGP_ONE", "1")
    with environment({"FEDPGP_ONE": "2", "FEDPGP_TWO": "3"}):
        assert (os.environ["FEDPGP_ONE"], os.environ["FEDPGP_TWO"]) == ("2", "3")
    assert os.environ["FEDPGP_ONE"] == "1" and "FEDPGP_TWO" not in os.environ


def test_a_long_path_of_the_folder_for_temporary_files_is_not_taken(monkeypatch, tmp_path):
    """Ray's sockets would not fit: their paths may have 107 characters."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("x" * 30)))
    with private_session() as session:
        assert session.folder.parent == Path("/tmp")
    assert not session.folder.exists()
