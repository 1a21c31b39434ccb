"""A node of a deployment: what its own configuration says, and whether it fits the federation.

``python -m experiments.supernode --node-config "client-id=2 state-dir='/srv/fedpgp'
data-dir='/srv/images'"``:

* ``client-id``: which logical client this node is;
* ``client-name``: what people call it, in warnings, tables and the report;
* ``state-dir``: where its private tensors are kept, and the features of its own images;
* ``data-root``: the folder that holds the public data sets, where the federation
  splits one; else $FEDPGP_DATA;
* ``data-dir``: its own images (``train/CLASS/*.jpg``, ``test/CLASS/*.jpg``), for ``partition=own``;
* ``on-bad-image``: ``skip`` leaves out those of its own images that cannot be read; else the
  federation's ``dataset.on_bad_image`` holds;
* ``weights``: a file with the model's weights, where the federation's configuration
  names another machine's;
* ``cache-dir``: where features are kept instead;
* ``min-report``, ``max-step``: of its own images, the fewest test images that a figure is told
  of, and how far the shared tensors may move (:mod:`clients.disclosure`). The server's
  settings can only be stricter;
* ``require-privacy``: takes part in runs with this ``privacy`` alone; ``any``: with one at all;
  ``secure_sum``: with ``privacy.secure_sum``; ``client+secure_sum``: with both;
* ``max-epsilon``: of its own images, the epsilon of ``privacy=image`` that all runs together may
  have; it trains no more before a round that would exceed it.
"""

import json
import re
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from math import inf
from pathlib import Path

import fedpgp
from fedpgp.atomic_files import owner_only, private_folder
from fedpgp.digests import digest
from fedpgp.errors import FedPGPError, check_number, unknown
from fedpgp.plain_text import one_line, printable

KEYS = (
    *(
        "client-id",
        "client-name",
        "state-dir",
        "data-root",
        "data-dir",
        "on-bad-image",
        "weights",
        "cache-dir",
    ),
    *("min-report", "max-step", "require-privacy", "max-epsilon"),
)

EXAMPLE = "--node-config \"client-id=0 state-dir='DIR'\""
_PAIR = re.compile(r"""(\S+?)=('[^']*'|"[^"]*"|\S+)""")  # as Flower takes them apart

PRIVACY = ("any", "client", "image", "secure_sum")
"""What ``require-privacy`` can be; several with ``+`` between them."""

LONGEST_NAME = 64
"""Characters of a client's name."""

ERRORS = "errors.log"
"""In a node's state-dir: what went wrong with its own images or its machine, which nobody else is
told."""

ERRORS_BYTES = 2**20
"""Size at which that file begins anew; the one before is kept."""


class IncompatibleNode(FedPGPError):
    """A node differs from the federation, and does for as long as it runs."""


