"""What privacy adds to a round: the same simulation without it and with it, in turn, in one
process. Sampling is full on both sides, so that both train the same clients.

More clients than the embedded federation has images for are those of ``bench clients``, whose
images are features that were made up; their prompts hold 8,256 numbers."""

import argparse
import contextlib
import io
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from experiments.bench.clients import made_up_federation
from experiments.bench.measure import in_turn
from experiments.runner import start
from experiments.settings import composed
from fedpgp.errors import FedPGPError

CHOICES = {
    "client": ["privacy=client", "privacy.clip=0.3"],
    "client, adaptive clip": ["privacy=client", "privacy.clip=0.3", "privacy.adaptive_clip=true"],
    "image": ["privacy=image"],
    "secure sum": ["privacy.secure_sum=true"],
    "client, secure sum": ["privacy=client", "privacy.clip=0.3", "privacy.secure_sum=true"],
}
"""What is measured against ``privacy=none``: name -> overrides."""
MANY = 100
"""Clients that the embedded federation's own partition has images for."""


def rows(arguments: argparse.Namespace) -> Iterator[dict]:
    """One row a choice: the median seconds of a round, without the first of a run."""
    clients = arguments.clients or 24
    common = [f"clients={clients}", f"rounds={arguments.rounds}", "participation=1"]
    common += ["method=promptfl", "runtime=inline", "evaluate_every=0", "verbose=false"]
    common += [f"device={arguments.device}"]
    many = clients > MANY
    if many and arguments.model not in (None, "tiny"):
        raise FedPGPError(f"--model {arguments.model}: more than {MANY} clients have model=tiny")
    if many:
        common += ["partition=iid", "protocol=personal", "local_epochs=1"]
        common += ["n_ctx=43", "context_init=normal"]
    common += [f"model={arguments.model}"] if arguments.model else []
    if arguments.rounds < 2:
        raise FedPGPError(
            f"--rounds {arguments.rounds}: the first round is left out; take 2 or more"
        )
    for name, overrides in CHOICES.items():
        with tempfile.TemporaryDirectory() as folder:
            plain, private = (
                _Rounds(folder, [*common, *chosen], made_up=many) for chosen in ([], overrides)
            )
            in_turn(plain, private, arguments.repeats)
        without, with_it = (statistics.median(each.seconds) for each in (plain, private))
        yield {
            "bench": "privacy",
            "what": name,
            "clients": clients,
            "ms": 1e3 * with_it,
            "reference_ms": 1e3 * without,
            "ratio": with_it / without,
        }


class _Rounds:
    """Runs of one configuration; ``seconds`` of their rounds.

    Args:
        folder: below which they are.
        overrides: of the configuration.
        made_up: whether the images are made up.
    """

    def __init__(self, folder: str, overrides: list[str], *, made_up: bool):
        self._folder, self._overrides = Path(folder), overrides
        self._about = {"federation_of": made_up_federation} if made_up else {}
        self.seconds: list[float] = []

    def __call__(self) -> None:
        run = Path(tempfile.mkdtemp(dir=self._folder))
        with contextlib.redirect_stdout(io.StringIO()):
            start(composed([*self._overrides, f"run_dir={run}"]), **self._about)
        lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        taken = [line["seconds"] for line in lines if line["kind"] == "train"]
        self.seconds += taken[1:]
