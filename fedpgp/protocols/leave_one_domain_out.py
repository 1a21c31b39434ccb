"""``leave_one_domain_out``: the clients of one domain are left out, and its images show what
the others' prompts make of it (``unseen``). The FedPGP paper's domain generalisation on
DomainNet and Office-Caltech10.

Without ``held_out`` every domain is held out in turn, a run each.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from fedpgp.data import Dataset, Subset
from fedpgp.data.joint import Concat
from fedpgp.errors import FedPGPError, unknown
from fedpgp.protocols.base import (
    EvalProtocol,
    SplitRequest,
    all_classes,
    assign,
    domains_of,
    indices_of,
    local_eval_set,
    one_of,
    register,
    splits,
)
from fedpgp.protocols.multidomain import by_domain
from fedpgp.protocols.splits import ClientSplit, EvalSet, FederatedSplit


@register("leave_one_domain_out")
@dataclass(frozen=True)
class LeaveOneDomainOut(EvalProtocol):
    """Options: ``held_out``, the domain that is left out; None makes a run of each.
    ``held_out_images``, which of its images are tested on: those of its ``test`` split, or
    ``all``, training images too.

    FedPGP's code tests on all (commit d43045b33f42, data_utils.py, line 97), so does FedCLIP's
    (microsoft/PersonalizedFL, commit 441670edb574, fedclip/utils/prepare_data_dg_clip.py, lines 71
    to 77). Where the same subject stands in several domains, as in the emoji, training images of
    the held-out domain show what was trained on in other domains.
    """

    parts: ClassVar[str | None] = "held_out"
    held_out: str | None = None
    held_out_images: str = "test"

    def __post_init__(self):
        super().__post_init__()
        one_of("held_out_images", self.held_out_images, ("test", "all"))

    def values(self, dataset: Dataset) -> Sequence[str]:
        return domains_of(dataset, self.name)

    def split_clients(self, request: SplitRequest) -> FederatedSplit:
        dataset = request.dataset
        classes, names = all_classes(dataset), domains_of(dataset, self.name)
        by_domain(self.name, request.scheme)
        if self.held_out is None:
            raise FedPGPError(
                f"protocol.held_out has no value; a run leaves out one of {', '.join(names)}"
            )
        if self.held_out not in names:
            raise FedPGPError(unknown("protocol.held_out", self.held_out, names))
        train, test = splits(dataset)
        rows = indices_of(test, classes, self.held_out)
        tested = dataset
        if self.held_out_images == "all":
            more = Subset(train, indices_of(train, classes, self.held_out))
            rows = np.concatenate([rows, len(test) + np.arange(len(more))])
            tested = replace(dataset, test=Concat([test, more], [0, 0]))
        left_out = EvalSet(rows, classes)
        client_splits = [
            ClientSplit(
                assigned.train,
                classes,
                {
                    "local": local_eval_set(assigned, classes, self.local_labels),
                    "unseen": left_out,
                    f"domains.{self.held_out}": left_out,
                },
                assigned.domain,
            )
            for assigned in assign(request, classes)
            if assigned.domain != self.held_out
        ]
        return FederatedSplit(tested, classes, (), client_splits)
