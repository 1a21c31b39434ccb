"""The schemes that a configuration can name, each with a file in ``conf/partition/``."""

from collections.abc import Callable
from dataclasses import dataclass

from fedpgp.data.pool import LabelledPool, Parts
from fedpgp.registry import Registry


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
    """

    assign: Callable[..., Parts]
    by_domain: bool = False
    evened_by: str = ""


SCHEMES: Registry[Scheme] = Registry("fedpgp.data.partitions")
"""Name -> scheme. A new file in this folder needs no mention anywhere else."""


def register(
    name: str, *, by_domain: bool = False, evened_by: str = ""
) -> Callable[[Callable[..., Parts]], Callable[..., Parts]]:
    """Decorate a function so that it is known as a scheme; the arguments are :class:`Scheme`'s."""

    def add(assign: Callable[..., Parts]) -> Callable[..., Parts]:
        SCHEMES.register(name)(Scheme(assign, by_domain, evened_by))
        return assign

    return add


def inside_domains(
    pool: LabelledPool, clients: list[int], assign: Callable[[LabelledPool, int], Parts]
) -> Parts:
    parts = []
    for domain_id, many in enumerate(clients):
        rows = pool.rows(domain_id)
        parts += [rows[part] for part in assign(LabelledPool(pool.labels[rows], None, ()), many)]
    return parts
