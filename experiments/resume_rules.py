"""Which settings may change when a run is resumed."""

from collections.abc import Mapping, Sequence

from experiments.settings import choices, flatten, parse
from fedpgp.config import Config

RESUMABLE = ("verbose", "resume", "run_dir", "experiment_name", "runtime", "logger")
"""Settings that do not change a run's numbers (but for rounding), and so may change when it is
resumed."""

TAKEN = (*RESUMABLE, "dataset", "rounds", "clients", "left")
"""Parts of the configuration that a resumed run takes from its command line."""

MOVED = "dataset.root"
"""Where the data are: they may have moved; whether they are the same is compared."""

FIXED = ("runtime.dropout", "runtime.slow_clients")
"""Those of the runtime that do change them: who drops out, who is slow."""


def changed_on_resume(arguments: Sequence[str], config: Mapping, stored: Mapping) -> list[str]:
    """Return keys that the command line of a resume sets to something else than the run was started
    with.

    Args:
        arguments: the overrides.
        config: the configuration they compose to.
        stored: the run's own. A key that it lacks, being older than the key, is changed only
            where the command line gives the key itself another value than stands for a missing one.
    """
    groups = choices()
    new, old = flatten(config), flatten(stored)
    known = set(old)
    missing = {key: value for key, value in Config.missing_values().items() if key not in old}
    old |= {key: [] if value == () else value for key, value in missing.items()}
    if new.get("dtype") == "auto":  # the run has decided
        new["dtype"] = old.get("dtype")
    named: set[str] = set()
    for override in parse(arguments):
        key = override.key_or_group
        if key in ("experiment", "recipe"):
            named |= set(new) & known  # an overlay may touch anything
            continue
        # Of a group's keys those that came later are not meant; its choice is.
        among = known | {f"{key}.name"} if key in groups else {*new, *old}
        named |= {name for name in among if name == key or name.startswith(f"{key}.")}
    return sorted(k for k in named if not may_change_on_resume(k) and new.get(k) != old.get(k))


def may_change_on_resume(key: str) -> bool:
    """Return whether a setting may change when a run is resumed."""
    return key == MOVED or (key.split(".")[0] in RESUMABLE and key not in FIXED)
