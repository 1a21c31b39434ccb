"""The command: overrides, refusals, the run folder, sweeps, loggers."""

import csv
import itertools
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import experiments.runner
from clients.machine import peak_rss_mb
from experiments.resume_rules import changed_on_resume
from experiments.run import main
from experiments.runtimes.check import check_runtime
from experiments.settings import CONF, choices, composed
from fedpgp import precision
from fedpgp.build import build_federation, check_config
from fedpgp.clip import SHIPPED, SHORT_NAMES
from fedpgp.errors import FedPGPError
from fedpgp.methods import METHODS
from tests.helpers.small import small_config

SMALL = [
    "runtime=inline",
    "protocol=personal",
    "partition=iid",
    "clients=4",
    "rounds=1",
    "batch_size=4",
    "device=cpu",
]
SMALL += ["method.rank=2"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("method=zeroshot", "unknown method 'zeroshot'; did you mean zero_shot"),
        ("model=vitb16", "did you mean vit_b16"),
        ("partition=dirichlett", "did you mean dirichlet"),
        ("-m method=fedpgp,promtfl", "did you mean promptfl"),
        ("method.rnak=2", "did you mean method.rank"),
        ("rank=2", "did you mean method.rank?"),
        ("epochs=2", "did you mean local_epochs"),
        ("partition=iid partition.beta=0.3", "partition.beta"),
        ("+nonsense=1", "unknown setting 'nonsense'"),
        ("lr", "cannot read 'lr'; write key=value"),
        (
            "seed=0,1",
            "seed=0,1 has several values: add -m to run each of them (a sweep); a list is "
            "'seed=[0,1]'",
        ),
        (
            "method=fedpgp,promptfl",
            "method=fedpgp,promptfl has several values: add -m to run each of them (a sweep)",
        ),
        ("seed=range(0,3)", "has several values: add -m"),
        ("resume=/nowhere lr=0.1,0.2", "lr=0.1,0.2 has several values: add -m"),
        ("method=coop --rounds=5", "settings are written without dashes; write rounds=5"),
        (
            "dataset.class_names=[Bär,cat]",
            "quotes around each name that is not plain ASCII: \"key=['Bär','cat']\"",
        ),
        ("method=coop --quick", "unknown option --quick; see python -m experiments.run --help"),
        ("method=coop -m strategy=fedagv", "unknown strategy 'fedagv'; did you mean fedavg"),
        ("lr=0", "lr=0 cannot work; it is a number above 0"),
        ("lr=fast", "lr=fast cannot work"),
        (
            "participation=1.5",
            "participation=1.5 cannot work; it is a number above 0 and at most 1",
        ),
        ("clients=0", "clients=0 cannot work; it is a whole number, 1 or more"),
        ("shots=0", "shots=0 cannot work; it is a whole number, 1 or more, or null for all images"),
        ("method.rank=0", "method.rank=0 cannot work"),
        ("rounds=-1", "rounds=-1 cannot work; it is a whole number, 0 or more"),
        ("rounds=2.5", "rounds=2.5 cannot work"),
        ("partition.beta=0", "partition.beta=0 cannot work"),
        ("device=gpu", "unknown value of device 'gpu'; did you mean cpu"),
        ("dtype=float16", "dtype 'float16'; did you mean"),
        ("verbose=perhaps", "verbose=perhaps cannot work; it is true or false"),
        ("runtime.round_timeout=0", "runtime.round_timeout=0 cannot work"),
        (
            "runtime=inline runtime.round_timeout=60",
            "runtime.round_timeout cannot be kept with runtime=inline",
        ),
        ("dataset=folder", "dataset.root has no value; give it one: dataset.root=..."),
        ("resume=/nowhere", "/nowhere is no run's folder: it has no config.yaml"),
    ],
)
def test_bad_input_is_one_line(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments.split()) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and said in error and "\n" not in error
    assert not list(tmp_path.rglob("config.yaml"))


def test_an_experiment_that_is_a_sweep_says_so_without_it(capsys, tmp_path):
    assert main(["experiment=compare_all", f"run_dir={tmp_path}", "lr=0"]) == 2
    said = capsys.readouterr().out
    assert (
        "experiment=compare_all is a sweep over protocol, method, seed; without -m this is one run"
        in said
    )
    assert main(["-m", "experiment=smoke", f"run_dir={tmp_path / 'sweep'}", "lr=0"]) == 2
    assert "is a sweep" not in capsys.readouterr().out


