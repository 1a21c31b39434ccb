"""The contract with users: commands, names to import, override keys, files and keys of a run.

The lists stand here as they were promised; nothing in them is computed from the code. More may be
added, and nothing may go: scripts, saved configurations and notebooks depend on it.
"""

import csv
import importlib
import inspect
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from experiments.runner import start
from experiments.settings import CONF, choices, composed
from fedpgp.data import DATASETS, SCHEMES
from fedpgp.methods import METHODS
from fedpgp.protocols import PROTOCOLS
from tests.helpers.small import small_config, small_federation

ROOT = Path(__file__).resolve().parents[1]

COMMANDS = {  # module: what its help names
    "experiments.run": ["resume=", "-m", "--cfg"],
    "experiments.report": ["DIR", "--site"],
    "experiments.bench": ["--json"],
    "experiments.evaluate": ["--run"],
    "experiments.predict": ["--run", "--client", "--state", "--json", "--csv", "images"],
    "experiments.export": ["--run", "--client", "--to"],
    "experiments.deploy": ["local"],
    "experiments.verify": ["CELL|RUN_DIR|TABLE", "--all", "--budget", "--submission"],
    "experiments.doctor": ["--experiment", "--json"],
    "experiments.metrics": ["--state", "--run", "--port"],
    "experiments.serve": ["--run", "--client", "--state", "--host", "--port"],
}
BENCHMARKS = ["cohort", "features", "federation", "growth", "methods", "step"]
TARGETS = ["setup", "run", "test"]


def words(text: str) -> list[str]:
    return text.split()


NAMES = {  # name: parameters in order; "name=default", and after "*" by keyword alone
    "fedpgp.clip.load_clip": ["name", "pretrained=None", "device='cpu'"],
    "fedpgp.clip.FrozenCLIP": ["model", "tokenizer=None", "preprocess=None"],
    "fedpgp.text.PromptedTextEncoder": ["clip", "class_names", "n_ctx"],
    "fedpgp.prompts.personal_context": ["shared", "u", "v"],
    "fedpgp.losses.prompt_contrastive_loss": ["anchor", "positive", "negative", "temperature"],
    "fedpgp.data.load_dataset": ["name", "root=None"],
    "fedpgp.data.partition": [
        *("labels", "clients", "scheme", "seed", "*"),
        *("domains=None", "test_labels=None", "test_domains=None"),
    ],
}
ALL_DATASETS = words(
    "emoji oxford_pets flowers102 dtd caltech101 food101 cifar10 cifar100 domainnet domainnet10 "
    "office_caltech10 eurosat fgvc_aircraft stanford_cars ucf101 sun397 imagenet imagenetv2 "
    "imagenet_sketch imagenet_a imagenet_r tiny_imagenet office_home pacs folder hub "
    "fed_isic2019 camelyon17 flair"
)
ALL_METHODS = words(
    "zero_shot coop promptfl promptfl_ft fedprox fedper ditto scaffold fedpgp fedotp pfedprompt "
    "fedtpg dp_fpl pfedmoap fedpha pfedmma fedmgp promptfolio fedmvp fedclip fedamp cocoop plot "
    "proda prograd kgcoop promptsrc maple vpt prototype ridge fedpgp_lifelong "
    "fed_cprompt pilora fedmap "
    "fedit ffa_lora fedsa_lora flexlora fedex_lora fedpgp_lora hilora fedalt hetlora"
)
ALL_SCHEMES = words("iid dirichlet pathological shards domain domain_dirichlet pachinko natural")
ALL_PROTOCOLS = words(
    "base2novel personal multidomain leave_one_domain_out dirichlet cross_class cross_dataset "
    "cross_domain unseen_clients lifelong"
)

KEYS = [  # groups as choices, then values; the later ones need the earlier choices
    "model=tiny",
    "dataset=emoji",
    "partition=dirichlet",
    "protocol=base2novel",
    "method=fedpgp",
    "strategy=fedavg",
    "runtime=ray",
    "logger=none",
    "experiment=smoke",
    "seed=1",
    "rounds=2",
    "clients=4",
    "participation=0.5",
    "local_epochs=1",
    "batch_size=8",
    "lr=0.01",
    "shots=4",
    "n_ctx=4",
    "context_init=normal",
    "evaluate_every=2",
    "evaluate_clients=2",
    "run_dir=somewhere",
    "resume=null",
    "init_from=null",
    "verbose=true",
    "device=cpu",
    "dtype=float64",
    "method.rank=1",
    "method.mu=0.1",
    "method.tau=0.1",
    "method.guidance=plain",
    "method.personal_init=normal",
    "method.personal=full",
    "method.optimizer_state=keep",
    "method.personal_start=per_client",
    "dataset.root=null",
    "dataset.download=false",
    "dataset.on_bad_image=skip",
    "dataset.views=2",
    "partition.beta=0.5",
    "protocol.base=others",
    "protocol.local_labels=own",
    "strategy.max_update_norm=10",
    "runtime.workers=2",
    "runtime.address=null",
    "runtime.gpus_per_worker=0.5",
    "runtime.cohort_size=2",
    "runtime.cache_dir=null",
    "runtime.round_timeout=60",
    "runtime.min_clients=2",
    "runtime.debug=true",
    "runtime.live=true",
    "runtime.metrics_port=9100",
]
KEYS_OF_CHOICES = [  # keys that another choice of a group has
    ["attack=backdoor", "attack.share=0.1", "attack.scale=2"],
    ["dataset=folder", "dataset.root=images", "dataset.background=none"],
    ["method=component", "method.component=my_package.MyMethod"],
    ["partition=pathological", "partition.dealing=reference"],
    ["protocol=unseen_clients", "protocol.share=0.5", "protocol.onboard=finetune"],
    ["protocol=lifelong", "protocol.by=domain", "protocol.arrival=staggered"],
]

