"""The grid over Ray actors: who is free gets the work, one that dies costs its message
alone, and comes back."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from experiments.runtimes.ray import ray_cluster
from experiments.settings import composed
from fedpgp.config import RuntimeSection
from strategies.local_grid import with_id

ROOT = Path(__file__).resolve().parents[3]
RUNTIME = RuntimeSection.of(composed(["runtime.workers=2"])["runtime"])


def make_app() -> ClientApp:
    app = ClientApp()

    @app.query()
    def query(message: Message, context) -> Message:
        what = message.content["ask"]["what"]
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "raise":
            raise ValueError("a bad image")
        time.sleep(float(what) if what.replace(".", "").isdigit() else 0)
        answer = {
            "what": what,
            "pid": os.getpid(),
            "node": dict(context.node_config)["partition-id"],
            "waited": dict(context.node_config)["waited"],
        }
        return Message(RecordDict({"answer": ConfigRecord(answer)}), reply_to=message)

    return app


@pytest.fixture(scope="module")
def grid():
    with ray_cluster(RUNTIME, "cpu", 6) as workers:
        from experiments.runtimes.ray_grid import (
            RayGrid,  # imports Ray, which asks for a token from now on
        )

        grid = RayGrid(make_app, workers.count, workers.resources)
        yield grid
        grid.close()


def messages(grid, *asks: str) -> list[Message]:
    contents = [RecordDict({"ask": ConfigRecord({"what": what})}) for what in asks]
    return [Message(c, dst_node_id=1 + i % 2, message_type="query") for i, c in enumerate(contents)]


def ask(grid, *asks: str) -> list[dict]:
    replies = grid.send_and_receive(messages(grid, *asks), timeout=90)
    return [dict(reply.content["answer"]) for reply in replies]


def test_every_message_is_answered_once_by_the_node_it_names(grid):
    answers = ask(grid, "0.05", *"bcdefgh")
    assert sorted(a["what"] for a in answers) == sorted(["0.05", *"bcdefgh"])
    assert {a["what"]: a["node"] for a in answers}["b"] == 2
    assert list(grid.get_node_ids()) == [1, 2]


def test_work_goes_to_whoever_is_free(grid):
    """Both workers are up; one is busy for a second, so that the other serves all the rest."""
    while len({a["pid"] for a in ask(grid, "0.2", "0.2")}) < 2:
        pass
    busy, *rest = sorted(ask(grid, "1.5", *"bcdef"), key=lambda a: a["what"])
    assert {a["pid"] for a in rest} != {busy["pid"]} and len({a["pid"] for a in rest}) == 1
    # What waits for a worker is told how long, by no clock of day.
    assert sorted(a["waited"] for a in rest) == [a["waited"] for a in rest] and busy["waited"] >= 0


def test_an_exception_of_the_app_and_a_death_cost_their_own_message(grid):
    """The others are answered, and the worker that died works again."""
    from experiments.runtimes.ray_grid import APP_FAILED, WORKER_LOST

    while len(before := {a["pid"] for a in ask(grid, "0.2", "0.2")}) < 2:
        pass
    replies = grid.send_and_receive(messages(grid, "raise", "die", "x", "y"), timeout=90)
    errors = {reply.error.code: reply.error.reason for reply in replies if reply.has_error()}
    assert errors[APP_FAILED] == "ValueError: a bad image"
    assert "ended unexpectedly" in errors[WORKER_LOST]
    assert {reply.content["answer"]["what"] for reply in replies if reply.has_content()} == {
        "x",
        "y",
    }
    end = time.monotonic() + 60
    while len(now := {a["pid"] for a in ask(grid, "0.2", "0.2")}) < 2 and time.monotonic() < end:
        pass
    assert len(now) == 2 and len(now & before) == 1


def test_a_reply_that_nobody_waits_for_any_more_is_dropped(grid):
    grid.push_messages(messages(grid, "late"))
    grid.wait(30)
    assert [a["what"] for a in ask(grid, "new")] == ["new"]


def test_waiting_ends_with_the_first_reply(grid):
    grid.send_and_receive(messages(grid, "warm"), timeout=90)
    ids = grid.push_messages(messages(grid, "quick"))
    began = time.monotonic()
    grid.wait(30)
    assert len(grid.pull_messages(ids)) == 1 and time.monotonic() - began < 15


def test_a_worker_that_died_of_memory_is_named_with_what_to_do(grid):
    from ray.exceptions import (
        ActorDiedError,
        ActorUnavailableError,
        OutOfMemoryError,
        RayActorError,
    )

    from experiments.runtimes.ray_grid import why_lost

    low = "Task was killed due to the node running low on memory."
    for error in (OutOfMemoryError(low), RayActorError(error_msg=low)):
        assert "runtime.workers" in why_lost(error) and "cohort_size" in why_lost(error)
    any_death = (
        "Some common causes include: (1) killed by the OOM killer due to high memory usage, (2) "
        "ray stop --force"
    )
    for error in (
        ActorDiedError(),
        RayActorError(error_msg=any_death),
        ActorUnavailableError(any_death, None),
    ):
        assert "ended unexpectedly" in why_lost(error)


def no_app() -> ClientApp:
    raise ModuleNotFoundError("no such module")


@pytest.fixture
def small_grid(grid):
    """Makes further grids on the same Ray."""
    from experiments.runtimes.ray_grid import RayGrid

    made = []

    def make(*arguments) -> RayGrid:
        made.append(RayGrid(*arguments))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_worker_that_cannot_start_says_why_at_once(small_grid):
    """Nobody waits for it, then or later."""
    from experiments.runtimes.ray_grid import WORKER_LOST

    broken = small_grid(no_app, 1, {"num_cpus": 0})
    for ask in ("a", "b"):
        (reply,) = broken.send_and_receive(messages(broken, ask), timeout=60)
        assert reply.error.code == WORKER_LOST
        assert reply.error.reason.endswith("could not start: ModuleNotFoundError: no such module")


def test_a_worker_that_could_not_start_is_made_again_later(small_grid, tmp_path, monkeypatch):
    """What it lacked is there by then."""
    monkeypatch.setattr("experiments.runtimes.ray_grid.RETRY_PAUSE", 0.5)
    lacking = tmp_path / "lacking"

    def make_app_when_it_is_there() -> ClientApp:
        if not lacking.exists():
            raise FileNotFoundError(lacking)
        return make_app()

    late = small_grid(make_app_when_it_is_there, 1, {"num_cpus": 0})
    (reply,) = late.send_and_receive(messages(late, "a"), timeout=60)
    assert "could not start: FileNotFoundError" in reply.error.reason
    lacking.touch()
    end = time.monotonic() + 60
    while reply.has_error() and time.monotonic() < end:
        late.wait(0.2)
        (reply,) = late.send_and_receive(messages(late, "b"), timeout=60)
    assert reply.content["answer"]["what"] == "b"


def test_a_worker_for_which_there_is_no_room_is_waited_for_no_longer_than_said(
    small_grid, monkeypatch
):
    monkeypatch.setattr("experiments.runtimes.ray_grid.START_PATIENCE", 0.5)
    waiting = small_grid(make_app, 1, {"num_cpus": 1000})
    (reply,) = waiting.send_and_receive(messages(waiting, "a"), timeout=60)
    said = (
        "no worker of Ray has been there for 0.5 seconds; is the cluster busy, or its memory full?"
    )
    assert reply.error.reason == said


MEMORY = """
import os, time, psutil
used = lambda: 1 - psutil.virtual_memory().available / psutil.virtual_memory().total
threshold = used() + 1.5e9 / psutil.virtual_memory().total
os.environ |= {"RAY_memory_usage_threshold": str(threshold), "RAY_memory_monitor_refresh_ms": "250"}
from flwr.clientapp import ClientApp
from tests.experiments.runtimes.test_ray_grid import RUNTIME, messages
from experiments.runtimes.ray import ray_cluster

