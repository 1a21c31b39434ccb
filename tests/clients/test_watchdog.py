import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from clients import watchdog
from clients.messages import Job
from clients.private_state import PrivateStore
from fedpgp.errors import FedPGPError

ROOT = Path(__file__).resolve().parents[2]
CHILD = (
    "from clients.watchdog import end_with_parent; import time; "
    "end_with_parent(); print('up', flush=True); time.sleep(60)"
)
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}])"


def test_a_process_ends_with_its_parent():
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout.readline() == "up\n"
    (child,) = psutil.Process(parent.pid).children()
    parent.kill()
    parent.wait()
    end = time.monotonic() + 10
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE and time.monotonic() < end:
        time.sleep(0.1)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    parent.stdout.close()


def test_no_clock_of_day_ends_a_process(tmp_path, monkeypatch):
    """It may be set anew in the middle of a round, or differ from the server's."""
    store = PrivateStore(tmp_path, "run", 1)
    monkeypatch.setattr(watchdog, "_watched_store", store)  # no thread that watches this process
    monkeypatch.setattr(time, "time", lambda: 0.0)
    job = Job("run", 1, "name", "", 1, deadline=60.0)
    with watchdog.watched(store, job, waited=1.0):
        pass
    late = pytest.raises(FedPGPError, match="took longer than runtime.round_timeout=60 seconds")
    with late, watchdog.watched(store, job, waited=61.0):
        pass