@dataclass(frozen=True)
class NodeConfig:
    """One node's own configuration.

    Attributes:
        client: the logical client that this node is.
        state_dir: folder of what it keeps for itself.
        data_root: folder of public data sets, where the federation splits one; None is the usual
            one.
        name: what people call the client; empty where nobody said.
        data_dir: its own images; None where the federation splits a data set.
        on_bad_image: ``error`` or ``skip`` for its own images; None takes what the
            federation's configuration says.
        weights: a weights file; None takes what the federation's configuration says.
        cache_dir: folder of features; None is one in ``state_dir`` for its own images,
            the usual one for others.
        min_report: the fewest of its own test images that a figure is told of.
        max_step: times its own updates' norm that the shared tensors may move in a
            round, for it to answer.
        require_privacy: of :data:`PRIVACY`; None takes part in any run.
        max_epsilon: that all runs with ``privacy=image`` together may have.
    """

    client: int
    state_dir: Path
    data_root: str | None = None
    data_dir: Path | None = None
    weights: str | None = None
    cache_dir: str | None = None
    name: str = ""
    on_bad_image: str | None = None
    min_report: int = 10
    max_step: float = 20.0
    require_privacy: str | None = None
    max_epsilon: float = inf

    @classmethod
    def of(cls, node_config: Mapping[str, object]) -> "NodeConfig":
        """Reads ``--node-config``.

        Raises:
            FedPGPError: a key that is missing or unknown, or a value that cannot work.
        """
        for key in node_config:
            if key not in KEYS:
                raise FedPGPError(unknown("key of --node-config", key, KEYS))
        for key in ("client-id", "state-dir"):
            if key not in node_config:
                raise FedPGPError(f"this node has no {key}: start it with {EXAMPLE}")
        client = node_config["client-id"]
        if isinstance(client, bool) or not isinstance(client, int) or client < 0:
            raise FedPGPError(
                f"client-id={client!r} in --node-config cannot work; it is a whole number, 0 or "
                "more"
            )
        name = str(node_config.get("client-name", ""))
        if len(name) > LONGEST_NAME or name != one_line(name):
            raise FedPGPError(
                f"client-name={printable(name)!r} in --node-config cannot work; it is a line of "
                f"at most {LONGEST_NAME} characters"
            )
        bad = node_config.get("on-bad-image")
        if bad not in (None, "error", "skip"):
            raise FedPGPError(unknown("on-bad-image in --node-config", bad, ["error", "skip"]))
        least, most = (
            node_config.get("min-report", cls.min_report),
            node_config.get("max-step", cls.max_step),
        )
        check_number("min-report (--node-config)", least, least=1, whole=True)
        check_number("max-step (--node-config)", most, above=0)
        required = node_config.get("require-privacy")
        for part in () if required is None else str(required).split("+"):
            if part not in PRIVACY:
                raise FedPGPError(unknown("require-privacy in --node-config", part, PRIVACY))
        if (bound := node_config.get("max-epsilon")) is not None:
            check_number("max-epsilon (--node-config)", bound, above=0)
        root, own, weights, cache = (
            node_config.get(key) for key in ("data-root", "data-dir", "weights", "cache-dir")
        )
        return cls(
            client,
            Path(str(node_config["state-dir"])).expanduser(),
            None if root is None else str(root),
            None if own is None else Path(str(own)).expanduser(),
            None if weights is None else str(weights),
            None if cache is None else str(cache),
            name,
            bad,
            least,
            float(most),
            required,
            inf if bound is None else float(bound),
        )

    @classmethod
    def of_text(cls, text: str) -> "NodeConfig":
        """Reads ``--node-config`` as it stands on a command line: pairs, or the name of a TOML
        file.

        Raises:
            FedPGPError: as :meth:`of`, and for what Flower would not read.
        """
        try:
            if text.endswith(".toml"):
                return cls.of(tomllib.loads(Path(text).expanduser().read_text()))
            return cls.of(
                tomllib.loads("\n".join(f"{key} = {value}" for key, value in _PAIR.findall(text)))
            )
        except (OSError, ValueError) as error:
            raise FedPGPError(
                f"--node-config cannot be read ({error}); text stands in quotes: {EXAMPLE}"
            ) from error

    def store_folder(self, run: str) -> Path:
        """Where the private tensors of a run are kept.

        Raises:
            FedPGPError: the run's id is no plain name (it comes from the server).
        """
        if not re.fullmatch(r"[0-9a-f]{8,64}", run):
            raise FedPGPError(f"the run's id {run!r} is not one of this project's")
        return self.state_dir / run

    def keep_error(self, text: str) -> bool:
        """Writes to the node's :data:`ERRORS`; returns whether that was possible."""
        path = self.state_dir / ERRORS
        try:
            private_folder(self.state_dir)
            if path.exists() and path.stat().st_size > ERRORS_BYTES:
                path.replace(path.with_suffix(".log.1"))
            with open(
                path, "a", opener=owner_only, encoding="utf-8", errors="backslashreplace"
            ) as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        except (OSError, FedPGPError):
            return False
        return True

    def configured(self, text: str) -> str:
        """The federation's configuration (JSON text) with this node's own paths.

        Raises:
            IncompatibleNode: the federation splits a data set and this node has its own images, or
                the other way round; a client number that the federation does not have; an attack;
                less privacy than this node asks for.
            FedPGPError: its folder cannot be made.
        """
        config = json.loads(text)
        if self.client >= config["clients"]:
            raise IncompatibleNode(
                f"client-id={self.client}, but the federation has {config['clients']} clients, "
                "from 0"
            )
        if (attack := config.get("attack", {}).get("name", "none")) != "none":
            raise IncompatibleNode(
                f"attack={attack} is for a simulation: this node is real, and attacks nobody"
            )
        if lacking := self._lacking(config.get("privacy", {})):
            raise IncompatibleNode(lacking)
        own = config["partition"]["scheme"] == "own"
        if own and self.data_dir is None:
            raise IncompatibleNode(
                "partition=own: each node names its own images in --node-config: data-dir='DIR'"
            )
        if not own and self.data_dir is not None:
            raise IncompatibleNode(
                "this node has its own images (data-dir), but the federation splits data set "
                f"{config['dataset']['name']} (partition={config['partition']['scheme']}); use "
                "partition=own"
            )
        cache = self.cache_dir
        config["dataset"] |= {
            "root": self.data_root,
            "download": False,
        }  # a server's paths and wishes are its own
        if own:
            config["dataset"]["root"] = str(self.data_dir)
            config["partition"]["client"] = self.client
            if self.on_bad_image is not None:
                config["dataset"]["on_bad_image"] = self.on_bad_image
            if cache is None:  # features of its own images are nobody else's
                private_folder(self.state_dir / "features")
                cache = str(self.state_dir / "features")
        config["runtime"]["cache_dir"] = cache
        config["model"]["memory"] = str(self.state_dir / "model")
        if self.weights is not None:
            config["model"]["pretrained"] = self.weights
        return json.dumps(config)

    def _lacking(self, privacy: Mapping[str, object]) -> str:
        """What of the privacy that the node asks for a run's does not have; empty: nothing."""
        name, parts, has = privacy.get("name", "none"), (self.require_privacy or "").split("+"), ""
        if "secure_sum" in parts and not privacy.get("secure_sum"):
            has = "privacy.secure_sum=false"
        for part in {"any", "client", "image"} & set(parts):
            if name == "none" or part not in ("any", name):
                has = f"privacy={name}"
            else:
                has = _no_noise(privacy) or has
        if has:
            return (
                f"this node takes part with require-privacy={self.require_privacy} alone, and the "
                f"run has {has}"
            )
        if self.max_epsilon < inf and name != "image":
            return (
                f"this node has max-epsilon={self.max_epsilon:g}, which only privacy=image keeps "
                f"to, and the run has privacy={name}"
            )
        if self.max_epsilon < inf and (has := _no_noise(privacy)):
            return f"this node has max-epsilon={self.max_epsilon:g}, and the run has {has}"
        return ""


