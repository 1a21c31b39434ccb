"""Secure sums over TLS, between processes: a client is killed in the middle, and what the nodes
sent holds no update in the clear."""

import json
import os
import threading
import time
from pathlib import Path

import pytest

from experiments.runtimes.local_processes import LocalProcesses
from tests.experiments.test_deploy import RECORDER, SETTINGS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
CLIENTS, KILLED = 3, 2

CLEAR = """
import atexit

def keep_clear():
    from fedpgp.secure_sum import layout
    encoded = layout.Layout.encoded

    def kept(self, update, weight, quantiser):
        vector = encoded(self, update, weight, quantiser)
        with open(os.path.join(os.environ["CLEAR"], str(os.getpid())), "ab") as file:
            for array in (vector, *update.values(), *(a.astype("f4") for a in update.values())):
                file.write(array.tobytes()[:64] + b"|end|")
        return vector

    layout.Layout.encoded = kept

class Clear(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "clients.secure_sum":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            keep_clear()

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Clear())
"""


def test_a_client_is_killed_and_no_update_is_in_the_clear(tmp_path, monkeypatch):
    for name in ("record", "clear", "hook"):
        (tmp_path / name).mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(RECORDER + CLEAR)
    paths = [str(tmp_path / "hook"), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("RECORD", str(tmp_path / "record"))
    monkeypatch.setenv("CLEAR", str(tmp_path / "clear"))
    nodes = [{"client-id": client} for client in range(CLIENTS)]
    run_dir, said, killed = tmp_path / "run", [], []
    with LocalProcesses(tmp_path / "nodes", nodes) as running:

        def kill() -> None:
            kept = f"client_{KILLED}/state/*/secure_sum/client_{KILLED:05d}.bin"
            while not list(running.folder.glob(kept)):
                time.sleep(0.05)
            running.kill_node(KILLED)  # it has trained, and its update is not in a sum yet
            killed.append(KILLED)

        threading.Thread(target=kill, daemon=True).start()
        running.run(
            [
                *(each for each in SETTINGS if not each.startswith("clients=")),
                f"clients={CLIENTS}",
                "privacy=client",
                "privacy.clip=0.1",
                "privacy.secure_sum=true",
                "privacy.secure_sum_threshold=0.5",
                "runtime.round_timeout=200",
                f"run_dir={run_dir}",
            ],
            said.append,
        )
    summary = json.loads((run_dir / "summary.json").read_text())
    assert killed and summary["status"] == "finished", "\n".join(said)
    assert summary["privacy"]["rounds"] == 2
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    rounds = [line for line in lines if line["kind"] == "train"]
    assert [line["clients"] for line in rounds] == [CLIENTS - 1] * 2
    assert [[e["client"] for e in line["dropped"]] for line in rounds] == [[KILLED]] * 2
    sent = b"\0".join(file.read_bytes() for file in _files(tmp_path / "record"))
    clear = [
        part for file in _files(tmp_path / "clear") for part in file.read_bytes().split(b"|end|")
    ]
    parts = [part for part in clear if len(part) == 64]
    assert len(parts) >= 3 * (2 * CLIENTS - 1) and len(sent) > 10_000
    for part in parts:
        assert part not in sent and part[:16] not in sent and part[16:32] not in sent
    assert b"masked" in sent and b"p_G" not in sent


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()]
