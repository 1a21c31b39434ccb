"""A command line is read as Hydra reads it."""

import subprocess
import sys

import pytest

from experiments.hydra_options import SWITCHES, WITH_A_VALUE, split_options

HYDRA = """
import hydra
@hydra.main(version_base="1.3", config_path=None)
def main(config): ...
main()
"""


@pytest.mark.parametrize(
    ("words", "overrides", "late", "on"),
    [
        ("seed=1 lr=2", ["seed=1", "lr=2"], [], set()),
        ("-m seed=0,1", ["seed=0,1"], [], {"multirun"}),
        ("method=coop -m seed=0,1", ["method=coop"], ["seed=0,1"], {"multirun"}),
        ("--multirun --help", [], [], {"multirun", "help"}),
        ("-c job seed=1 --resolve", ["seed=1"], [], {"resolve"}),
        ("--nonsense seed=1", ["seed=1"], ["--nonsense"], set()),
    ],
)
def test_settings_and_options(words, overrides, late, on):
    options, rest = split_options(words.split())
    assert (options.overrides, rest) == (overrides, late)
    assert {name for name, value in vars(options).items() if value is True} == on


def test_hydra_has_these_options_and_no_others():
    """The names in its own help, which ends each with a comma, a colon or the name of its value."""
    command = [sys.executable, "-c", HYDRA, "--hydra-help"]
    text = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    lines = [line for line in text.splitlines() if line.startswith("--")]
    names = {word.strip(",: ") for line in lines for word in line.split(" : ")[0].split(",")}
    ours = {name for names in (*SWITCHES, *WITH_A_VALUE) for name in names}
    assert names == ours | {"--info", "-i"}, text