def _no_noise(privacy: Mapping[str, object]) -> str:
    """Return why a run's noise hides nothing; empty: it does."""
    if privacy.get("noise") == 0 or privacy.get("epsilon") == inf:
        return "no noise (privacy.noise=0, privacy.epsilon=inf)"
    if privacy.get("seeded_noise"):
        return "noise that its seed takes off again (privacy.seeded_noise=true)"
    return ""


def compatibility(federation) -> dict[str, str]:
    """What server and node must have in common, each as a short text: package version, class list,
    model weights, and which client owns which images of a public data set."""

    names = digest(json.dumps(federation.dataset.class_names))
    found = {
        "fedpgp version": installed_version(),
        "class list": f"{len(federation.dataset.class_names)} classes, sha256 {names[:16]}",
        "model weights": f"sha256 {federation.method.task.clip.fingerprint[:16]}",
    }
    if (
        not federation.federated_split.private_data
    ):  # a copy of the data set with other images would give clients others than the server's
        found["split of the data set"] = f"sha256 {federation.federated_split.digest[:16]}"
    return found


def installed_version() -> str:
    """Version of the installed package, not of the copy of its code that Flower
    sends with an application."""
    try:
        return version("fedpgp")
    except PackageNotFoundError:
        return fedpgp.__version__


def mismatch(server: Mapping[str, str], node: Mapping[str, str]) -> str:
    """What a node has that is not the server's, for a person; empty when nothing differs."""
    return "; ".join(
        f"{name}: {node.get(name)} here, {value} on the server"
        for name, value in server.items()
        if node.get(name) != value
    )