def test_no_timeout_is_none_that_cannot_be_kept():
    for words in (
        ["runtime=inline"],
        ["runtime=inline", "runtime.round_timeout=null"],
        ["runtime.round_timeout=60"],
    ):
        check_runtime(composed(words), deployed=False)
    with pytest.raises(FedPGPError, match="round_timeout cannot be kept"):
        check_runtime(composed(["runtime=inline", "runtime.round_timeout=60"]), deployed=False)


def test_help_explains(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as end:
        sys.exit(main(["--help"]))
    out = capsys.readouterr().out
    assert not end.value.code
    for words in (
        "python -m experiments.run [group=choice",
        f"method: {', '.join(sorted([*METHODS, 'component']))}",
        "rounds: 10",
        "resume=",
    ):
        assert words in " ".join(out.split())
    choices = out.split("their choices")[1].split("python -m")[0]
    assert max(len(line) for line in choices.splitlines()) <= 80


def test_help_may_be_cut_short():
    """`--help | head`: the reader closes the pipe."""
    command = [sys.executable, "-m", "experiments.run", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""


def test_the_run_folder_is_complete(tmp_path, small, capsys):
    folder = tmp_path / "run"
    assert main([*SMALL, f"run_dir={folder}"]) == 0
    out = capsys.readouterr().out
    assert "personal prompt" in out and str(folder) in out
    files = (
        "config.yaml metrics.jsonl clients.csv partition.json summary.json samples.json "
        "machines.json report.html"
    )
    assert {path.name for path in folder.iterdir()} == {
        *files.split(),
        "checkpoint",
        "private",
        ".lock",
    }
    train, evaluation = (
        "round loss clients dropped",
        "round clients all_clients zero_shot global personal",
    )
    said = {"kind", "seconds", "bytes_up", "bytes_down"}
    for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        assert set(line) == said | set((train if line["kind"] == "train" else evaluation).split())
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (
        config["clients"] == 4
        and config["versions"]["flwr"]
        and f"run_dir={folder}" in config["command"]
    )
    summary = json.loads((folder / "summary.json").read_text())
    keys = (
        "method dataset model partition protocol seed rounds clients status accuracy seconds "
        "one_prompt privacy attack"
    )
    sent = "bytes_up bytes_down wire_bytes_up wire_bytes_down"
    assert set(summary) == {
        *keys.split(),
        *sent.split(),
        "evaluated_clients",
        "images_per_second",
        "peak_rss_mb",
        "peak_gpu_mb",
    }
    assert set(summary["seconds"]) == {"total", "encode", "train", "evaluate", "overhead"}
    assert summary["status"] == "finished" and summary["evaluated_clients"] == summary["clients"]
    assert (
        summary["seconds"]["total"] >= summary["seconds"]["train"] + summary["seconds"]["evaluate"]
    )
    assert set(summary["accuracy"]) == {"zero_shot", "global", "personal"}
    partition = json.loads((folder / "partition.json").read_text())
    assert (
        partition["scheme"] == "iid"
        and len(partition["clients"]) == 4
        and len(partition["class_names"]) == 6
    )
    rows = list(csv.DictReader((folder / "clients.csv").open()))
    figures = "local base novel hm3 hm2 unseen"
    assert list(rows[0]) == [
        "id",
        "domain",
        "train_images",
        "test_images",
        "model",
        *figures.split(),
    ]
    assert len(rows) == 12 and {row["model"] for row in rows} == {"zero_shot", "global", "personal"}
    mean = sum(float(row["local"]) for row in rows if row["model"] == "personal") / 4
    assert mean == pytest.approx(summary["accuracy"]["personal"]["local"])
    assert json.loads((folder / "samples.json").read_text())["samples"]
    assert "<html" in (folder / "report.html").read_text()


def test_warnings_are_heard_behind_hydra(tmp_path, small):
    """A damaged cache, a broken image: Hydra's own choices for logging would silence those who
    tell."""
    assert not main([*SMALL, f"run_dir={tmp_path / 'run'}"])
    teller = logging.getLogger("fedpgp.data.features")
    assert not teller.disabled and teller.isEnabledFor(logging.WARNING)


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak of a process can be reset on Linux"
)
def test_peak_memory_is_the_runs_own(tmp_path, small):
    """What the process held before, an earlier run of a sweep for one, is not counted."""
    held = 1024
    ballast = bytearray(b"1") * (held * 2**20)
    assert len(ballast) / 2**20 == held and peak_rss_mb() > held
    before = peak_rss_mb()
    del ballast
    assert main([*SMALL, f"run_dir={tmp_path / 'run'}"]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert 0 < summary["peak_rss_mb"] < before - held / 2


def test_a_folder_that_exists_is_refused(tmp_path, small, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    assert main([*SMALL, f"run_dir={folder}"]) == 2
    assert (
        f"{folder} exists already; resume it by resume={folder}, or choose another run_dir"
        in capsys.readouterr().err
    )
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


def test_resume_from_another_configuration_is_refused(tmp_path, small, capsys):
    folder = tmp_path / "run"
    assert main([*SMALL, f"run_dir={folder}"]) == 0
    before = (folder / "summary.json").read_bytes()
    assert main([f"resume={folder}", "lr=0.5", "method=promptfl"]) == 2
    error = capsys.readouterr().err
    assert (
        "started with another configuration" in error
        and "lr" in error
        and "method.name" in error
        and "rounds" not in error
    )
    assert (folder / "summary.json").read_bytes() == before
    (folder / "summary.json").unlink()  # as if killed before it was written
    assert main([f"resume={folder}", "lr=0.03", "verbose=false", "runtime.cohort_size=1"]) == 0
    assert not (folder / "tensorboard").exists()
    (folder / "summary.json").unlink()
    assert (
        main([f"resume={folder}", "logger=tensorboard"]) == 0
    )  # what does not change the numbers may change
    assert (folder / "tensorboard").exists()


def test_settings_that_do_not_change_numbers_may_change_on_resume():
    stored = composed(SMALL)
    assert (
        changed_on_resume(
            ["runtime=ray", "runtime.workers=3", "logger=wandb"], composed(["runtime=ray"]), stored
        )
        == []
    )
    assert changed_on_resume(["seed=1"], composed(["seed=1"]), stored) == ["seed"]
    assert "clients" in changed_on_resume(
        ["experiment=smoke"], composed(["experiment=smoke"]), stored
    )


def test_the_precision_is_decided_once(tmp_path, small, capsys, monkeypatch):
    monkeypatch.setattr(precision, "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx512_bf16\n")
    folder, asked = tmp_path / "run", [*SMALL, "dtype=auto", "device=cpu"]
    assert main([*asked, f"run_dir={folder}"]) == 0
    said = "dtype=auto is bfloat16: bfloat16 is native on this machine's cpu"
    assert capsys.readouterr().out.count(said) == 1
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu\n")  # another machine
    (folder / "summary.json").unlink()
    assert main([*asked, f"resume={folder}"]) == 0
    assert yaml.safe_load((folder / "config.yaml").read_text())["dtype"] == "bfloat16"
    assert main([*SMALL, "dtype=float32", f"resume={folder}"]) == 2
    assert "other there: dtype" in capsys.readouterr().err


def test_a_sweep_and_going_on_with_it(tmp_path, small, capsys):
    folder = tmp_path / "sweep"
    sweep = ["-m", *(o for o in SMALL if "rank" not in o), "method=promptfl,coop", "seed=0,1"]
    assert main([*sweep, f"run_dir={folder}"]) == 0
    runs = sorted(path.parent for path in folder.glob("*/summary.json"))
    assert len(runs) == 4 and any(
        "method=coop" in run.name and "seed=1" in run.name for run in runs
    )
    assert main([*sweep, f"run_dir={folder}"]) == 2  # exists
    kept = runs[0] / "summary.json"
    before = kept.stat().st_mtime_ns
    (runs[1] / "summary.json").unlink()
    capsys.readouterr()
    assert main([*sweep, f"resume={folder}"]) == 0
    assert kept.stat().st_mtime_ns == before and (runs[1] / "summary.json").exists()
    assert capsys.readouterr().out.count("is finished") == 3


def test_a_failed_job_does_not_end_a_sweep_and_it_goes_on_by_its_folder_alone(
    tmp_path, small, capsys, monkeypatch
):
    folder = tmp_path / "sweep"
    broken = experiments.runner.start

    def start(config, command=""):
        if config["seed"] == 1:
            raise RuntimeError("nobody foresaw this")
        return broken(config, command)

    monkeypatch.setattr(experiments.runner, "start", start)
    sweep = [
        "-m",
        *(o for o in SMALL if "rank" not in o),
        "method=promptfl",
        "strategy=fedavg,bulyan",
        "seed=0,1",
    ]
    assert main([*sweep, f"run_dir={folder}"]) == 2  # bulyan needs seven clients
    said = capsys.readouterr().err
    assert "strategy=bulyan needs 7 clients" in said and "nobody foresaw this" in said
    (done,) = folder.glob("*/summary.json")
    assert len(list((folder / "failed").iterdir())) == 3
    monkeypatch.setattr(experiments.runner, "start", broken)
    before = done.stat().st_mtime_ns
    assert main(["-m", f"resume={folder}", "strategy=fedavg"]) == 2  # not the whole command line
    assert "was started with" in capsys.readouterr().err
    assert main(["-m", f"resume={folder}"]) == 2
    out = capsys.readouterr()
    assert out.out.count("is finished") == 1 and done.stat().st_mtime_ns == before
    assert (
        len(list(folder.glob("*/summary.json"))) == 2
        and len(list((folder / "failed").iterdir())) == 2
    )
    assert main(["-m", f"resume={tmp_path}"]) == 2
    assert "is no sweep's folder" in capsys.readouterr().err


def test_a_protocol_of_several_runs_makes_them_all_and_one_report(tmp_path, small, capsys):
    folder = tmp_path / "run"
    command = [
        *SMALL,
        "protocol=leave_one_domain_out",
        "partition=domain",
        "dataset.domains=[noto,twemoji]",
    ]
    assert main([*command, f"run_dir={folder}"]) == 0
    parts = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert parts == ["held_out=noto", "held_out=twemoji"]
    assert (
        "held_out" in capsys.readouterr().out
        and "<html" in (folder / "comparison.html").read_text()
    )
    both = [
        json.loads((folder / part / "summary.json").read_text())["accuracy"]["personal"]
        for part in parts
    ]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["accuracy"]["personal"]["local"] == pytest.approx(
        (both[0]["local"] + both[1]["local"]) / 2
    )
    assert (
        set(summary["accuracy"]["personal"]["domains"]) == {"noto", "twemoji"}
        and summary["status"] == "finished"
    )
    assert main([*command, f"run_dir={folder}"]) == 2  # exists
    assert main([*command, f"run_dir={folder / 'summary.json'}"]) == 2  # a file
    assert "exists already" in capsys.readouterr().err
    (folder / parts[1] / "summary.json").unlink()
    assert main([f"resume={folder}", "verbose=false"]) == 0
    assert (
        "is finished" in capsys.readouterr().out and (folder / parts[1] / "summary.json").exists()
    )
    assert main([f"resume={folder}", "lr=0.5"]) == 2
    assert main([*command, "protocol.held_out=noto", f"run_dir={tmp_path / 'one'}"]) == 0
    assert (tmp_path / "one" / "summary.json").exists()


def test_clients_that_drop_out_or_are_slow_are_drawn_from_the_seed(tmp_path, small):
    def losses(name, *overrides):
        assert (
            main([*SMALL, "rounds=3", "local_epochs=3", f"run_dir={tmp_path / name}", *overrides])
            == 0
        )
        lines = [
            json.loads(line)
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]
        return [
            (r["loss"], r["clients"], [d["client"] for d in r["dropped"]])
            for r in lines
            if r["kind"] == "train"
        ]

    plain, once, twice = (
        losses("a"),
        losses("b", "runtime.dropout=0.4"),
        losses("c", "runtime.dropout=0.4"),
    )
    assert once == twice != plain and any(dropped for _, _, dropped in once)
    assert all(clients + len(dropped) == 4 for _, clients, dropped in once)
    slow = losses("d", "runtime.slow_clients=0.5")
    assert (
        slow == losses("e", "runtime.slow_clients=0.5")
        and slow[0][0] != plain[0][0]
        and slow[0][1:] == (4, [])
    )
    assert main([f"resume={tmp_path / 'b'}", "runtime.dropout=0.1"]) == 2
    assert (
        main([*SMALL, "runtime.slow_clients=0.5", "local_epochs=1", f"run_dir={tmp_path / 'f'}"])
        == 2
    )
    assert main([*SMALL, "runtime.dropout=1", f"run_dir={tmp_path / 'f'}"]) == 2


@pytest.mark.parametrize(("selection", "every"), [("last_five", 0), ("validation", 1)])
def test_another_round_may_be_reported(tmp_path, small, selection, every):
    folder = tmp_path / "run"
    words = [
        *SMALL,
        "rounds=3",
        f"evaluate_every={every}",
        f"protocol.selection={selection}",
        f"run_dir={folder}",
    ]
    assert main(words) == 0
    summary = json.loads((folder / "summary.json").read_text())
    evals = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    evals = {row["round"]: row for row in evals if row["kind"] == "eval"}
    if selection == "last_five":
        assert summary["selected_rounds"] == [1, 2, 3]
    else:
        assert len(summary["selected_rounds"]) == 1
    mean = sum(evals[r]["personal"]["local"] for r in summary["selected_rounds"]) / len(
        summary["selected_rounds"]
    )
    assert summary["accuracy"]["personal"]["local"] == pytest.approx(mean)


@pytest.mark.parametrize("logger", ["wandb", "tensorboard"])
def test_loggers_write_offline(tmp_path, small, logger, monkeypatch):
    pytest.importorskip(logger)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main([*SMALL, f"run_dir={tmp_path / 'run'}", f"logger={logger}"]) == 0
    names = LOGGED[logger](tmp_path / "run")
    assert {
        "train/loss",
        "eval/personal/local",
        "eval/zero_shot/local",
        "clients/personal/local",
    } <= names


def wandb_names(folder):
    """What wandb would send, from the file it kept."""
    import wandb
    from wandb.proto import wandb_internal_pb2

    wandb.teardown()  # its service writes on after a run's end, until the process ends
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    data, at, block, whole = (
        path.read_bytes(),
        7,
        2**15,
        b"",
    )  # a log as LevelDB writes it, after a header of 7 bytes
    names, config = set(), ""
    while at + 7 <= len(data):
        if block - at % block < 7:  # what is too short for a record's head is padding
            at += block - at % block
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind not in (1, 4):  # not the whole of a record, nor its last part
            continue
        record = wandb_internal_pb2.Record()
        record.ParseFromString(whole)
        whole = b""
        names |= {item.key or item.nested_key[0] for item in record.history.item}
        config += str(record.run.config)
    assert "participation" in config and "report" in names
    assert list(folder.glob("wandb/offline-run-*/files/media/html/report*.html"))
    return names


def tensorboard_names(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    tags = events.Tags()
    assert "config/text_summary" in tags["tensors"]
    return {*tags["scalars"], *tags["histograms"]}


LOGGED = {"wandb": wandb_names, "tensorboard": tensorboard_names}


def test_names_of_conf_are_those_of_the_code():
    assert set(choices()["method"]) == {*METHODS, "component"}
    assert set(choices()["model"]) == {*SHIPPED, *SHORT_NAMES}
    groups = choices()
    del groups["experiment"]
    for several in itertools.zip_longest(*([(g, n) for n in names] for g, names in groups.items())):
        composed([f"{group}={name}" for group, name in filter(None, several)])


def test_every_choice_begins_with_its_command():
    for path in CONF.glob("*/*.yaml"):
        lines = path.read_text().splitlines()
        first = next(line for line in lines if not line.startswith("# @package"))
        assert re.match(
            rf"# python -m experiments\.\w+ .*\b{path.parent.name}={path.stem}\b", first
        ), path


@pytest.mark.parametrize("words", [[], ["experiment=smoke"]], ids=["defaults", "smoke"])
def test_the_defaults_are_possible(words):
    """Those of the other experiments: test_experiments.py."""
    check_config(composed(words))


def test_a_value_of_the_wrong_kind_is_refused(tmp_path):
    config = small_config(tmp_path)
    config["clients"] = True
    with pytest.raises(FedPGPError, match="clients=true cannot work"):
        check_config(config)


def test_nothing_of_this_machine_is_in_conf():
    assert not [path for path in CONF.rglob("*.yaml") if str(Path.home()) + "/" in path.read_text()]


@pytest.mark.parametrize(("views", "expected"), [("1", 1), ("4", 4), ("live", None)])
def test_views_of_a_configuration_reach_the_training(views, expected):
    federation = build_federation(composed([f"dataset.views={views}", "runtime=inline"]))
    assert federation.training.views == expected
