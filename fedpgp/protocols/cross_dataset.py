"""``cross_dataset``: trained on one data set, tested on others whose classes were never trained
(``datasets``; their mean is ``unseen``). FedTPG's and FLiP's transfer: ImageNet to ten data sets.

On the embedded federation the data sets are groups of emoji: animals, food, faces and people are
trained; travel, activities, objects and symbols are the others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fedpgp.data import Dataset
from fedpgp.data.joint import join
from fedpgp.errors import FedPGPError
from fedpgp.protocols.base import (
    LABELS,
    EvalProtocol,
    SplitRequest,
    all_classes,
    assign,
    local_eval_set,
    one_of,
    register,
)
from fedpgp.protocols.splits import ClientSplit, EvalSet, FederatedSplit

TEN = (
    *(
        "caltech101",
        "oxford_pets",
        "stanford_cars",
        "flowers102",
        "food101",
        "fgvc_aircraft",
        "sun397",
        "dtd",
    ),
    *("eurosat", "ucf101"),
)
"""The ten data sets that transfer is tested on since CoOp."""

Spec = Mapping[str, object]


@register("cross_dataset")
@dataclass(frozen=True)
class CrossDataset(EvalProtocol):
    """Options: ``targets``, the data sets that are only tested on: names, or mappings of ``name``
    and options; None takes the usual ones. ``source``, options that narrow the data set that is
    trained on; None narrows emoji only. ``train_labels``, classes to choose among in training:
    ``all``, or the client's ``own``, as in FedTPG's code (boschresearch/FedTPG, commit
    f141c2994b5a, federated/client.py: the model is given the client's classes alone)."""

    targets: Sequence[str | Spec] | None = None
    source: Spec | None = None
    train_labels: str = "all"

    def __post_init__(self):
        super().__post_init__()
        one_of("train_labels", self.train_labels, LABELS)

    def usual(self, dataset: str) -> tuple[Spec, Sequence[str | Spec]]:
        """How the source is narrowed and what the targets are, where nothing is said."""
        if dataset == "emoji":
            others = ("travel", "activities", "objects", "symbols")
            return {"groups": ["animals", "food", "faces", "people"]}, [
                {"name": "emoji", "groups": [group]} for group in others
            ]
        return {}, [name for name in TEN if name != dataset]

    def accept(self, source: Dataset, target: Dataset) -> None:
        """Refuses a target that the protocol is not meant for."""

    def split_clients(self, request: SplitRequest) -> FederatedSplit:
        dataset, load = request.dataset, request.load
        narrowing, usual = self.usual(dataset.name)
        narrowing = narrowing if self.source is None else self.source
        if not isinstance(narrowing, Mapping):
            raise FedPGPError(
                f"protocol.source={narrowing!r} holds no options; write "
                "'protocol.source={OPTION:VALUE}'"
            )
        if narrowing:
            dataset = load({"name": dataset.name, **narrowing})
        specs = as_specs(usual if self.targets is None else self.targets, "targets")
        if not specs:
            raise FedPGPError("protocol.targets is empty: name the data sets to be tested on")
        classes = all_classes(dataset)
        client_splits = [
            ClientSplit(
                assigned.train,
                assigned.labels if self.train_labels == "own" else classes,
                {"local": local_eval_set(assigned, classes, self.local_labels)},
                assigned.domain,
            )
            for assigned in assign(replace(request, dataset=dataset), classes)
        ]
        targets = {label_of(spec): load(spec) for spec in specs}
        for target in targets.values():
            self.accept(dataset, target)
        return transfer(FederatedSplit(dataset, classes, (), client_splits), targets)


def transfer(federated_split: FederatedSplit, targets: Mapping[str, Dataset]) -> FederatedSplit:
    """Give every client an eval set for each target: its whole test split and its classes.

    Raises:
        FedPGPError: a target without test images.
    """
    for label, target in targets.items():
        if target.test is None or not len(target.test):
            raise FedPGPError(f"data set {label} has no test images: nothing can be tested on it")
    trained = federated_split.dataset
    joint, members = join([trained, *targets.values()], [trained.name, *targets])
    eval_sets = {
        f"datasets.{label}": EvalSet(member.test, member.classes)
        for label, member in zip(targets, members[1:], strict=True)
    }
    client_splits = [
        replace(client_split, eval_sets={**client_split.eval_sets, **eval_sets})
        for client_split in federated_split.clients
    ]
    return replace(federated_split, dataset=joint, clients=client_splits)


def as_specs(targets: object, option: str) -> list[Spec]:
    """Data sets by name, or by name and options, as the latter.

    Raises:
        FedPGPError: no list, or an entry that is neither.
    """
    if not isinstance(targets, Sequence) or isinstance(targets, str):
        raise FedPGPError(
            f"protocol.{option}={targets!r} is no list; write 'protocol.{option}=[NAME,NAME]'"
        )
    return [as_spec(target, option) for target in targets]


def as_spec(target: str | Spec, option: str) -> Spec:
    """A data set by name, or by name and options, as the latter."""
    if isinstance(target, str):
        return {"name": target}
    if not isinstance(target, Mapping) or "name" not in target:
        raise FedPGPError(
            f"protocol.{option} has {target!r}: write a name, or {{name: NAME, OPTION: VALUE}}"
        )
    return target


def label_of(spec: Spec) -> str:
    """What a data set is called in tables: its name and the values of its options
    (``emoji objects``)."""
    values = [
        value if isinstance(value, (list, tuple)) else [value]
        for key, value in spec.items()
        if key != "name"
    ]
    return " ".join([str(spec["name"]), *(str(v) for value in values for v in value)])
