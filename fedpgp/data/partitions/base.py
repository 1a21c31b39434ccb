"""The schemes that a configuration can name, each with a file in ``conf/partition/``."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf

from fedpgp.config.rules import Number, Rule
from fedpgp.data.pool import LabelledPool, Parts
from fedpgp.errors import FedPGPError, unknown
from fedpgp.registry import Registry

COMMON = ("min_size", "min_test_size", "pooled")
"""Options of every scheme."""


@dataclass(frozen=True)
class Scheme:
    """A way to assign images to clients.

    Attributes:
        assign: ``(pool, clients, rng, **options) -> parts``. Keyword-only parameters are the
            scheme's options.
        by_domain: every client gets images of one domain.
        evened_by: the option that makes clients more alike in size, where the draw decides how many
            images a client gets: it is drawn anew until all have enough. Empty: another draw would
            not help.
        rules: what values an option may have, by its name.
    """

    assign: Callable[..., Parts]
    by_domain: bool = False
    evened_by: str = ""
    rules: Mapping[str, Rule] = field(default_factory=dict)

    @property
    def options(self) -> list[str]:
        """The names of its own options."""
        parameters = inspect.signature(self.assign).parameters.values()
        return [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]


ABOVE_ZERO = Number({"above": 0, "below": inf})
"""The rule of a concentration."""

SCHEMES: Registry[Scheme] = Registry("fedpgp.data.partitions")
"""Name -> scheme. A new file in this folder needs no mention anywhere else."""


def register(
    name: str, *, by_domain: bool = False, evened_by: str = "", **rules: Rule
) -> Callable[[Callable[..., Parts]], Callable[..., Parts]]:
    """Decorate a function so that it is known as a scheme; the arguments are :class:`Scheme`'s,
    each option's rule by the option's name."""

    def add(assign: Callable[..., Parts]) -> Callable[..., Parts]:
        SCHEMES.register(name)(Scheme(assign, by_domain, evened_by, rules))
        return assign

    return add


def check_options(name: str, options: Mapping[str, object]) -> None:
    """Refuse what cannot work, whatever the data.

    Args:
        name: of a scheme.
        options: the scheme's own.

    Raises:
        FedPGPError: no such scheme or option; a value that is not valid.
    """
    if name not in SCHEMES:
        raise FedPGPError(unknown("partition", name, sorted(SCHEMES)))
    scheme = SCHEMES[name]
    for option, value in options.items():
        if option not in scheme.options:
            valid = [*scheme.options, *COMMON]
            raise FedPGPError(unknown(f"option of partition {name}", option, valid))
        if option in scheme.rules:
            scheme.rules[option].check(f"partition.{option}", value)


def inside_domains(
    pool: LabelledPool, clients: list[int], assign: Callable[[LabelledPool, int], Parts]
) -> Parts:
    parts = []
    for domain_id, many in enumerate(clients):
        rows = pool.rows(domain_id)
        parts += [rows[part] for part in assign(LabelledPool(pool.labels[rows], None, ()), many)]
    return parts
