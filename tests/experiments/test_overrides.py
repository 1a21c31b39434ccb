"""A command that is printed runs when it is pasted into a shell, whatever its paths hold;
paths are read as typed."""

import html
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from flwr.common.config import parse_config_args
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

import experiments.flower_app as flower_app
from clients.client_app import client_app
from experiments.override_checks import check_overrides
from experiments.overrides import (
    LOCAL,
    RUN,
    again_command,
    flower_command,
    override_of,
    readable,
    resume_command,
    run_command,
    toml,
    typed,
)
from experiments.report import main as report
from experiments.run import main
from experiments.runner import start
from experiments.settings import composed, parse
from fedpgp.errors import FedPGPError
from tests.experiments.test_run import SMALL
from tests.helpers.nodes import Nodes
from tests.helpers.small import small_config, small_federation

AWKWARD = 'it\'s a run = {1}, (ü) [x] & #2 ~ 日本 "so" ${y} 50%;\\'
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)
HINT = re.compile(r"(?:: |by |\()((?:-m )?'?(?:resume|init_from)=.*?)(?:, or choose|\)$)")
"""Words for a command line that an error advises."""


@pytest.fixture
def shell(tmp_path):
    """What programs get when a line is pasted into a shell: their words."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("python", "flwr", "words"):
        (programs / name).write_text("#!/bin/bash\nprintf '%s\\0' \"$@\"\n")
        (programs / name).chmod(0o755)

    def paste(line: str) -> list[str]:
        environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
        run = subprocess.run(["bash", "-c", line], capture_output=True, env=environment, check=True)
        assert not run.stderr
        return [os.fsdecode(word) for word in run.stdout.split(b"\0")[:-1]]

    return paste


def of_flower(words: list[str]) -> list[str]:
    """The overrides that Flower hands to the ServerApp."""
    asked = parse_config_args([words[words.index("--run-config") + 1]])
    return shlex.split(asked["overrides"])


@given(TEXTS)
@example("\\'${a}'\\")
@example("null")
@example("1e3")
@example("~/runs")
@settings(deadline=None)
def test_hydra_reads_what_was_written(text):
    (override,) = parse([override_of("run_dir", text)])
    read = OmegaConf.create({"run_dir": override.value()})
    assert OmegaConf.to_container(read, resolve=True) == {"run_dir": text}
    assert shlex.split(typed("run_dir", text)) == [override_of("run_dir", text)]


def test_the_configuration_has_what_was_written():
    assert composed([override_of("run_dir", AWKWARD)])["run_dir"] == AWKWARD


@given(st.lists(TEXTS))
@example([AWKWARD])
@settings(deadline=None)
def test_flower_reads_what_was_written(texts):
    words = [override_of("context_init", text) for text in texts]
    command = shlex.split(flower_command(words))
    assert command[:4] == ["flwr", "run", ".", "--stream"] and of_flower(command) == words


def test_what_is_plain_stays_plain():
    assert (
        typed("resume", "/srv/runs/2026-05-01_12-00-00") == "resume=/srv/runs/2026-05-01_12-00-00"
    )
    assert run_command(resume=Path("outputs/a")) == "python -m experiments.run resume=outputs/a"
    assert (
        flower_command(["rounds=3"]) == "flwr run . --stream --run-config 'overrides=\"rounds=3\"'"
    )
    assert toml(3) == "3" and toml(True) == "true"
    with pytest.raises(FedPGPError, match="is no UTF-8"):
        toml("\udce4")


@pytest.mark.parametrize(
    "started",
    [
        "python -m experiments.run method=promptfl",
        "",
        "python -m experiments.deploy local --clients 2 rounds=3",
        f"python -m experiments.deploy local --data {shlex.quote(AWKWARD)} partition=own",
        "python -m experiments.deploy local rounds=3 --clients=2",
        "flwr run . --run-config 'overrides=\"rounds=3\"'",
    ],
)
def test_the_command_that_resumes(started, shell):
    words = shell(resume_command(started, Path("/runs") / AWKWARD, rounds=8))
    if started.startswith("flwr"):
        words = of_flower(words)
    elif "deploy" in started:
        assert words[:3] == ["-m", "experiments.deploy", "local"]
        assert {"--clients=2", "--clients", "--data"} & set(words) and (
            "--data" not in words or AWKWARD in words
        )
    else:
        assert words[:2] == ["-m", "experiments.run"]
    config = composed(words[-2:])
    assert config["resume"] == f"/runs/{AWKWARD}" and config["rounds"] == 8


def test_a_run_is_made_again_in_a_folder_of_its_own(shell):
    command = (
        f"{RUN} {shlex.join(['-m', 'seed=0,1', 'run_dir=' + AWKWARD, 'context_init=an emoji of'])}"
    )
    assert shell(again_command(command)) == [
        "-m",
        "experiments.run",
        "-m",
        "seed=0,1",
        "context_init=an emoji of",
    ]
    assert again_command("flwr run . --run-config 'it''s'") == "flwr run . --run-config 'it''s'"


@pytest.mark.parametrize("start", ["", "rounds=4"])
def test_a_run_that_was_given_more_rounds_is_made_again_with_all_of_them(start, shell):
    words = [word for word in (start, "context_init=an emoji of") if word]
    for command in (f"{RUN} {shlex.join(words)}", flower_command(words)):
        again = shell(again_command(command, 12))
        again = of_flower(again) if command.startswith("flwr") else again[2:]
        assert again == ["context_init=an emoji of", "rounds=12"]


@pytest.mark.parametrize(
    ("typed_by_hand", "path"),
    [
        ("run_dir=/a b", "/a b"),
        ("run_dir=~/runs", os.path.expanduser("~/runs")),
        ("resume='~/my runs'", os.path.expanduser("~/my runs")),
        ("resume=outputs/compare/method=fedpgp,seed=1", "outputs/compare/method=fedpgp,seed=1"),
        ("resume=/a,b", "/a,b"),
        ("run_dir=[x]", "[x]"),
        ("run_dir=2026", "2026"),
        ("run_dir=1.50", "1.50"),
        (f"run_dir=/tmp/{AWKWARD}".replace("${", "\\${"), f"/tmp/{AWKWARD}"),
        ("run_dir=runs/${experiment_name}/${seed},0", "runs/default/0,0"),
        ("run_dir='~/my runs/${seed}'", os.path.expanduser("~/my runs/0")),
        ("run_dir=${now:%%}-${seed}", "%-0"),
        ("dataset.root=${oc.env:PATH}/images", f"{os.environ['PATH']}/images"),
        ("init_from=runs/\\${seed}", "runs/${seed}"),
        ('run_dir="/a, b"', "/a, b"),
        ("++dataset.root=~", os.path.expanduser("~")),
        ("dataset.root=/schöne bilder (2)", "/schöne bilder (2)"),
        ("runtime.cache_dir=~/cache", os.path.expanduser("~/cache")),
        ("init_from=/run=1", "/run=1"),
    ],
)
def test_a_path_is_read_as_it_was_typed(typed_by_hand, path):
    key = typed_by_hand.partition("=")[0].lstrip("+")
    config = composed(readable([typed_by_hand]))
    for part in key.split("."):
        config = config[part]
    assert config == path


def test_an_interpolation_of_nothing_is_said_in_a_line(capsys):
    assert main([*SMALL, "run_dir=runs/${sed}"]) == 2
    said = capsys.readouterr().err
    assert "Interpolation key 'sed' not found" in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["seed=0,1", "run_dir=runs/${seed}"], "seed"),
        (["method=fedpgp,coop", "run_dir='runs/${method.name}'"], "method.name"),
        (["experiment=compare_all", "run_dir=runs/${method.name}"], "method.name"),
    ],
)
def test_the_folder_of_a_sweep_does_not_hang_on_what_is_swept(words, key, capsys):
    assert main(["-m", *words]) == 2
    assert f"run_dir has ${{{key}}}, which the sweep varies" in capsys.readouterr().err


def test_the_folder_of_a_sweep_may_hang_on_anything_else():
    words = ["seed=0,1", "run_dir='runs/${lr}_\\${seed}'"]
    check_overrides(words, sweep=True)
    check_overrides(["run_dir=runs/${seed}"], sweep=False)


def test_a_path_that_begins_with_an_interpolation_stays_as_it_is():
    """It may be a whole path; of one that begins with a folder the working directory is known."""
    words = ["run_dir=${oc.env:PATH}/a", "run_dir=a/${seed}"]
    assert [composed([word])["run_dir"] for word in readable(words, absolute=True)] == [
        f"{os.environ['PATH']}/a",
        f"{os.getcwd()}/a/0",
    ]


@pytest.mark.parametrize("value", ["2026", "007", "1e3", "true", "a photo of a", "x-1"])
def test_a_text_stays_a_text_where_yaml_reads_a_number(value):
    assert composed(readable([f"experiment_name={value}"]))["experiment_name"] == value


def test_a_text_that_cannot_be_read_is_shown_as_it_is_typed(shell, capsys):
    assert main(["dataset.template=ein {}"]) == 2
    advice = capsys.readouterr().err.strip().rpartition("as one text it is ")[2]
    (word,) = shell(f"words {advice}")
    assert composed(["dataset=folder", word])["dataset"]["template"] == "ein {}"


def test_what_is_no_path_is_left_alone():
    for argument in (
        "-m",
        "seed=0,1",
        "dataset.root=/a,/b",
        "init_from=a,b",
        "run_dir=null",
        "run_dir=",
        "x",
        "a=~",
        "experiment_name=null",
        "experiment_name=1,2",
    ):
        assert readable([argument]) == [argument]
    (absolute, tag) = readable(["dataset.root=images", "model.pretrained=openai"], absolute=True)
    assert absolute == f"dataset.root={os.getcwd()}/images" and tag == "model.pretrained=openai"


def test_all_that_a_run_prints_can_be_pasted(tmp_path, small, capsys, shell, monkeypatch):
    """Hints to resume, and the report's command, which makes the run again."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / AWKWARD
    assert main([*SMALL, override_of("run_dir", folder)]) == 0
    page = (folder / "report.html").read_text()
    capsys.readouterr()
    resume = override_of("resume", folder)
    assert main([resume]) == 0
    assert main([*SMALL, override_of("run_dir", folder)]) == 2
    assert main([resume, "lr=1"]) == 2
    said = capsys.readouterr()
    commands = [line.partition(": ")[2] for line in said.out.splitlines() if ": python -m" in line]
    hints = [found[1].partition("prompts: ")[2] or found[1] for found in HINT.finditer(said.err)]
    assert len(commands) == 2 and len(hints) == 2
    for words in [*map(shell, commands), *(shell(f"words {hint}") for hint in hints)]:
        named = composed([word for word in words if "=" in word])
        assert str(folder) in (named["resume"], named["init_from"])
    again = shell(html.unescape(re.search(r"<pre>(.*?)</pre>", page, re.DOTALL)[1]))
    assert again[:2] == ["-m", "experiments.run"] and main(again[2:]) == 0
    assert (tmp_path / "outputs" / "default" / "latest" / "summary.json").exists()