FILES = words(
    "config.yaml metrics.jsonl clients.csv partition.json summary.json report.html checkpoint "
    "private"
)
TRAIN = words("kind round loss clients seconds bytes_up bytes_down dropped")
EVAL = words("kind round clients zero_shot global personal")
COLUMNS = words("id domain train_images test_images model local base novel hm3 hm2")
SUMMARY = words(
    "method dataset model partition protocol seed rounds clients status accuracy bytes_up "
    "bytes_down wire_bytes_up wire_bytes_down seconds images_per_second peak_rss_mb peak_gpu_mb "
    "privacy attack evaluated_clients"
)
SECONDS = words("total train evaluate overhead encode")
MODELS = words("zero_shot global personal")
FIGURES = words(
    "local base novel hm3 hm2 cm ece worst10 domains std_clients f1_macro balanced auroc fpr95"
)
STD_CLIENTS = words("local base novel hm3 hm2")


@pytest.mark.parametrize("module", COMMANDS)
def test_every_command_explains_itself(module, monkeypatch, capsys):
    """As ``python -m MODULE --help`` starts it, in this process."""
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(SystemExit) as end:
        runpy.run_module(module, run_name="__main__")
    assert not end.value.code
    said = capsys.readouterr().out
    for option in COMMANDS[module]:
        assert option in said, option


def test_every_benchmark_is_a_choice(monkeypatch, capsys):
    from experiments.bench.__main__ import main

    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    for name in BENCHMARKS:
        assert name in said, name


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_is_made(target):
    command = ["make", "--dry-run", "--directory", str(ROOT), target]
    assert subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_imported_and_called_as_promised(name):
    module, _, attribute = name.rpartition(".")
    have = list(
        inspect.signature(getattr(importlib.import_module(module), attribute)).parameters.values()
    )
    promised = NAMES[name]
    positional = promised[: promised.index("*")] if "*" in promised else promised
    by_name = {parameter.name: parameter for parameter in have}
    for place, parameter in enumerate(positional):
        assert have[place].name == parameter.partition("=")[0]
        assert have[place].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    asked = [parameter.partition("=") for parameter in promised if parameter != "*"]
    for key, given, default in asked:
        found = by_name[key].default
        assert (repr(found) if given else found) == (default if given else inspect.Parameter.empty)
    assert (
        not [  # what was added may be left out
            parameter.name
            for parameter in have
            if parameter.name not in {key for key, _, _ in asked}
            and parameter.default is inspect.Parameter.empty
            and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        ]
    )


def test_a_data_set_has_what_was_promised():
    from fedpgp.data import load_dataset

    data = load_dataset("emoji", domains=["noto"])
    assert data.name == "emoji" and "{}" in data.template and data.val is None
    assert isinstance(data.class_names, list) and isinstance(data.class_names[0], str)
    for split in (data.train, data.test):
        assert len(split) == len(split.labels) and str(split.labels.dtype) == "int64"
        assert isinstance(split.domains, list)
    assert data.test.image(0).mode == "RGB"


@pytest.mark.parametrize(
    ("promised", "registered", "group"),
    [
        (ALL_DATASETS, DATASETS, "dataset"),
        (ALL_METHODS, METHODS, "method"),
        (ALL_SCHEMES, SCHEMES, "partition"),
        (ALL_PROTOCOLS, PROTOCOLS, "protocol"),
    ],
    ids=["dataset", "method", "partition", "protocol"],
)
def test_every_name_is_known_and_has_a_yaml(promised, registered, group):
    assert set(promised) <= set(registered)
    assert set(promised) <= set(choices()[group])


def test_every_key_composes():
    config = composed(KEYS)
    for override in KEYS:
        key, _, value = override.partition("=")
        if key in choices():
            continue
        found = config
        for name in key.split("."):
            assert name in found, key
            found = found[name]
        assert found == yaml.safe_load(value), key


@pytest.mark.parametrize("overrides", KEYS_OF_CHOICES, ids=lambda overrides: overrides[0])
def test_every_key_of_a_choice_composes(overrides):
    assert (CONF / f"{overrides[0].replace('=', '/')}.yaml").exists()
    composed(overrides)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("contract") / "run"
    start(small_config(folder, "rounds=1"), federation_of=small_federation)
    return folder


def test_a_run_writes_every_file(run):
    assert set(FILES) <= {path.name for path in run.iterdir()}


def test_config_has_versions_and_commit(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert {"versions", "git_commit", "seed", "method"} <= set(config)


def test_metrics_has_every_key(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["round"]) for line in lines] == [
        ("eval", 0),
        ("train", 1),
        ("eval", 1),
    ]
    for line in lines:
        assert set(TRAIN if line["kind"] == "train" else EVAL) <= set(line)
    for model in MODELS:
        assert set(FIGURES) <= set(lines[-1][model])


def test_clients_has_every_column(run):
    rows = list(csv.DictReader((run / "clients.csv").open()))
    assert set(COLUMNS) <= set(rows[0])
    assert {row["model"] for row in rows} == set(MODELS)


def test_summary_has_every_key(run):
    summary = json.loads((run / "summary.json").read_text())
    assert set(SUMMARY) <= set(summary)
    assert set(SECONDS) <= set(summary["seconds"])
    assert summary["status"] == "finished"
    assert set(summary["accuracy"]) == set(MODELS)
    for model in MODELS:
        assert set(FIGURES) <= set(summary["accuracy"][model])
        assert set(STD_CLIENTS) <= set(summary["accuracy"][model]["std_clients"])
