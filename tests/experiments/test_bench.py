"""The benchmarks compare two computations of the same thing; timing is not tested, the sameness
is."""

import argparse
import json
import subprocess
import sys

import psutil
import pytest
import torch

from experiments.bench import clients, image_privacy, measure, methods, neighbours, privacy, step
from experiments.bench.__main__ import main
from fedpgp.methods import METHODS

ARGUMENTS = argparse.Namespace(model="tiny", device="cpu", dtype="float32")


@pytest.mark.filterwarnings("ignore:.*RANDOM weights")
def test_the_reference_step_computes_the_same():
    method, params, batch, classes = step.setting(7, 2, ARGUMENTS)
    loss, grads = method.gradients(params, batch, classes, step.STEP)
    plain_loss, plain_grads = step.plain_step(method, params, batch, classes)
    assert measure.relative(loss, plain_loss) < 1e-5
    assert all(measure.relative(grads[name], plain_grads[name]) < 1e-4 for name in params)


def test_peak_memory_sees_an_allocation_whatever_was_freed_before():
    def allocate(megabytes: int) -> torch.Tensor:
        return torch.ones(megabytes * 2**20 // 4).add_(1)

    for _ in range(2):
        assert 150 < measure.peak_memory(lambda: [allocate(64) for _ in range(3)]) < 300
    assert measure.peak_memory(lambda: None) < 20


FAST = ("promptfl", "fedpgp", "fedpgp_lora", "vpt")


@pytest.fixture(scope="module")
def task():
    return step.task_of(10, argparse.Namespace(model="tiny_vit", device="cpu", dtype="float32"))


@pytest.mark.filterwarnings("ignore:.*RANDOM weights")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in FAST else pytest.mark.slow)
        for name in methods.learning()
    ],
)
def test_no_method_multiplies_much_more_than_its_equations_need(name, task):
    case = methods.Case.of(methods.method_of(name, task))
    case.run()  # what is frozen is computed in the first step
    executed, own = measure.gflop(case.run), case.work.gflop
    assert own <= executed < 1.1 * own  # attention


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*RANDOM weights")
@pytest.mark.parametrize("blocks", [(1, 1), (1, 4), (3, 3)])
def test_adapters_in_any_blocks_are_counted(blocks, task):
    """What is before the first adapter, and its own block, is the same in every step."""
    first, last = blocks
    kind = METHODS["pfedmma"]
    case = methods.Case.of(kind(kind.Settings(first=first, last=last), task))
    case.run()
    assert case.work.gflop <= measure.gflop(case.run) < 1.1 * case.work.gflop


@pytest.mark.parametrize("what", ["step", "methods", "precision", "cohort", "features"])
def test_the_command_writes_its_rows(tmp_path, what, capsys):
    target = tmp_path / "bench.json"
    command = [what, "--model", "tiny", "--classes", "5", "--clients", "2"]
    command += ["--methods", "promptfl"] if what == "methods" else []
    command += ["--images", "48"] if what == "features" else []
    assert main([*command, "--repeats", "1", "--json", str(target)]) == 0
    (row,) = json.loads(target.read_text())["rows"]
    assert row["gflops"] > 0 and row["peak_mb"] > 0 and f"wrote {target}" in capsys.readouterr().out
    assert row.get("loss_difference", 0) < (1e-5 if what != "precision" else 1e-2)
    assert row.get("largest_difference", 0) < 1e-5


def test_neighbours_end_with_the_step():
    before = set(psutil.Process().children())
    with neighbours.neighbours(2):
        assert len(set(psutil.Process().children()) - before) == 2
    assert not set(psutil.Process().children()) - before


def test_a_plot_without_the_package_that_draws_is_refused_first(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["growth", "--plot", str(tmp_path / "growth.png")]) == 2
    assert capsys.readouterr().err == (
        "error: --plot needs the package matplotlib: pip install 'fedpgp[plots]'\n"
    )


def test_a_run_of_clients_without_pictures_is_measured_and_resumed(tmp_path):
    overrides = clients.run_overrides(6, per_round=2, rounds=2, workers=0, device="cpu")
    row = clients.measured(overrides, tmp_path / "run")
    assert (row["clients"], row["per_round"], row["evaluated"]) == (6, 2, 6)
    assert row["resume_seconds"] > 0 and row["server_mb"] > 0 and row["workers_mb"] == 0
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    trained = [line["clients"] for line in metrics if line["kind"] == "train"]
    assert trained == [2, 2, 2]  # and one after the run was resumed
    assert row["private_files"] > 4 and 0 < row["private_mb"] < row["disk_mb"]
    total = row["set_up_seconds"] + row["round_seconds"] + row["evaluation_seconds"]
    assert total < row["total_seconds"]


def test_several_numbers_of_clients_are_for_one_bench(capsys):
    with pytest.raises(SystemExit):
        main(["step", "--clients", "2,3"])
    assert "--clients takes several numbers with clients alone" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("many", [100, 5], ids=["of the embedded federation", "made up"])
def test_privacy_is_measured_against_none(many, tmp_path, monkeypatch):
    monkeypatch.setattr(privacy, "MANY", many)
    target = tmp_path / "bench.json"
    few = ["--clients", "6", "--rounds", "2", "--repeats", "1"]
    assert main(["privacy", *few, "--json", str(target)]) == 0
    rows = json.loads(target.read_text())["rows"]
    assert [row["what"] for row in rows] == list(privacy.CHOICES)
    assert all(row["ms"] > 0 and row["reference_ms"] > 0 for row in rows)


@pytest.mark.slow
def test_growth_and_federation(tmp_path):
    """The two that take longer: growth draws its plot, a federation's textbook round computes the
    same."""
    target, plot = tmp_path / "bench.json", tmp_path / "growth.png"
    command = [
        sys.executable,
        "-m",
        "experiments.bench",
        "growth",
        "--model",
        "tiny",
        "--repeats",
        "1",
    ]
    subprocess.run(
        [*command, "--plot", str(plot), "--json", str(target)], check=True, capture_output=True
    )
    grown = json.loads(target.read_text())["rows"]
    assert plot.stat().st_size > 0
    tokens = [row["tokens"] for row in grown if row["axis"] == "classes"]
    assert tokens == sorted(tokens) and tokens[-1] > 50 * tokens[0]
    command = [
        sys.executable,
        "-m",
        "experiments.bench",
        "federation",
        "--rounds",
        "2",
        "--repeats",
        "1",
    ]
    subprocess.run([*command, "--json", str(target)], check=True, capture_output=True)
    round, *runs = json.loads(target.read_text())["rows"]
    assert round["largest_difference"] < 2e-3  # float32, some thirty steps of momentum later
    assert [run["clients"] for run in runs] == [24, 2000]


@pytest.mark.filterwarnings("ignore:.*RANDOM weights")
@pytest.mark.parametrize("name", image_privacy.METHODS)
def test_the_loop_over_images_computes_the_same(name):
    task = step.task_of(7, ARGUMENTS)
    row = image_privacy.row(methods.Case.of(methods.method_of(name, task)), 1)
    assert row["largest_difference"] < 1e-4
