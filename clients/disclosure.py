"""What a node tells of images of its own, whatever the server asks.

An accuracy is a number of right answers. A server that sends a model which answers one class for
every image reads from it how many images of that class a client has, and as many such models read
its labels. A node cannot know what a model was made for, and does alone what one can:

* a figure is rounded to what its images allow: to floor(sqrt(n)) equal steps, about the half width
  of an accuracy's 95 % interval; the training loss to two digits, numbers of update steps to
  hundredths of what they can be;
* a figure of fewer test images than ``min-report`` is not told, nor the loss of fewer training
  images: where a model answers one class for every image, it counts those of the others;
* a run has one choice of data: with another class list, order of classes or number of shots, the
  counts that a node tells would be of other classes, and several of them its labels;
* accuracies alone are told. An error of calibration is |accuracy - confidence| where all answers
  are alike, and a server that chooses the confidence finds where the rounding turns, that is, the
  accuracy; F1 and balanced accuracy tell how many classes there are; a score that is high for one
  class makes AUROC and FPR95 count its images;
* of a round, two models are scored at most (the second where a run was rolled back); the same
  tensors under other settings, of another method, are another model;
* tensors that are farther from the last ones than ``max-step`` times the median of the
  node's own updates, for each round between them, are not answered to, neither with
  figures nor with an update. What one client alone is sent (``Method.download_for``) is not
  measured: honest rounds jump there.

With ``privacy`` a node tells nothing of its images but the update that privacy protects
(:func:`updates_only`): no count, loss or figure. They stay in :data:`FIGURES`, for its owner.

What remains is in docs/deployment.md.
"""

import hashlib
import json
import math
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from statistics import median

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from clients.node_config import IncompatibleNode, NodeConfig
from clients.private_state import PrivateStore
from fedpgp.atomic_files import cannot_write, owner_only, write_atomically
from fedpgp.config import PrivacySection, RuntimeSection
from fedpgp.digests import tensor_digest
from fedpgp.errors import MALFORMED, FedPGPError
from fedpgp.evaluation.figures import BESIDE

PINNED = ("dataset", "partition", "protocol", "shots", "seed", "privacy")
"""Keys of a configuration that decide which images count, and what is told of them."""
OF_NOISE = ("rounds", "participation", "clients")
"""Keys from which the noise of ``privacy.epsilon`` follows."""
NO_PRIVACY = {"name": "none"}

FIGURES = "figures.jsonl"
"""In a run's folder of a node: counts, losses and figures that nobody else is told, a line each."""
NO_FIGURES = (
    "with privacy, the clients of a deployment tell nothing but their updates: counts, losses and "
    f"accuracies are in {FIGURES} below each node's state-dir, for its owner alone"
)
"""Why a run has no figures."""
KEPT = "with privacy, this node tells nothing but its updates"

UNTOLD = BESIDE
"""Figures that are not told."""
PLACE_AND_LENGTH = ("runtime", "rounds", "clients", "left")
"""Keys of a configuration that change no model of a client's, and may change when a run is
resumed."""
MODELS_A_ROUND = 2
NORMS = 16
"""Own updates, the newest, whose median is the measure."""

Arrays = Mapping[str, np.ndarray]


class Withheld(FedPGPError):
    """The node does not answer; the message says nothing of its images, and the server may read
    it."""


@dataclass(frozen=True)
class Limits:
    """The stricter of what the node's owner and the federation's configuration say.

    Attributes:
        images: the fewest a figure, or a loss, is told of.
        step: times its own updates' median norm that the shared tensors may move in a round.
    """

    images: int
    step: float

    @classmethod
    def of(cls, node_config: NodeConfig, runtime: RuntimeSection) -> "Limits":
        """From ``--node-config`` and the configuration's ``runtime``."""
        return cls(
            max(node_config.min_report, runtime.min_report),
            min(node_config.max_step, runtime.max_step),
        )


