"""conf/recipe and the published experiments hold the values of their sources, which
each names in a comment."""

import csv
from functools import cache

import pytest

from experiments.reporting.published_figures import PUBLISHED as FIGURES
from experiments.settings import CONF, composed, flatten
from fedpgp.build import check_config, method_settings
from fedpgp.methods import METHODS

RECIPES = sorted(path.stem for path in (CONF / "recipe").glob("*.yaml"))
OF_METHODS = sorted(path.stem for path in (CONF / "recipe" / "method").glob("*.yaml"))


@cache
def flat(*words: str) -> dict[str, object]:
    config = composed(words)
    check_config(config)
    return flatten(config)


def holds(config: dict[str, object], **values: object) -> None:
    """The values by key, a dot of a key written as two underscores."""
    expected = {key.replace("__", "."): value for key, value in values.items()}
    assert {key: config[key] for key in expected} == expected


PUBLISHED = {
    # TianyuCuiOvO/FedPGP, commit d43045b33f42, scripts/plot_basetonew_base.sh, lines 15 to 36 and
    # 69
    "paper": {
        "model.name": "ViT-B-16-quickgelu",
        "partition.scheme": "pathological",
        "clients": 10,
        "participation": 1,
        "rounds": 25,
        "local_epochs": 2,
        "shots": 16,
        "batch_size": 16,  # --train_batch_size ${SHOTS}
        "lr": 0.001,
        "n_ctx": 16,
        "context_init": "normal",
        "method.rank": 8,
        "method.mu": 0.5,
        "method.tau": 0.5,
        "method.guidance": "plain",  # the paper's figure: "a photo of a <class>" for every data set
        "method.personal_init": "normal",  # trainers/fedpgp.py, lines 102 and 103
        # one optimizer for all rounds: trainers/fedpgp.py, line 330
        "method.optimizer_state": "keep",
        "training.optimizer": "sgd",
        "training.momentum": 0.9,
        "training.weight_decay": 5e-4,
        "training.schedule": "constant",
        "training.drop_last": True,  # Dassl/dassl/data/data_manager.py, line 48
        "dataset.views": "live",  # configs/trainers/PLOT/vit_b16.yaml, line 13
    },
    # weihao-bo/FedMGP, commit 3a026970df7b, configs/trainers/FedPGP/base2novel_vit_b16.yaml
    "fedmgp": {
        "rounds": 10,
        "local_epochs": 2,
        "clients": 10,
        "shots": 16,
        "batch_size": 8,
        "lr": 0.001,
        "n_ctx": 16,
        "context_init": "normal",
        "method.rank": 8,
        "method.mu": 0.5,
        "method.tau": 0.5,
        "method.optimizer_state": "keep",
        "training.schedule": "constant",
        "training.drop_last": True,
        "dataset.views": "live",
    },
    "flip": {  # 0-ml/flip, commit ec3a848b46f3, scripts/run_batch.sh and main.py
        "model.name": "RN50-quickgelu",
        "partition.scheme": "dirichlet",
        "partition.beta": 0.1,
        "partition.min_size": 5,  # flcore/datasets/utils.py, line 113
        "clients": 10,
        "rounds": 50,
        "local_epochs": 1,
        "shots": 8,
        "batch_size": 16,
        "lr": 0.002,
        "n_ctx": 4,
        "context_init": "normal",
        "training.schedule": "cosine",
        "training.momentum": 0.9,
        "training.weight_decay": 1e-4,
        "training.drop_last": False,
        "method.mu": 1.0,
        "method.tau": 1.0,
        "method.optimizer_state": "reset",  # flcore/clients/client_fedavg.py, line 26
        "dataset.views": "live",
    },
    "fedtpg": {  # boschresearch/FedTPG, commit f141c2994b5a, config/defaults.py, Launch_FL.py
        "model.name": "ViT-B-16-quickgelu",
        "shots": 8,
        "rounds": 500,
        "local_epochs": 1,
        "batch_size": 200,
        "lr": 0.003,
        "n_ctx": 4,
        "training.optimizer": "sgd",
        "training.momentum": 0.9,
        "training.weight_decay": 1e-5,
        "training.schedule": "cosine",
        "training.drop_last": False,
        "method.optimizer_state": "keep",
        "dataset.views": 1,  # dataloader/dm_federated.py, line 144
    },
    "fedmap": {  # YipanWei/FedMAP, commit 12e05f1, Scripts/configs/datasets/fedisic.yaml
        "model.name": "ViT-B-16-quickgelu",
        "partition.scheme": "natural",
        "rounds": 50,
        "local_epochs": 1,
        "shots": None,
        "batch_size": 32,
        "lr": 0.001,
        "n_ctx": 16,
        "context_init": "normal",
        "training.optimizer": "sgd",
        "training.schedule": "constant",  # single_step with gamma 1
        "method.optimizer_state": "keep",
        "dataset.views": "live",
    },
}


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_a_recipe_is_the_published_optimisation(recipe):
    config = flat(f"recipe={recipe}", "method=fedpgp")
    assert {key: config[key] for key in PUBLISHED[recipe]} == PUBLISHED[recipe]


