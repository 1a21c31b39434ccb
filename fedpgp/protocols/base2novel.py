"""``base2novel``: the first half of the classes (base) is split over the clients; the second
half (novel) nobody sees.

A client's prompt is scored on its own test images (local), on the base classes and on the novel
ones. With a partition by domain, base and novel are taken from the client's own domain. The FedPGP
paper's main table (there with classes split without overlap). Novel images are also told from those
of base accuracy (of local accuracy with ``base=others``), by a model that chooses among base
classes.
"""

from dataclasses import dataclass

from fedpgp.data.subsets import CLASS_ORDERS, base_novel
from fedpgp.protocols.base import (
    EvalProtocol,
    SplitRequest,
    assign,
    indices_of,
    local_eval_set,
    one_of,
    register,
)
from fedpgp.protocols.personal import base_eval_set, not_empty
from fedpgp.protocols.splits import ClientSplit, EvalSet, FederatedSplit, UnknownImages


@register("base2novel")
@dataclass(frozen=True)
class Base2Novel(EvalProtocol):
    """Options: ``class_order``, what the halves go by: ``label`` (CoOp) or ``alphabet`` (FLiP);
    ``base``, images of base accuracy: ``all``, or ``others`` (without the client's own classes)."""

    class_order: str = "label"
    base: str = "all"

    def __post_init__(self):
        super().__post_init__()
        one_of("base", self.base, ("all", "others"))
        one_of("class_order", self.class_order, CLASS_ORDERS)

    def split_clients(self, request: SplitRequest) -> FederatedSplit:
        dataset, scheme = request.dataset, request.scheme
        base, novel = (
            tuple(ids) for ids in base_novel(dataset.class_names, order=self.class_order)
        )
        client_splits = []
        for assigned in assign(request, base):
            rows = indices_of(dataset.test, novel, assigned.domain)
            eval_sets = {
                "local": local_eval_set(assigned, base, self.local_labels),
                "base": base_eval_set(
                    dataset, assigned, base, self.base, len(client_splits), scheme
                ),
                "novel": EvalSet(
                    not_empty(rows, "novel", len(client_splits), self.base, scheme), novel
                ),
            }
            unknown = UnknownImages("base" if self.base == "all" else "local", rows)
            client_splits.append(
                ClientSplit(assigned.train, base, eval_sets, assigned.domain, unknown=unknown)
            )
        return FederatedSplit(dataset, base, novel, client_splits)
