"""Names of folders and files that stand for a setting: readable, and unique where a
readable one could not be."""

import os
import re
from collections.abc import Sequence

from experiments.resume_rules import FIXED
from fedpgp import digests

LONGEST = 180
"""Bytes of a name; file systems allow 255, and names of temporary files are longer than their
file's."""
DIGEST = 12
"""Hexadecimal digits of a digest in a name."""
UNNAMED = ("run_dir", "resume", "verbose", "runtime", "logger", "hydra")
"""Settings that do not change what is computed, and so are in no name."""


def job_name(overrides: Sequence[str]) -> str:
    """Return the name of one run in a sweep, from its overrides: ``method=fedpgp,seed=1``.

    Where characters had to be replaced or the name cut, it ends with a digest of the whole setting,
    so that two settings never have one name.
    """
    setting = ",".join(named(overrides))
    return unique_name(setting, r"[^\w=.,+-]+") if setting else "run"


def named(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that make up a name, sorted; ``+key=1`` and ``key=1`` set the same."""
    kept = (o.lstrip("+") for o in overrides)
    return sorted(
        o for o in kept if o.lstrip("~").startswith(FIXED) or not o.lstrip("~").startswith(UNNAMED)
    )


def unique_name(text: str, unsafe: str) -> str:
    """Return a text as the name of a file: itself, or what is left of it and a digest.

    Args:
        text: anything.
        unsafe: regular expression of what a name may not have; it becomes ``-``.
    """
    name = re.sub(unsafe, "-", text)
    if name == text and len(os.fsencode(name)) <= LONGEST:
        return name
    digest = digests.digest(os.fsencode(text))[:DIGEST]
    short = os.fsencode(name)[: LONGEST - DIGEST - 1].decode(errors="ignore")
    return f"{short}-{digest}"


def older_job_name(overrides: Sequence[str]) -> str:
    """Return what a sweep's folder was named when two settings could share a name: such folders are
    found again."""
    return (
        re.sub(r"[^\w=.,+-]+", "-", ",".join(sorted(o.lstrip("~") for o in named(overrides))))[
            :LONGEST
        ]
        or "run"
    )
