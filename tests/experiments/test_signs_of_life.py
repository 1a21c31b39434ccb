"""Images that are encoded and clients that are evaluated are counted on the
terminal, in every runtime."""

import pytest

import clients.progress
import strategies.watch
from experiments import evaluate
from experiments.callbacks.console import Console
from experiments.runner import start
from experiments.settings import composed

WORDS = [
    "dataset.domains=[noto]",
    "partition=dirichlet",
    "clients=60",
    "shots=8",
    "rounds=1",
    "participation=0.1",
]
WORDS += ["local_epochs=1", "evaluate_every=0", "runtime.cohort_size=2"]


@pytest.mark.parametrize("runtime", ["inline", pytest.param("ray", marks=pytest.mark.slow)])
def test_a_run_counts_images_and_clients(runtime, tmp_path, monkeypatch):
    told: list[tuple] = []
    monkeypatch.setattr(strategies.watch, "LOOK", 0.02)
    monkeypatch.setattr(clients.progress, "BETWEEN", 0.0)
    monkeypatch.setattr(Console, "progress", lambda self, *what: told.append(what))
    start(
        composed(
            [
                *WORDS,
                f"runtime={runtime}",
                f"run_dir={tmp_path / 'run'}",
                f"runtime.cache_dir={tmp_path}",
            ]
        )
    )
    encoded = [done for done, _, what in told if what == "encoding test images"]
    evaluated = [
        done for done, total, what in told if what == "round 1, clients evaluated" and total == 60
    ]
    assert len(set(encoded)) > 1 and len(set(evaluated)) > 1
    assert not list((tmp_path / "run" / "private" / "progress").iterdir())
    found: list[tuple] = []
    evaluate.evaluate(tmp_path / "run", [], lambda *what: found.append(what))
    assert [done for done, _, what in found if what == "clients evaluated"] == list(range(1, 61))