def pin(store: PrivateStore, text: str) -> None:
    """Keep a run to the choice of data it came with first.

    Args:
        store: of the run.
        text: its configuration, as JSON.

    Raises:
        IncompatibleNode: it has another one now.
    """
    config = json.loads(text)
    chosen = {"privacy": NO_PRIVACY} | {key: config.get(key) for key in PINNED if key in config}
    if chosen["privacy"].get("epsilon") is not None:
        chosen |= {key: config.get(key) for key in OF_NOISE}
    path = store.folder / "data_choice.json"
    try:
        known = {"privacy": NO_PRIVACY} | json.loads(path.read_bytes())
    except FileNotFoundError:
        write_atomically(path, json.dumps(chosen, sort_keys=True).encode(), private=True)
    except (OSError, *MALFORMED) as error:
        raise FedPGPError(f"{path} cannot be read ({error})") from error
    else:
        if any(known.get(key) != chosen.get(key) for key in PINNED):
            raise IncompatibleNode(
                f"the run came with other settings of {', '.join(PINNED)} before, which this "
                "node keeps to"
            )
        # An earlier version kept none of these.
        if changed := [key for key in OF_NOISE if key in known and known[key] != chosen.get(key)]:
            was = ", ".join(f"{key}={known[key]}" for key in changed)
            raise IncompatibleNode(
                f"the run came with {was} before, from which the noise of privacy.epsilon follows; "
                "this node keeps to that"
            )


def updates_only(privacy: PrivacySection, *, deployed: bool) -> bool:
    """Return whether the clients of a run tell nothing of their images but their updates.

    Args:
        privacy: of the run's configuration.
        deployed: whether its clients are real; a simulation's figures are the researcher's.
    """
    return deployed and privacy.protects


def keep(store: PrivateStore, server_round: int, figures: Mapping[str, float]) -> None:
    """Keep figures for the node's owner: in :data:`FIGURES`, and in the node's log.

    Args:
        store: of the run.
        server_round: the round that they are of.
        figures: by name.

    Raises:
        FedPGPError: they cannot be written.
    """
    path = store.folder / FIGURES
    try:
        with open(path, "a", opener=owner_only, encoding="utf-8") as file:
            file.write(json.dumps({"round": server_round, **figures}) + "\n")
    except OSError as error:
        raise cannot_write(path, error) from error
    said = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
    print(f"round {server_round}, kept here: {said}", file=sys.stderr, flush=True)