def make_app():
    app, kept = ClientApp(), []

    @app.query()
    def query(message, context):
        while used() < threshold + 0.02 and len(kept) < 50:
            kept.append(b"x" * 100_000_000)
        time.sleep(60)

    return app

with ray_cluster(RUNTIME, "cpu", 1) as workers:
    from experiments.runtimes.ray_grid import RayGrid
    grid = RayGrid(make_app, 1, workers.resources)
    (reply,) = grid.send_and_receive(messages(grid, "much"), timeout=90)
    print(reply.error.reason)
    grid.close()
"""


@pytest.mark.slow
def test_a_worker_that_takes_the_machine_s_memory_is_named_with_what_to_do():
    """For real: Ray ends it where little memory is left, here 1.5 GB more than is used now."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", MEMORY]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)
    assert "the machine ran out of memory; use fewer runtime.workers" in said.stdout, said.stderr


DEATH = """
from tests.experiments.runtimes.test_ray_grid import RUNTIME, make_app, messages
from experiments.runtimes.ray import ray_cluster
with ray_cluster(RUNTIME, "cpu", 1) as workers:
    from experiments.runtimes.ray_grid import RayGrid
    grid = RayGrid(make_app, 1, workers.resources)
    print([reply.has_error() for reply in grid.send_and_receive(messages(grid, "die"), timeout=90)])
    grid.send_and_receive(messages(grid, "a"), timeout=90)  # Ray has time to speak
    grid.close()
"""


@pytest.mark.slow  # of Ray itself, which changes with its version alone
def test_ray_itself_says_nothing_of_a_death():
    """The run has its own line about it, which names the client."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_DEDUP_LOGS_SKIP_REGEX", None)  # which this process has set itself
    command = [sys.executable, "-c", DEATH]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)
    assert said.stdout == "[True]\n" and "(raylet)" not in said.stderr, said.stderr


def test_a_message_gets_an_id_and_keeps_the_rest():
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 0
    message = Message(RecordDict(), dst_node_id=7, message_type="train", group_id="3", ttl=5.0)
    one, other = with_id(message), with_id(message)
    assert one.metadata.message_id and one.metadata.message_id != other.metadata.message_id
    for name in (
        "run_id",
        "src_node_id",
        "dst_node_id",
        "group_id",
        "ttl",
        "message_type",
        "created_at",
    ):
        assert getattr(one.metadata, name) == getattr(message.metadata, name), name
    assert one.content is message.content
