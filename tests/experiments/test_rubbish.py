"""Files of a run's folder that hold rubbish are one line, and no traceback."""

import json
import shutil
import sys

import numpy as np
import pytest
import yaml
from safetensors.numpy import save

from experiments import deploy, evaluate, export, report
from experiments.bench import __main__ as bench
from experiments.run import main
from experiments.run_folder import RunFolder
from experiments.runner import resume, start
from fedpgp.digests import tensor_digest
from fedpgp.errors import FedPGPError
from strategies.checkpoint import checkpoints, read_checkpoint
from tests.experiments.test_resume import results
from tests.helpers.small import small_config, small_federation

RUBBISH = {"bytes": b"\xff\xfe\0", "list": b"[1]", "text": b"words", "half": b'{"a": '}


@pytest.mark.parametrize("name", ["config.yaml", "parts.yaml"])
@pytest.mark.parametrize("what", [*RUBBISH, "folder"])
def test_a_configuration_of_rubbish_is_named(tmp_path, capsys, name, what):
    path = tmp_path / name
    path.mkdir() if what == "folder" else path.write_bytes(RUBBISH[what])
    assert main([f"resume={tmp_path}"]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"error: {path} ") and "\n" not in said


@pytest.mark.parametrize("what", RUBBISH)
def test_a_sweep_of_rubbish_is_named(tmp_path, capsys, what):
    (tmp_path / "sweep.json").write_bytes(RUBBISH[what])
    assert main(["-m", f"resume={tmp_path}"]) == 2
    assert f"{tmp_path} is no sweep's folder" in capsys.readouterr().err


@pytest.mark.parametrize("what", RUBBISH)
def test_figures_of_rubbish(tmp_path, what):
    (tmp_path / "summary.json").write_bytes(RUBBISH[what])
    assert RunFolder(tmp_path).summary() == {}
    (tmp_path / "metrics.jsonl").write_bytes(RUBBISH[what])
    with pytest.raises(FedPGPError, match=r"metrics.jsonl is damaged"):
        RunFolder(tmp_path).cut_metrics(len(RUBBISH[what]))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "run"
    start(small_config(folder), federation_of=small_federation)
    return folder


