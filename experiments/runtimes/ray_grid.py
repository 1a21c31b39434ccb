"""A Flower Grid over Ray actors: each worker holds the ClientApp, a message goes to whoever is
free.

Private states are in a folder that every worker sees, so any worker can serve any client. A worker
whose process or machine is lost is made again; until then the others work on.
"""

import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping

import ray
from flwr.app import Error, Message
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

from experiments.runtimes.ray_worker import RayWorker
from strategies.grid import readable
from strategies.local_grid import LocalGrid, with_id

APP_FAILED, WORKER_LOST = 2, 3
"""Codes of the error replies: the app raised; the worker's process ended."""

PATIENCE = 120.0
"""Seconds without a single worker after which the waiting messages fail."""

START_PATIENCE = 600.0
"""The same before the first worker is up: it imports torch, perhaps over a network, and
a cluster may be busy."""

REPLACE_PAUSE = 1.0
"""Seconds before a worker is made in the place of one that died."""

RETRY_PAUSE = 30.0
"""The same where it could not start: it may do so later, or on another machine."""


class RayGrid(LocalGrid):
    """The grid of a simulation.

    Args:
        make_app: makes the ClientApp, in each worker.
        count: workers, and so nodes: their ids are 1 … count.
        resources: what each worker asks of Ray: ``num_cpus``, ``num_gpus``.
    """

    def __init__(
        self, make_app: Callable[[], ClientApp], count: int, resources: Mapping[str, float]
    ):
        self._run_id, self._nodes = secrets.randbits(63), range(1, count + 1)
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = self._run_id, 1, 0
        # Spread over a cluster's machines. Where Ray restarts a worker it does not say why the
        # last one died, so it is made anew here.
        options = {"max_restarts": 0, "scheduling_strategy": "SPREAD", **resources}
        actor = ray.remote(RayWorker).options(**options)
        self._make_worker = lambda: actor.remote(make_app, self._run_id, count)
        self._workers = [self._make_worker() for _ in self._nodes]
        self._free: deque = deque()
        self._probes = {each.ready.remote(): each for each in self._workers}
        self._to_make: list[tuple[float, bool]] = []  # when, and whether the last one had started
        self._running: dict = {}  # Ray's future -> (worker, message)
        self._queue: deque[tuple[float, Message]] = deque()  # since when it waits, and what
        self._replies: dict[str, Message] = {}
        self._without_workers: float | None = None  # since when
        self._patience = START_PATIENCE
        self._lost = ""  # why the last one was

    def get_node_ids(self) -> Iterable[int]:
        return list(self._nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue the messages; return their ids, in order."""
        named = [with_id(message) for message in messages]
        self._queue.extend((time.monotonic(), message) for message in named)
        self._hand_out()
        return [message.metadata.message_id for message in named]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that are there; one that is not asked for any more is dropped."""
        self._collect(0.0)
        wanted, replies = set(message_ids), self._replies
        self._replies = {}
        return [reply for i, reply in replies.items() if i in wanted]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        ids, replies = set(self.push_messages(messages)), []
        end = None if timeout is None else time.monotonic() + timeout
        while ids and (end is None or time.monotonic() < end):
            self.wait(0.5)
            news = self.pull_messages(ids)
            replies += news
            ids -= {reply.metadata.reply_to_message_id for reply in news}
        return replies

    def wait(self, seconds: float) -> None:
        """Return when a reply has come, or after that long."""
        end = time.monotonic() + seconds
        while not self._replies and (left := end - time.monotonic()) > 0:
            self._collect(left)

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            ray.kill(worker)

    # The pool. ------------------------------------------------------------------------------------

    def _hand_out(self) -> None:
        while self._queue and self._free:
            worker, (since, message) = self._free.popleft(), self._queue.popleft()
            future = worker.run.remote(message, time.monotonic() - since)
            self._running[future] = (worker, message)

    def _collect(self, seconds: float) -> None:
        """Take what Ray has finished, waiting for the first of it that long."""
        now = time.monotonic()
        self._make_due_workers(now)
        pending = [*self._running, *self._probes]
        if self._to_make:
            seconds = min(seconds, max(0.0, min(self._to_make)[0] - now))
        if pending:
            done, _ = ray.wait(pending, num_returns=len(pending), timeout=0)
            done = done or ray.wait(pending, num_returns=1, timeout=seconds)[0]
        else:
            done = time.sleep(seconds) or []
        for future in done:
            self._finish(future)
        self._hand_out()
        self._give_up_if_alone()

    def _make_due_workers(self, now: float) -> None:
        """Make workers in place of those that were lost, where their time has come."""
        due = [entry for entry in self._to_make if entry[0] <= now]
        self._to_make = [entry for entry in self._to_make if entry[0] > now]
        for worker in [self._make_worker() for _ in due]:
            self._workers.append(worker)
            self._probes[worker.ready.remote()] = worker

    def _finish(self, future: object) -> None:
        message = None
        if future in self._probes:
            worker = self._probes.pop(future)
        else:
            worker, message = self._running.pop(future)
        try:
            result = ray.get(future)
        except RayTaskError as error:  # the app raised; its worker is well
            cause = error.cause if isinstance(error.cause, BaseException) else error
            result = Error(APP_FAILED, f"{type(cause).__name__}: {cause}")
        except RayError as error:
            self._lost = why_lost(error)
            self._replace(worker, started=not could_not_start(error))
            if message is not None:
                self._reply(Message(Error(WORKER_LOST, self._lost), reply_to=message))
            return
        self._free.append(worker)
        self._patience = PATIENCE
        if message is not None:
            is_reply = isinstance(result, Message)
            self._reply(result if is_reply else Message(result, reply_to=message))

    def _replace(self, worker: object, started: bool) -> None:
        ray.kill(worker)  # it may live where only the connection was lost
        self._workers = [each for each in self._workers if each is not worker]
        pause = REPLACE_PAUSE if started else RETRY_PAUSE
        self._to_make.append((time.monotonic() + pause, started))

    def _reply(self, reply: Message) -> None:
        self._replies[reply.metadata.reply_to_message_id] = reply

    def _give_up_if_alone(self) -> None:
        """Fail what waits when no worker could start, or none has come for a long time."""
        if self._free or self._running or not self._queue:
            self._without_workers = None
            return
        self._without_workers = self._without_workers or time.monotonic()
        gone = not self._probes and not any(started for _, started in self._to_make)
        if gone or time.monotonic() - self._without_workers > self._patience:
            guess = "is the cluster busy, or its memory full?"
            reason = f"no worker of Ray has been there for {self._patience:g} seconds; "
            reason += f"the last one: {self._lost}" if self._lost else guess
            reason = self._lost if gone else reason
            while self._queue:
                _, waiting = self._queue.popleft()
                self._reply(Message(Error(WORKER_LOST, reason), reply_to=waiting))


def could_not_start(error: Exception) -> bool:
    """Return whether a worker's app could not be made there."""
    return getattr(error, "actor_init_failed", False)


def why_lost(error: Exception) -> str:
    """Return why a worker was lost, and what to do about it where that is known."""
    if could_not_start(error):
        return f"a worker of Ray could not start: {readable(str(error))}"
    # Of any death Ray says that it may have been the kernel's "high memory usage".
    if isinstance(error, OutOfMemoryError) or "low on memory" in str(error):
        return (
            "its worker was ended because the machine ran out of memory; use fewer "
            "runtime.workers, or a smaller runtime.cohort_size or batch_size"
        )
    return "the process it ran in ended unexpectedly (killed, out of memory, or a crash)"
