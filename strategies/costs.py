"""What a run costs: bytes, seconds, memory of its processes, and which machines did the work."""

import time

from strategies.exchange import Exchange
from strategies.run_state import RunState


class Costs:
    """Adds up costs in the state of a run, which is saved; peaks of memory are of this process's
    time alone.

    Args:
        before: seconds that the run took until the checkpoint it is resumed from.
        began: when it began this time (``time.perf_counter``); None is now.

    Attributes:
        peak_memory: process -> MB.
        peak_gpu_memory: process -> MB, of processes that use a GPU.
    """

    def __init__(self, before: float, began: float | None = None):
        self._before = before
        self._began = time.perf_counter() if began is None else began
        self.peak_memory: dict[str, float] = {}
        self.peak_gpu_memory: dict[str, float] = {}

    def add(self, state: RunState, exchange: Exchange, what: str | None) -> None:
        """Add up bytes, the slowest node's seconds and each process's peak memory.

        Args:
            state: of the run; changed in place.
            exchange: what was exchanged.
            what: "train", "evaluate", "encode" or None. Questions are no part of a federation's
                cost: not their bytes ("encode"), nor their seconds (None).
        """
        for account in exchange.accounts:
            process = account["process"]
            self.peak_memory[process] = max(self.peak_memory.get(process, 0.0), account["rss_mb"])
            if "gpu_mb" in account:
                self.peak_gpu_memory[process] = max(
                    self.peak_gpu_memory.get(process, 0.0), account["gpu_mb"]
                )
            if what == "train":
                machine = process.rpartition("/")[0] or process
                state.placed[machine] = state.placed.get(machine, 0) + account["clients"]
        if what in ("train", "evaluate"):
            state.traffic += exchange.traffic
        if what is not None:
            state.seconds[what] += max(
                (account["seconds"] for account in exchange.accounts), default=0.0
            )

    def clock(self, state: RunState) -> None:
        """Put the seconds of the whole run so far into its state."""
        state.seconds["total"] = self._before + time.perf_counter() - self._began