def test_the_page_of_a_comparison_names_its_command(tmp_path, shell):
    folder = tmp_path / AWKWARD
    for seed in (0, 1):
        start(
            small_config(folder / f"seed={seed}", "rounds=0", f"seed={seed}"),
            federation_of=small_federation,
        )
    assert report([str(folder), "--format", "html"]) == 0
    page = (folder / "comparison.html").read_text()
    commands = [html.unescape(text) for text in re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL)]
    (command,) = [command for command in commands if "experiments.report" in command]
    assert shell(command) == ["-m", "experiments.report", str(folder), "--format", "html"]


@pytest.mark.parametrize(
    "command", ["", f"{LOCAL} --clients 2 context_init='an emoji of' 'run_dir=/ä b'"]
)
def test_a_deployment_s_report_names_the_command_that_made_it(tmp_path, shell, command):
    """Of flwr run, or of what started it for a person."""
    folder = tmp_path / "it's a run"
    words = [
        "dataset.domains=[noto]",
        "partition=dirichlet",
        "clients=2",
        "rounds=0",
        "shots=2",
        "evaluate_every=0",
    ]
    words += ["n_ctx=null", "context_init='it\\'s'", override_of("run_dir", folder)]
    nodes = Nodes(
        client_app(),
        [{"client-id": i, "state-dir": str(tmp_path / f"state_{i}")} for i in range(2)],
    )
    flower_app._run(nodes, flower_app._split(shlex.join(words)), command)
    page = (folder / "report.html").read_text()
    again = shell(html.unescape(re.search(r"<pre>(.*?)</pre>", page, re.DOTALL)[1]))
    if command:
        assert again == [
            "-m",
            "experiments.deploy",
            "local",
            "--clients",
            "2",
            "context_init=an emoji of",
        ]
    else:
        assert (
            of_flower(again) == words[:-1] and composed(of_flower(again))["context_init"] == "it's"
        )