def test_every_recipe_is_tested_and_names_its_source():
    assert set(RECIPES) == {*PUBLISHED, "embedded", "short", "robustness"}
    for path in [
        *(CONF / "recipe" / f"{name}.yaml" for name in PUBLISHED),
        *(CONF / "recipe" / "method").glob("*.yaml"),
    ]:
        text = " ".join(path.read_text().replace("#", " ").split())
        if "what recipe=paper sets, with its source" not in text:
            assert "at commit " in text or "its code is not public" in text, path.name


def test_a_recipe_made_of_another_has_its_methods_settings():
    for path in (CONF / "recipe" / "method").glob("fedmgp_*.yaml"):
        if "what recipe=paper sets" in path.read_text():
            method = path.stem.removeprefix("fedmgp_")
            ours, theirs = (
                flat(f"recipe={recipe}", f"method={method}") for recipe in ("fedmgp", "paper")
            )
            same = {
                key for key in ours if key.startswith("method.") or key in ("n_ctx", "context_init")
            }
            assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}, method


def test_fedmaps_medical_table():
    """YipanWei/FedMAP, commit 12e05f1, Scripts/federated_main.py and Scripts/utils/utils.py."""
    config = flat("experiment=fedmap_medical", "method=fedmap")
    holds(config, clients=6, rounds=50, method__depth=12, method__tokens=1, method__weight=10.0)
    holds(config, method__momentum=0.9, dataset__name="fed_isic2019")
    holds(flat("experiment=fedmap_medical", "method=vpt"), method__tokens=1, method__depth=12)
    more = ("dataset=camelyon17", "dataset.share=0.01", "clients=5")
    holds(flat("experiment=fedmap_medical", "method=kgcoop", *more), method__weight=8.0)


@pytest.mark.parametrize("name", OF_METHODS)
def test_a_methods_own_recipe_fits_the_method_and_its_recipe(name):
    recipe = next(recipe for recipe in RECIPES if name.startswith(f"{recipe}_"))
    config = composed([f"recipe={recipe}", f"method={name.removeprefix(f'{recipe}_')}"])
    check_config(config)
    settings = method_settings(config)
    METHODS[config["method"]["name"]].Settings(**settings)
    if config["method"]["name"] in ("fedpgp", "dp_fpl"):
        assert settings["rank"] <= config["n_ctx"]


