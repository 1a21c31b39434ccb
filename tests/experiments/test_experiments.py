"""conf/experiment: every table can be asked for by its command, and its embedded variant can
be split over clients."""

import pytest
import yaml

from experiments.resume_rules import may_change_on_resume
from experiments.settings import CONF, choices, composed, flatten
from fedpgp.build import check_config, load_configured
from fedpgp.protocols import PROTOCOLS, SplitRequest, split_clients

NAMES = sorted(set(choices()["experiment"]) - {"smoke"})
TABLES = [name for name in NAMES if name.endswith("_embedded")]
TABLES += ["compare_all", "compare_all_vit", "compare_lora", "protocols"]
CHOSEN_ON = "0"
"""The seed of ``experiment=choose_settings``."""


def sweep(name: str) -> dict[str, list[str]]:
    """The values that an experiment sweeps over, by key."""
    text = yaml.safe_load((CONF / "experiment" / f"{name}.yaml").read_text())
    return {
        key: str(values).split(",") for key, values in text["hydra"]["sweeper"]["params"].items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_its_sweep_names_settings_that_exist(name):
    lists, groups = sweep(name), choices()
    for key, values in lists.items():
        assert set(values) <= set(groups.get(key, values)), key
    plain = [f"{key}={values[0]}" for key, values in lists.items()]
    unswept, config = composed([f"experiment={name}"]), composed([f"experiment={name}", *plain])
    for each in (unswept, config):
        check_config(each)
    assert config["experiment_name"] == name
    if name in TABLES:  # an image or a seed that chose lr and mu would flatter it
        assert unswept["dataset"]["evaluate_on"] == "test" and CHOSEN_ON not in lists["seed"]
    for key, values in lists.items():
        group, dot, inner = key.partition(".")
        assert not dot or inner in config[group]
        for value in values[-1:] if dot or key not in groups else ():
            check_config(composed([f"experiment={name}", *plain, f"{key}={value}"]))


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("_embedded")])
def test_its_embedded_variant_can_be_split(name):
    lists = sweep(name)
    assert name.removesuffix("_embedded") in NAMES
    for clients in lists.get("clients", [None]):
        config = composed([f"experiment={name}", *([f"clients={clients}"] if clients else [])])
        assert (
            config["dataset"]["name"] == "emoji"
            and config["model"]["name"] == "tiny"
            and config["rounds"] <= 5
        )
        protocol, data = dict(config["protocol"]), load_configured(config)
        chosen = PROTOCOLS[protocol["name"]]
        if chosen.parts:
            protocol[chosen.parts] = chosen().values(data)[0]
        request = SplitRequest(
            data,
            config["clients"],
            0,
            config["shots"],
            config["partition"],
            lambda spec, config=config: load_configured(config, spec),
        )
        given = split_clients(request, protocol)
        assert all(
            len(client_split.train) and client_split.eval_sets for client_split in given.clients
        )


def test_settings_are_chosen_on_validation_images_of_a_seed_that_no_table_has():
    config = composed(["experiment=choose_settings"])
    assert config["dataset"]["evaluate_on"] == "validation" and str(config["seed"]) == CHOSEN_ON
    assert "seed" not in sweep("choose_settings")
    data, plain = load_configured(config), load_configured(composed())
    tested = {data.test.describe(i) for i in range(len(data.test))}
    assert not tested & {plain.test.describe(i) for i in range(len(plain.test))}


def test_settings_are_chosen_in_the_setting_of_make_run():
    chosen, usual = (flatten(composed(words)) for words in (["experiment=choose_settings"], []))
    differing = {key for key in chosen if chosen[key] != usual[key]}
    assert {key for key in differing if not may_change_on_resume(key)} == {
        "dataset.evaluate_on",
        "evaluate_every",
    }
