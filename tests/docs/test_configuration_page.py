"""Each key of conf/ is declared once, each declared one is in conf/ with a sentence, and
docs/configuration.md has them all."""

import dataclasses
import inspect

import pytest
import yaml

from experiments.settings import CONF, choices, composed, flatten
from fedpgp.attacks import ATTACKS
from fedpgp.build import check_config
from fedpgp.config import Config
from fedpgp.data import DATASETS, SCHEMES
from fedpgp.methods import METHODS
from fedpgp.protocols import PROTOCOLS
from fedpgp.updates import UPDATE_STEPS
from strategies.flower_strategies import own_options
from tools.configuration_page import PAGE, keys_of, rendered

SECTIONS = (Config, *Config.sections().values())


def fields(kind: type) -> set[str]:
    return {each.name for each in dataclasses.fields(kind)}


def parameters(function) -> set[str]:
    return set(inspect.signature(function).parameters)


OWN = {
    "method": lambda name: fields(METHODS[name].Settings),
    "protocol": lambda name: fields(PROTOCOLS[name]),
    "partition": lambda name: parameters(SCHEMES[name].assign),
    "dataset": lambda name: parameters(DATASETS[name]) - {"root", "download"},
    "strategy": lambda name: set(own_options(name)),
    "attack": lambda name: fields(ATTACKS[name]) if name != "none" else set(),
    "privacy": lambda name: fields(UPDATE_STEPS[name].Settings) if name != "none" else set(),
}
"""Group -> what declares one choice's own keys."""


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.prefix or "top")
def test_each_declared_key_is_in_conf_with_a_sentence(section):
    for key, found in keys_of(section).items():
        assert found, f"{key} is declared in fedpgp/config and has no line in conf/"
        assert any(sentence for _, sentence in found.values()), f"{key} has no sentence in conf/"


def test_each_key_of_conf_is_declared_once():
    config = composed()
    top = {key for key in config if not isinstance(config[key], dict)}
    assert top <= set(Config.declared())
    assert set(config) - top - {"protocol"} == set(Config.sections())
    for group in ("training", "runtime", "logger", "model"):
        for choice in choices().get(group, [None]):
            chosen = composed([f"{group}={choice}"] if choice else [])[group]
            assert set(chosen) <= set(Config.sections()[group].declared()), (group, choice)


@pytest.mark.parametrize(
    ("group", "choice"),
    [
        (group, choice)
        for group in OWN
        for choice in choices()[group]
        if (group, choice) not in (("partition", "own"), ("method", "component"))
    ],
)
def test_the_keys_of_a_choice_are_declared_once(group, choice):
    """By the section that all choices share, or by the choice's own code."""
    path = CONF / group / f"{choice}.yaml"
    keys = set(yaml.safe_load(path.read_text())) - {"defaults"}
    shared = set(Config.sections()[group].declared()) if group != "protocol" else {"name"}
    own = OWN[group](choice)
    assert keys <= shared | own, f"{path.name}: nobody declares {keys - shared - own}"
    assert not keys & shared & own, f"{path.name}: declared twice: {keys & shared & own}"


@pytest.mark.parametrize(
    "choice",
    [
        f"{group}={name}"
        for group in (*OWN, "runtime", "logger")
        if group != "dataset"
        for name in choices()[group]
        if name != "component"
    ],
)
def test_every_default_passes_its_own_check(choice):
    check_config(composed([choice]))


def test_the_page_has_them_all():
    page = PAGE.read_text()
    assert rendered(page) == page, (
        "docs/configuration.md is older: python -m tools.configuration_page"
    )
    for key in flatten({name: composed()[name] for name in ("training", "runtime", "logger")}):
        if not key.endswith(".name"):
            assert f"| `{key}` |" in page, key
