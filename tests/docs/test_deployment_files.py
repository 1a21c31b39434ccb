"""docs/deployment/: the services name commands and options that exist."""

import argparse
import re
import shlex
from pathlib import Path

import pytest
import yaml

from clients.node_config import NodeConfig
from experiments import deploy, metrics, serve, superlink

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "deployment"
UNITS = sorted(FOLDER.glob("*.service"))
SERVICES = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]


class Parsed(Exception):
    """The options are known; nothing else is tried."""


def check(words: list[str], monkeypatch, folder: Path) -> None:
    """A command of the project takes these words; keys are made, in ``folder``."""
    module, *rest = words
    if module == "experiments.deploy":
        assert deploy.main([word.replace("/srv/secrets", str(folder)) for word in rest]) == 0
        assert (folder / "client_1.key.pub").exists() and (folder / "admin.token").exists()
        return

    def parsed(self, *arguments, **options):
        found, strange = self.parse_known_args(*arguments, **options)
        if strange:
            self.error(f"unknown {strange}")
        raise Parsed

    if module == "experiments.supernode":
        given = dict(re.findall(r"--([\w-]+)[= ](.*)", "\n".join(_with_values(rest))))
        assert {"superlink", "root-certificates", "auth-supernode-private-key"} <= set(given)
        assert NodeConfig.of_text(given["node-config"]).data_dir is not None
        return
    commands = {"superlink": superlink, "serve": serve, "metrics": metrics}
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    with pytest.raises(Parsed):
        commands[module.removeprefix("experiments.")].main(rest)


def _with_values(words: list[str]) -> list[str]:
    """``--a b --c=d`` as one text an option."""
    found: list[str] = []
    for word in words:
        if word.startswith("--"):
            found.append(word)
        else:
            found[-1] += f" {word}"
    return found


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_a_unit_starts_a_command_with_options_that_exist(unit, monkeypatch, tmp_path):
    text = unit.read_text().replace("\\\n", " ")
    (line,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    python, flag, *words = shlex.split(line)
    assert python.endswith("/.venv/bin/python") and flag == "-m"
    check(words, monkeypatch, tmp_path)
    assert {"[Unit]", "[Service]", "[Install]", "Restart=always"} <= set(text.splitlines())


@pytest.mark.parametrize("name", [name for name in SERVICES if name != "admin"])
def test_a_service_starts_a_command_with_options_that_exist(name, monkeypatch, tmp_path):
    service = SERVICES[name]
    check(service["command"], monkeypatch, tmp_path)
    assert service["image"] == "fedpgp" and service["cap_drop"] == ["ALL"]
    for volume in service["volumes"]:
        source = volume.split(":")[0]
        volumes = yaml.safe_load((FOLDER / "compose.yaml").read_text())["volumes"]
        assert source.startswith("./") or source in volumes


def test_the_image_has_what_its_file_names():
    text = (ROOT / "Dockerfile").read_text()
    assert set(re.findall(r"^COPY (?!--)(\S+) \./$", text, re.MULTILINE)) == {"constraints.txt"}
    extras = re.search(r"--editable '\.\[([\w,]+)\]'", text)[1].split(",")
    known = (ROOT / "pyproject.toml").read_text()
    assert all(re.search(rf"^{extra} = ", known, re.MULTILINE) for extra in extras)
    assert re.search(r'^CMD \["experiments\.doctor"', text, re.MULTILINE)