@pytest.fixture
def run(made, tmp_path):
    """A run that was killed before its summary."""
    shutil.copytree(made, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    return tmp_path / "run"


COMMANDS = {
    "resume": lambda run, to: main([f"resume={run}"]),
    "init_from": lambda run, to: main([f"init_from={run}", "runtime=inline", f"run_dir={to}"]),
    "report": lambda run, to: report.main([str(run)]),
    "evaluate": lambda run, to: evaluate.main(["--run", str(run)]),
    "export": lambda run, to: export.main(["--run", str(run), "--client", "0", "--to", str(to)]),
    "deploy": lambda run, to: deploy.main(["local", "--clients", "6", f"resume={run}"]),
}


@pytest.mark.parametrize(
    ("command", "kind"),
    [(command, kind) for command in COMMANDS for kind in ("bytes", "folder", "link")]
    + [
        (command, "part") for command in COMMANDS if command != "report"
    ],  # a report takes what is there
)
def test_every_command_names_a_configuration_that_is_none(run, tmp_path, command, kind, capsys):
    path = run / "config.yaml"
    config = yaml.safe_load(path.read_text())
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(tmp_path / "nowhere")
    elif kind == "bytes":
        path.write_bytes(RUBBISH["bytes"])
    else:
        path.write_text(yaml.safe_dump({key: config[key] for key in ("method", "seed", "rounds")}))
    assert COMMANDS[command](run, tmp_path / "to") == 2
    said = capsys.readouterr().err
    assert said.count("error: ") == 1 and "Traceback" not in said and str(run) in said
    assert kind != "part" or "it lacks dataset, model, partition" in said


def test_a_run_that_cannot_be_read_does_not_cost_the_table_of_the_others(made, tmp_path, capsys):
    for name in ("good", "bad"):
        shutil.copytree(made, tmp_path / name)
    (tmp_path / "bad" / "metrics.jsonl").unlink()
    (tmp_path / "bad" / "metrics.jsonl").mkdir()
    assert report.main([str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert (
        f"unreadable: {tmp_path / 'bad' / 'metrics.jsonl'} is damaged: Is a directory" in said.err
    )
    assert "FedPGP" in said.out


@pytest.mark.parametrize("kind", ["folder", "link", "rubbish"])
def test_the_checkpoint_before_is_taken(run, made, kind):
    """And what stood in the newest one's place is no hindrance: a person's folder is moved
    aside."""
    newest = checkpoints(run / "checkpoint")[-1]
    newest.unlink()
    if kind == "folder":
        (newest / "mine").mkdir(parents=True)
    elif kind == "link":
        newest.symlink_to(run / "nowhere")
    else:
        newest.write_bytes(RUBBISH["bytes"])
    resume(run, federation_of=small_federation)
    assert results(run) == results(made)
    assert len(list((run / "checkpoint").glob("*.aside-*/mine"))) == (kind == "folder")


def test_rounds_are_not_thrown_away_where_all_checkpoints_are_gone(run):
    before = (run / "metrics.jsonl").read_bytes()
    shutil.rmtree(run / "checkpoint")
    with pytest.raises(
        FedPGPError, match="has rounds of training, but there is no checkpoint in .*: restore it"
    ):
        resume(run, federation_of=small_federation)
    assert (run / "metrics.jsonl").read_bytes() == before


def test_what_killed_writers_left_is_removed(run, made):
    left = [
        run / folder / ".x.0a1b2c3d.tmp"
        for folder in (".", "checkpoint", "private", "private/client_00000")
    ]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    resume(run, federation_of=small_federation)
    assert not [path for path in left if path.exists()] and results(run) == results(made)


def test_a_file_that_cannot_be_written_is_named_before_the_work_is_done(
    run, tmp_path, capsys, monkeypatch
):
    (tmp_path / "file").write_text("here")
    monkeypatch.setattr(sys, "argv", ["bench", "step", "--json", str(tmp_path)])
    assert bench.main() == 2
    monkeypatch.setattr(
        sys, "argv", ["bench", "step", "--json", str(tmp_path / "file" / "rows.json")]
    )
    assert bench.main() == 2
    assert evaluate.main(["--run", str(run), "--to", str(tmp_path)]) == 2
    assert export.main(["--run", str(run), "--client", "0", "--to", str(tmp_path / "file")]) == 2
    assert report.main([str(run), "--out", str(tmp_path)]) == 2
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert (
        len(lines) == 5
        and all(line.startswith("error: cannot write ") for line in lines)
        and not said.out
    )
    assert (tmp_path / "file").read_text() == "here"


def test_a_run_that_was_never_begun_is_not_to_be_resumed(tmp_path, capsys):
    """Refused before anything is done: no advice to resume what is not there."""
    assert (
        main(
            [
                f"run_dir={tmp_path / 'run'}",
                "runtime=inline",
                "partition=domain_dirichlet",
                "clients=1",
            ]
        )
        == 2
    )
    assert "resume" not in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert not list(tmp_path.iterdir())


DEEP = b"[" * 100_000 + b"]" * 100_000
"""JSON that is nested without end."""


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "summary.json"])
@pytest.mark.parametrize("what", ["deep", "digits"])
def test_figures_that_are_nested_without_end(made, tmp_path, capsys, name, what):
    run = shutil.copytree(made, tmp_path / "run")
    rubbish = DEEP[:6000] if name == "config.yaml" else DEEP if what == "deep" else b"9" * 5000
    (run / name).write_bytes(rubbish + b"\n{}\n" * (name == "metrics.jsonl"))
    assert report.main([str(run)]) == 2
    said = capsys.readouterr().err
    assert said.count(f"unreadable: {run / name} ") == 1 and "Traceback" not in said


@pytest.mark.parametrize("row", ['{"kind": "eval"}', '{"kind": "eval", "round": {}}'])
@pytest.mark.parametrize("add", ["", ', "clients": "x"', ', "dropped": [1]'])
def test_a_line_of_figures_of_another_type_is_named(made, tmp_path, capsys, row, add):
    run = shutil.copytree(made, tmp_path / "run")
    path = run / "metrics.jsonl"
    path.write_text(row[:-1] + add + "}\n" + path.read_text())
    assert report.main([str(run)]) == 2
    assert f"{path} is damaged: line 1: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes",
    [
        {"rounds": None},
        {"rounds": 10**400},
        {"accuracy": {"global": 5}},
        {"privacy": "x"},
        {"seconds": {"total": []}},
    ],
)
def test_a_summary_of_another_type_is_none(made, tmp_path, capsys, changes):
    run = shutil.copytree(made, tmp_path / "run")
    path = run / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    assert report.main([str(run)]) == 2
    assert f"{path} is damaged: " in capsys.readouterr().err
    assert RunFolder(run).summary() == {}