class Disclosure:
    """The account of one run: what was answered, and the last shared tensors.

    Args:
        store: where it is kept.
        limits: of the node.
        delta_params: shared tensors that are no model (``Method.delta_params``).
        config: of the run; what a model is beside its tensors.
    """

    def __init__(
        self,
        store: PrivateStore,
        limits: Limits,
        delta_params: Collection[str] = (),
        config: Mapping[str, object] | None = None,
    ):
        self._limits, self._delta_params = limits, delta_params
        chosen = {k: v for k, v in (config or {}).items() if k not in PLACE_AND_LENGTH}
        self._setting = json.dumps(chosen, sort_keys=True).encode()
        self._account, self._last = (
            store.folder / "answered.json",
            store.folder / "last_shared.safetensors",
        )
        self._read()

    def admit(self, shared: Arrays, state: int) -> None:
        """Take shared tensors as the last ones, unless they are too far from those before.

        Args:
            shared: by name.
            state: the finished round that they are of.

        Raises:
            Withheld: they are.
        """
        model = {
            name: np.asarray(tensor)
            for name, tensor in shared.items()
            if name not in self._delta_params
        }
        before = self._shared()
        if before is not None and self._norms and set(before) == set(model):
            rounds = max(1, abs(state - self._state))
            with np.errstate(over="ignore", invalid="ignore"):
                moved = math.sqrt(
                    sum(float(np.square(model[n].astype(float) - before[n]).sum()) for n in model)
                )
            most = self._limits.step * rounds * median(self._norms)
            if not moved <= most:
                raise Withheld(
                    f"the shared tensors moved {moved:.3g} in {rounds} round(s); this node "
                    f"answers to {most:.3g} at most: {self._limits.step:g} times its own updates "
                    "(max-step)"
                )
        self._state = state
        tensors = {name: np.ascontiguousarray(tensor) for name, tensor in model.items()}
        data = save(tensors, metadata={"sha256": tensor_digest("", tensors)})
        write_atomically(self._last, data, private=True)
        self._write()

    def count(self, shared: Arrays, server_round: int) -> None:
        """Count a model that is scored, and all tensors it was sent with; one that
        is sent again counts once.

        Raises:
            Withheld: it is one more than a round has.
        """
        digest = hashlib.sha256(self._setting)
        for name in sorted(shared):
            digest.update(name.encode() + np.ascontiguousarray(shared[name]).tobytes())
        known = self._scored.setdefault(str(server_round), [])
        if digest.hexdigest() in known:
            return
        if len(known) >= MODELS_A_ROUND:
            raise Withheld(
                f"{MODELS_A_ROUND} models of round {server_round} were scored already; this node "
                "scores no more"
            )
        known.append(digest.hexdigest())
        self._write()

    def figures(self, metrics: Mapping[str, float], images: Mapping[str, int]) -> dict[str, float]:
        """Return the figures that may be told, rounded.

        Args:
            metrics: ``<model>.<figure>`` in percent.
            images: how many a figure is of.
        """
        told = {}
        for name, value in metrics.items():
            figure = name.partition(".")[2]
            if figure not in UNTOLD and (count := images[figure]) >= self._limits.images:
                told[name] = rounded(value, count)
        return told

    def loss(self, value: float, images: int) -> dict[str, float]:
        """Return what may be told of a training loss.

        Args:
            value: the loss.
            images: how many it is of.
        """
        return {"loss": two_digits(value)} if images >= self._limits.images else {}

    def trained(self, begun: Arrays, update: Arrays) -> None:
        """Note the norm of an own update: the measure of what is far.

        Args:
            begun: the shared tensors that the client began with (``Method.begun_with``).
            update: what it sends.
        """
        changes = (
            np.subtract(update[name], begun[name], dtype=float)
            for name in begun
            if name not in self._delta_params
        )
        norm = math.sqrt(sum(float(np.square(change).sum()) for change in changes))
        if 0 < norm < math.inf:
            self._norms = [*self._norms, norm][-NORMS:]
            self._write()

    def _read(self) -> None:
        self._scored: dict[str, list[str]] = {}
        self._norms: list[float] = []
        self._state = 0
        try:
            record = json.loads(self._account.read_bytes())
            self._scored, self._norms, self._state = (
                record["scored"],
                record["norms"],
                record["state"],
            )
        except FileNotFoundError:
            return
        except (OSError, *MALFORMED) as error:
            raise FedPGPError(f"{self._account} cannot be read ({error})") from error

    def _write(self) -> None:
        record = {"scored": self._scored, "norms": self._norms, "state": self._state}
        write_atomically(self._account, json.dumps(record).encode(), private=True)

    def _shared(self) -> dict[str, np.ndarray] | None:
        try:
            with safe_open(self._last, "np") as file:
                known = (file.metadata() or {}).get("sha256")
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError) as error:
            raise FedPGPError(f"{self._last} cannot be read ({error})") from error
        if known not in (None, tensor_digest("", found)):  # an earlier version wrote none
            raise FedPGPError(
                f"{self._last} is damaged (its checksum is wrong); without it this node has "
                "nothing to compare the next shared tensors with: remove it to go on"
            )
        return found


def rounded(value: float, images: int) -> float:
    """Return a percentage in the nearest of floor(sqrt(images)) equal steps from 0 to 100."""
    step = 100 / max(1, math.isqrt(images))
    return min(100.0, round(value / step) * step)


def in_hundredths(
    said: Mapping[str, float], ranges: Mapping[str, tuple[float, float]]
) -> dict[str, float]:
    """Return numbers of update steps, each the nearest hundredth of the range that it can have."""
    found = {}
    for name, value in said.items():
        least, most = ranges[name]
        step = (most - least) / 100
        found[name] = min(most, least + round((value - least) / step) * step)
    return found


def two_digits(value: float) -> float:
    """Return a number with two significant digits."""
    return float(f"{value:.1e}")