@pytest.mark.parametrize(
    ("recipe", "method", "tokens"),
    [
        # Each repository's configs/trainers/ (the file names the commit): CTX_INIT "a
        # photo of a" and N_CTX.
        ("paper", "maple", 2),
        ("paper", "promptsrc", 4),
        ("paper", "fedmgp", 2),
        ("paper", "cocoop", 4),
        ("paper", "kgcoop", 4),
        ("fedmgp", "maple", 2),
        ("fedmgp", "fedmgp", 2),
    ],
)
def test_methods_that_start_from_a_phrase(recipe, method, tokens):
    holds(flat(f"recipe={recipe}", f"method={method}"), n_ctx=tokens, context_init="a photo of a")


def test_momentum_is_kept_for_the_methods_of_the_papers_recipe():
    """FedCLIP's code alone makes a new optimizer every round (microsoft/PersonalizedFL, commit
    441670edb574, fedclip/methods/fed_at_clip.py)."""
    for method in METHODS:
        kept = flat("recipe=paper", f"method={method}")["method.optimizer_state"]
        assert kept == ("reset" if method == "fedclip" else "keep"), method


def test_the_batch_is_the_number_of_shots_or_32_with_all_images():
    """TianyuCuiOvO/FedPGP, commit d43045b33f42: the script's line 69 and
    federated_main.py, line 471."""
    assert flat("recipe=paper", "shots=8")["batch_size"] == 8
    assert flat("recipe=paper", "shots=null")["batch_size"] == 32
    assert flat("recipe=paper", "shots=8", "batch_size=4")["batch_size"] == 4


def test_fedotps_entropy():
    """HongxiaLee/FedOTP, commit 9948611a2325, scripts/fedotp_few_shot.sh, line 11, and
    fedotp_cifar100.sh, line 12; weihao-bo/FedMGP, commit 3a026970df7b,
    configs/trainers/FedOPT/base2novel_vit_b16.yaml."""
    assert flat("experiment=paper_base2novel", "method=fedotp")["method.epsilon"] == 0.01
    assert flat("experiment=paper_cifar100", "method=fedotp")["method.epsilon"] == 0.1
    assert flat("experiment=fedmgp_base2novel", "method=fedotp")["method.epsilon"] == 0.1


def test_pfedmoap_personal():
    """ljaiverson/pFedMoAP, commit a481de35edc7: configs/trainers/PFEDMOAP/rn50.yaml, lines 17, 19
    and 26, train.sh, federated_main.py, lines 17 and 18."""
    config = flat("experiment=pfedmoap_personal", "method=pfedmoap")
    holds(
        config,
        lr=0.002,
        training__schedule="cosine",
        shots=16,
        batch_size=16,
        rounds=10,
        local_epochs=5,
        clients=10,
    )
    holds(config, method__text=0.5, method__experts=10, n_ctx=16)
    assert config["method.gate_lr"] == 0.01


@pytest.mark.parametrize("name", ["dp_fpl_neighbour", "dp_fpl_factors"])
def test_dp_fpl_tables(name):
    """linhhtran/DP-FPL, commit cce74b479525, federated_main.py, lines 49, 226, 229,
    234 to 236, 242 and 250."""
    config = flat(
        f"experiment={name}", "method=dp_fpl" if name == "dp_fpl_neighbour" else "method=fedpgp"
    )
    holds(
        config,
        rounds=100,
        local_epochs=1,
        shots=None,
        batch_size=32,
        lr=0.001,
        clients=10,
        method__rank=8,
    )
    holds(config, protocol__selection="last_five", protocol__base="others")


def test_dp_fpls_own_baselines_stand_beside_what_they_are():
    """The same repository, trainers/DP_FPL.py, lines 159 to 163: "fedotp" is global + local
    context, "fedpgp" is global + U V; the loss is cross-entropy alone."""
    assert flat("experiment=dp_fpl_factors")["method.mu"] == 0
    rows = {
        name: list(csv.DictReader((FIGURES / f"{name}.csv").open()))
        for name in ("dp_fpl_neighbour", "dp_fpl_factors")
    }
    assert {row["method"] for row in rows["dp_fpl_neighbour"]} == {"promptfl"}
    said = {(row["method"], row["method.personal"]): row["note"] for row in rows["dp_fpl_factors"]}
    assert set(said) == {("fedpgp", "low_rank"), ("fedpgp", "full")}
    assert (
        "there called FedPGP" in said["fedpgp", "low_rank"]
        and "there called FedOTP" in said["fedpgp", "full"]
    )