@pytest.mark.parametrize("what", ["deep", "list", "seconds", "committed"])
def test_a_checkpoint_of_another_type_is_passed_over(run, made, what):
    """Also one whose checksum is right."""
    newest = checkpoints(run / "checkpoint")[-1]
    tensors, info = read_checkpoint(newest)
    text = {"deep": DEEP.decode(), "list": "[]"}.get(what, json.dumps({**info, "seconds": 1}))
    if what == "committed":
        text, tensors = json.dumps(info), {**tensors, "committed": np.zeros((2, 2))}
    newest.write_bytes(save(tensors, {"fedpgp": text, "sha256": tensor_digest(text, tensors)}))
    resume(run, federation_of=small_federation)
    assert results(run) == results(made)


def edit_config(run, change):
    path = run / "config.yaml"
    config = yaml.safe_load(path.read_text())
    change(config)
    path.write_text(yaml.safe_dump(config))


def test_a_configuration_without_a_logger_is_that_of_an_older_run(run, made):
    edit_config(run, lambda config: config.pop("logger"))
    resume(run, federation_of=small_federation)
    assert results(run) == results(made)


@pytest.mark.parametrize("part", ["privacy", "attack", "logger"])
def test_a_part_without_its_name_is_named(run, part, capsys):
    edit_config(run, lambda config: config.update({part: {}}))
    assert main([f"resume={run}"]) == 2
    said = capsys.readouterr().err
    assert f"{run / 'config.yaml'} is not the configuration of a run: it lacks {part}.name" in said


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("rank", 0, "method.rank=0 cannot work"),
        pytest.param("images_a_rank", 10**400, "method.images_a_rank=(a number of", id="long"),
        ("colour", 1, "unknown setting of method fedpgp 'colour'"),
    ],
)
@pytest.mark.parametrize("command", ["resume", "evaluate", "export"])
def test_a_setting_that_cannot_work_names_its_file(
    run, tmp_path, command, key, value, said, capsys
):
    edit_config(run, lambda config: config["method"].update({key: value}))
    assert COMMANDS[command](run, tmp_path / "to") == 2
    assert f"error: {run / 'config.yaml'}: {said}" in capsys.readouterr().err


FORGERIES = ("shape", "missing", "type", "nan", "committed")


@pytest.mark.parametrize("what", FORGERIES)
def test_forged_tensors_are_named(run, tmp_path, what, capsys, small):
    """Of a checkpoint whose checksum is right."""
    forge(checkpoints(run / "checkpoint")[-1], what)
    assert main([f"resume={run}"]) == 2
    said = capsys.readouterr().err
    assert said.count("error: ") == 1
    assert f"error: the checkpoint in {run / 'checkpoint'} has" in said


def forge(path, what):
    """Change the tensors of a checkpoint, and its checksum with them."""
    tensors, info = read_checkpoint(path)
    p_G, committed = tensors["shared/p_G"], tensors["committed"]
    fewer = {name: tensors[name][:-1] for name in tensors if name.startswith("zero_shot")}
    tensors |= {
        "shape": {"shared/p_G": p_G[:-1]},
        "missing": {},
        "type": {"shared/p_G": p_G.astype(np.int64)},
        "nan": {"shared/p_G": p_G * np.nan},
        "committed": {"committed": committed[:-1], **fewer},
    }[what]
    if what == "missing":
        del tensors["shared/p_G"]
    text = json.dumps(info)
    path.write_bytes(save(tensors, {"fedpgp": text, "sha256": tensor_digest(text, tensors)}))
