"""Settings a person can get wrong: names that do not exist, values that cannot work. Each is
refused with the nearest valid ones.

Hydra finds such things too, in its own words; here they are said in a line, before anything starts.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedpgp.errors import FedPGPError, unknown
from fedpgp.plain_text import written_out

CONF = Path(__file__).resolve().parents[1] / "conf"

RESUMABLE = ("verbose", "resume", "run_dir", "experiment_name", "runtime", "logger")
"""Settings that do not change a run's numbers (but for rounding), and so may change when it is
resumed."""

FIXED = ("runtime.dropout", "runtime.slow_clients")
"""Those of the runtime that do change them: who drops out, who is slow."""

_INTEGERS = {  # key: (least, what it is)
    "seed": (0, "0 or more"),
    "rounds": (0, "0 or more"),
    "clients": (1, "1 or more"),
    "local_epochs": (1, "1 or more"),
    "batch_size": (1, "1 or more"),
    "evaluate_every": (0, "0 (only first and last) or more"),
    "training.warmup_rounds": (0, "0 or more"),
    "runtime.min_clients": (1, "1 or more"),
    "runtime.min_report": (1, "1 or more"),
    "method.rank": (1, "1 or more"),
}
_INTEGERS_OR_NULL = {
    "shots": (1, "1 or more, or null for all images"),
    "evaluate_clients": (1, "1 or more, or null for all clients"),
    "n_ctx": (1, "1 or more"),
    "runtime.workers": (1, "1 or more"),
}
_NUMBERS = {  # key: (test, what it is)
    "participation": (lambda x: 0 < x <= 1, "above 0 and at most 1"),
    "lr": (lambda x: x > 0, "above 0"),
    "training.momentum": (lambda x: 0 <= x < 1, "from 0 to below 1"),
    "training.weight_decay": (lambda x: x >= 0, "0 or more"),
    "partition.beta": (lambda x: x > 0, "above 0"),
    "runtime.gpus_per_worker": (lambda x: x > 0, "above 0"),
    "runtime.max_step": (lambda x: x > 0, "above 0"),
    "runtime.dropout": (lambda x: 0 <= x < 1, "from 0 to below 1"),
    "runtime.slow_clients": (lambda x: 0 <= x <= 1, "from 0 to 1"),
    "method.mu": (lambda x: x >= 0, "0 or more"),
    "method.tau": (lambda x: x > 0, "above 0"),
}
_NUMBERS_OR_NULL = {
    "strategy.max_update_norm": (lambda x: x >= 1, "1 or more, or null for no bound"),
    "strategy.max_weight": (lambda x: x >= 1, "1 or more, or null for no bound"),
}
_CHOICES = {
    "first_round": ("sampled", "all"),
    "device": ("auto", "cpu", "cuda", "mps"),
    "dtype": ("float32", "float64", "bfloat16"),
    "training.optimizer": ("sgd", "adam", "adamw"),
    "training.schedule": ("constant", "cosine", "step"),
    "runtime.name": ("ray", "inline", "flower"),
    "runtime.seats": ("key", "free"),
    "method.optimizer_state": ("reset", "keep"),
    "method.personal_start": ("shared", "per_client"),
    "method.weighting": ("images", "equal"),
    "method.guidance": ("plain", "photo", "context"),
    "method.personal_init": ("zero", "normal"),
}


def check(config: Mapping) -> None:
    """Refuses values that cannot work, whatever the data; what depends on the data is refused
    where the data are known.

    Raises:
        FedPGPError: naming key, value and the valid range.
    """
    from fedpgp.protocols import make_protocol  # data sets and torch: not needed for --help

    flat = flatten(config)
    for key, value in flat.items():
        if value == "???":
            raise FedPGPError(f"{key} has no value; give it one: {key}=...")
    for key, (least, valid) in {**_INTEGERS, **_INTEGERS_OR_NULL}.items():
        value = flat.get(key, least)
        if value is None and key in _INTEGERS_OR_NULL:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise FedPGPError(f"{key}={_shown(value)} cannot work; it is a whole number, {valid}")
    for key, (test, valid) in {**_NUMBERS, **_NUMBERS_OR_NULL}.items():
        if flat.get(key) is None and (key not in flat or key in _NUMBERS_OR_NULL):
            continue
        value = flat[key]
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
            or not test(value)
        ):
            raise FedPGPError(f"{key}={_shown(value)} cannot work; it is a number {valid}")
    for key, choices in _CHOICES.items():
        if key in flat and flat[key] not in choices:
            raise FedPGPError(unknown(f"value of {key}", flat[key], choices))
    for key in ("training.shuffle", "training.drop_last", "verbose"):
        if not isinstance(flat[key], bool):
            raise FedPGPError(f"{key}={_shown(flat[key])} cannot work; it is true or false")
    timeout = flat["runtime.round_timeout"]
    if timeout is not None and (
        isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or timeout <= 0
    ):
        raise FedPGPError(
            f"runtime.round_timeout={_shown(timeout)} cannot work; it is a number of seconds "
            "above 0, or null"
        )
    cohort = flat["runtime.cohort_size"]
    if cohort != "auto" and (isinstance(cohort, bool) or not isinstance(cohort, int) or cohort < 1):
        raise FedPGPError(
            f"runtime.cohort_size={_shown(cohort)} cannot work; it is auto or a whole number, 1 "
            "or more"
        )
    make_protocol(config["protocol"])
    views = flat.get("dataset.views", 1)
    if views != "live" and (isinstance(views, bool) or not isinstance(views, int) or views < 1):
        raise FedPGPError(
            f"dataset.views={_shown(views)} cannot work; it is a whole number, 1 or more, or live"
        )
    if flat.get("runtime.slow_clients") and flat["local_epochs"] < 2:
        raise FedPGPError(
            "runtime.slow_clients needs local_epochs=2 or more: a slow client does not finish "
            "its epochs"
        )
    if flat["n_ctx"] is None and flat["context_init"] == "normal":
        raise FedPGPError(
            "n_ctx=null takes the number of context vectors from a phrase; give context_init "
            "one, or n_ctx a number"
        )


def check_runtime(config: Mapping, *, deployed: bool) -> None:
    """Refuses a deployment that Flower does not start, clients' own images anywhere but in a
    deployment, and a deadline that nobody could keep.

    Raises:
        FedPGPError: saying which command it is for.
    """
    name = config["runtime"]["name"]
    if not deployed and name == "flower":
        raise FedPGPError(
            "runtime=flower is started by: python -m experiments.deploy local, or flwr run "
            "(docs/deployment.md)"
        )
    if deployed and name != "flower":
        raise FedPGPError(f"runtime={name} is for experiments.run; a deployment has runtime=flower")
    if not deployed and config["partition"]["scheme"] == "own":
        raise FedPGPError(
            "partition=own is for a deployment: python -m experiments.deploy local --data FOLDER"
        )
    if name == "inline" and config["runtime"]["round_timeout"] is not None:
        raise FedPGPError(
            "runtime.round_timeout cannot be kept with runtime=inline: client code runs in the "
            "server's own process, and nobody could end it; leave it out, or use runtime=ray"
        )


def changed_on_resume(arguments: Sequence[str], config: Mapping, stored: Mapping) -> list[str]:
    """Keys that the command line of a resume sets to something else than the run was started with.

    Args:
        arguments: the overrides.
        config: the configuration they compose to.
        stored: the run's own.
    """
    groups = choices()
    new, old = flatten(config), flatten(stored)
    named: set[str] = set()
    for override in parse(arguments):
        key = override.key_or_group
        if key in ("experiment", "recipe"):
            named |= set(new)  # an overlay may touch anything
        elif key in groups:
            named |= {name for name in {**new, **old} if name == key or name.startswith(f"{key}.")}
        else:
            named |= {name for name in {**new, **old} if name == key or name.startswith(f"{key}.")}
    return sorted(k for k in named if not may_change_on_resume(k) and new.get(k) != old.get(k))


def may_change_on_resume(key: str) -> bool:
    """Whether a setting may change when a run is resumed."""
    return key.split(".")[0] in RESUMABLE and key not in FIXED


def composed(overrides: Iterable[str] = ()) -> dict:
    """The configuration as a plain nested dict.

    Raises:
        FedPGPError: what Hydra refuses, in a line.
    """
    register_resolvers()
    active = GlobalHydra.instance().hydra
    try:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return resolved(compose("config", overrides=list(overrides)))
    except HydraException as error:
        raise FedPGPError(" ".join(str(error).split())) from error
    finally:
        GlobalHydra.instance().hydra = active


def resolved(config: DictConfig) -> dict:
    """A configuration as a plain nested dict, with its interpolations resolved.

    Raises:
        FedPGPError: what OmegaConf refuses, in a line: an interpolation of a key that is not there.
    """
    try:
        return OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise FedPGPError(" ".join(str(error).split())) from error


def parse(arguments: Sequence[str]) -> list[Override]:
    """Command-line overrides, read by Hydra's grammar.

    Raises:
        FedPGPError: one that cannot be read.
    """
    found = []
    for argument in arguments:
        check_text(argument)
        try:
            found += OverridesParser.create().parse_overrides([argument])
        except HydraException:
            advice = "quotes around values that hold , = or brackets"
            if not argument.isascii():  # Hydra's grammar has no other letters without quotes
                advice = "quotes around each name that is not plain ASCII: \"key=['Bär','cat']\""
            raise FedPGPError(f"cannot read {argument!r}; write key=value, with {advice}") from None
    return found


def check_text(argument: str) -> None:
    """Refuses an argument that no configuration file can hold.

    Raises:
        FedPGPError: it has bytes that are not UTF-8.
    """
    try:
        argument.encode()
    except UnicodeEncodeError:
        raise FedPGPError(
            f"{written_out(argument)} has bytes that are not UTF-8, and a configuration cannot "
            "hold them: rename the file or folder, or give a link to it another name"
        ) from None


def choices() -> dict[str, list[str]]:
    """Group -> its choices."""
    return {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in sorted(CONF.iterdir())
        if folder.is_dir()
    }


def swept_by(experiment: str) -> list[str]:
    """The keys that an experiment of conf/experiment has several values of."""
    try:
        config = yaml.safe_load((CONF / "experiment" / f"{experiment}.yaml").read_text()) or {}
    except OSError:  # null, or unknown, which is said elsewhere
        return []
    return list(config.get("hydra", {}).get("sweeper", {}).get("params", {}))


def flatten(config: Mapping, prefix: str = "") -> dict[str, object]:
    """Nested -> {"a.b": value}."""
    flat: dict[str, object] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def register_resolvers() -> None:
    """What conf/ computes: a sweep's folder, and ``few_shot`` (``few`` where ``shots``
    is set, else ``full``)."""
    if not OmegaConf.has_resolver("sweep_folder"):
        from experiments.run_folder import sweep_folder

        OmegaConf.register_new_resolver("sweep_folder", sweep_folder, use_cache=True)
        OmegaConf.register_new_resolver(
            "few_shot", lambda shots, few, full: full if shots is None else few
        )


def _shown(value: object) -> str:
    return (
        "null"
        if value is None
        else str(value).lower()
        if isinstance(value, bool)
        else repr(value)
        if value == ""
        else str(value)
    )