def test_published_rows_of_fedpgp_with_two_prompts_say_so():
    """weihao-bo/FedMGP, commit 3a026970df7b, configs/trainers/FedPGP/base2novel_vit_b16.yaml: N 2,
    mu 0.5; sajjad-ucsb/pFedMMA, commit 84197bb89b6d, scripts/base2new.sh: NUM_PROMPT 2, MU 0.5."""
    for name in ("fedmgp_base2novel", "paper_base2novel"):
        for row in csv.DictReader((FIGURES / f"{name}.csv").open()):
            if row["method"] == "fedpgp" and row["source"] in ("FedMGP", "pFedMMA"):
                assert "N = 2" in row["note"] and "mu 0.5" in row["note"]


@pytest.mark.parametrize(
    "name", ["fedtpg_cross_class", "fedtpg_cross_dataset", "fedtpg_cross_domain"]
)
def test_fedtpg_tables(name):
    """boschresearch/FedTPG, commit f141c2994b5a: output/cross_cls/fedtpg/20_8/43/log.txt and
    output/cross_data/fedtpg/5_8/43/log.txt (5 classes a client of ImageNet, avail_percent 0.1)."""
    config = flat(f"experiment={name}", "method=fedtpg")
    holds(
        config,
        shots=8,
        rounds=500,
        local_epochs=1,
        batch_size=200,
        lr=0.003,
        n_ctx=4,
        method__loss_classes="own",
    )
    if name == "fedtpg_cross_class":
        holds(config, clients=30, participation=1.0)
    else:
        holds(config, clients=200, participation=0.1, protocol__train_labels="own")


def test_label_shift_is_split_as_in_the_public_code():
    """TianyuCuiOvO/FedPGP, commit d43045b33f42, datasets/datasplit.py, lines 273, 309
    to 311 and 319 to 404."""
    holds(
        flat("experiment=paper_cifar10"),
        partition__min_size=10,
        partition__min_test_size=10,
        clients=100,
    )
    holds(
        flat("experiment=paper_cifar100"),
        partition__scheme="pachinko",
        partition__pooled=True,
        clients=100,
    )


@pytest.mark.parametrize("name", ["domainnet", "office"])
def test_domains_are_split_as_in_the_public_code(name):
    """The same repository, data_utils.py, lines 181 and 315: two training and two
    test images at least."""
    config = flat(f"experiment=paper_domains_{name}")
    holds(config, partition__scheme="domain_dirichlet", partition__beta=0.3, partition__min_size=2)
    holds(config, partition__min_test_size=2)


@pytest.mark.parametrize("name", ["domainnet", "office"])
def test_a_held_out_domain_is_tested_on_all_of_its_images(name):
    """The same repository, data_utils.py, line 97."""
    holds(flat(f"experiment=paper_leave_one_domain_out_{name}"), protocol__held_out_images="all")


def test_recipe_robustness_guards_against_30_percent_of_24_clients():
    """As many as each strategy can; what recipe=short sets is left as it is."""
    plain = flat("recipe=short")
    assert flat("recipe=robustness") == plain
    for name, settings in {
        "krum": {"num_malicious_nodes": 7},
        "multikrum": {"num_malicious_nodes": 7, "num_nodes_to_select": 17},
        "bulyan": {"num_malicious_nodes": 5},
        "fedtrimmedavg": {"beta": 0.3},
    }.items():
        found = flat("recipe=robustness", f"strategy={name}")
        ours = {f"strategy.{key}": value for key, value in settings.items()}
        assert found == {**flat("recipe=short", f"strategy={name}"), **ours}
