"""A federation with one hostile node, end to end: the others' run continues, is the same,
and its report is drawn."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from clients.client_app import client_app
from clients.messages import Job
from experiments.runner import resume, start
from fedpgp.errors import FedPGPError
from strategies import node_registry
from strategies.checkpoint import checkpoints, read_checkpoint
from strategies.rollback import about_numbers, may_be_spoiled
from tests.helpers.nodes import Nodes
from tests.helpers.small import small_config, small_federation

HOSTILE, CLIENTS = 1, 3


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(node_registry, "INTERVAL", 0.0)


class Hostile(Nodes):
    """The node of client 1 answers what ``lie`` makes of its honest reply: (asked,
    reply) -> None, in place."""

    def __init__(
        self, folder: Path, lie: Callable[[Message, Message], None], clients: int = CLIENTS
    ):
        configs = [
            {"client-id": c, "state-dir": str(folder / f"client_{c}")} for c in range(clients)
        ]
        super().__init__(client_app(small_federation), configs)
        self.lie = lie

    def pull_messages(self, message_ids):
        asked = {id: self.waiting[id] for id in message_ids if id in self.waiting}
        replies = super().pull_messages(message_ids)
        for reply in replies:
            message = asked[reply.metadata.reply_to_message_id]
            if message.metadata.dst_node_id == HOSTILE and not reply.has_error():
                self.lie(message, reply)
        return replies


def federation(run_dir: Path, lie: Callable, *overrides: str) -> None:
    settings = ("runtime=flower", f"clients={CLIENTS}", "participation=1", *overrides)
    grid = Hostile(run_dir.parent / f"{run_dir.name}_nodes", lie)
    start(small_config(run_dir, *settings), federation_of=small_federation, grid=grid)


def metrics(run_dir: Path, kind: str) -> list[dict]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def put(content: RecordDict, name: str, record) -> None:
    content.pop(name, None)
    content[name] = record


def account(**said: object) -> Callable[[RecordDict], None]:
    def lie(content: RecordDict) -> None:
        fields = {**json.loads(content["node"]["account"]), **said}
        put(content, "node", ConfigRecord({"account": json.dumps(fields)}))

    return lie


def raw_account(text: str) -> Callable[[RecordDict], None]:
    return lambda content: put(content, "node", ConfigRecord({"account": text}))


def metric(**said: float) -> Callable[[RecordDict], None]:
    return lambda content: put(content, "1/metrics", MetricRecord({**content["1/metrics"], **said}))


def cleared(content: RecordDict) -> None:
    for name in list(content):
        content.pop(name)


def extra(content: RecordDict) -> None:
    put(
        content,
        "1/more",
        ArrayRecord({"x": Array("uint8", (20_000_000,), "bytes", bytes(20_000_000))}),
    )


IN_TRAINING = {
    "account Infinity": raw_account(
        '{"seconds": Infinity, "rss_mb": 1, "process": "x", "clients": 1, "kept": []}'
    ),
    "account 1e400": raw_account(
        '{"seconds": 1e400, "rss_mb": 1, "process": "x", "clients": 1, "kept": []}'
    ),
    "account of 4,300 digits": raw_account(
        f'{{"seconds": 1, "rss_mb": {"9" * 4300}, "clients": 1, "kept": []}}'
    ),
    "account 200,000 deep": raw_account("[" * 200_000 + "]" * 200_000),
    "clients Infinity": raw_account(
        '{"seconds": 1, "rss_mb": 1, "process": "x", "clients": Infinity, "kept": []}'
    ),
    "seconds 1.7e308": account(seconds=1.7e308),
    "a process of 5 MB": account(process="p" * 5_000_000),
    "epochs 1.7e308": metric(epochs=1.7e308),
    "loss -1e300": metric(loss=-1e300),
    "nothing": cleared,
    "no tensor": lambda content: put(content, "1/arrays", ConfigRecord({"a": 1})),
}
HARMLESS = {
    "an extra record": extra,
    "a long name": account(process="p\x1b[2J\ndone in 3s" * 500),
    "a long time": account(seconds=1e9),
}


def test_in_training_it_is_left_out_by_name(tmp_path):
    """A lie a round; what is only too much is let go, and the client counts."""
    lies = {**IN_TRAINING, **HARMLESS}

    def lie(message: Message, reply: Message) -> None:
        if message.metadata.message_type == "train":
            list(lies.values())[Job.of(message.content).server_round - 1](reply.content)

    federation(tmp_path / "a", lie, f"rounds={len(lies)}", "evaluate_every=0", "method=promptfl")
    for name, line in zip(lies, metrics(tmp_path / "a", "train"), strict=True):
        dropped = [entry["client"] for entry in line["dropped"]]
        assert dropped == ([] if name in HARMLESS else [HOSTILE]), name
        assert all(
            len(entry["reason"]) <= 1000 and entry["reason"].isprintable()
            for entry in line["dropped"]
        )
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["seconds"]["train"] < 300  # 1e9 of them are no more than have passed
    assert (tmp_path / "a" / "report.html").stat().st_size < 1_000_000
    _, info = read_checkpoint(checkpoints(tmp_path / "a" / "checkpoint")[-1])
    assert len(json.dumps(info)) < 100_000


@pytest.mark.parametrize("value", [1.7e308, -1.0, 101.0])
def test_in_an_evaluation_it_is_left_out(tmp_path, value):
    def lie(message: Message, reply: Message) -> None:
        if message.metadata.message_type == "evaluate" and Job.of(message.content).server_round:
            metric(**{"personal.local": value})(reply.content)

    federation(tmp_path / "a", lie, "rounds=1")
    assert [line["clients"] for line in metrics(tmp_path / "a", "eval")] == [3, 2]
    assert json.loads((tmp_path / "a" / "summary.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("text", ["5", "null", "no JSON", '[{"png": 5}]', "[" * 200_000])
def test_its_samples_are_left_out(tmp_path, text):
    def lie(message: Message, reply: Message) -> None:
        if Job.of(message.content).ask == "samples":
            put(reply.content, "1/answer", ConfigRecord({"json": text}))

    federation(tmp_path / "a", lie, "rounds=1", "evaluate_every=0")
    samples = json.loads((tmp_path / "a" / "samples.json").read_text())["samples"]
    assert {sample["client"] for sample in samples} == {0, 2}


@pytest.mark.parametrize(
    "text",
    ['{"client": Infinity}', "[" * 200_000],
)
def test_its_first_answer_is_refused(tmp_path, text):
    def lie(message: Message, reply: Message) -> None:
        if Job.of(message.content).ask == "handshake":
            put(reply.content, "answer", ConfigRecord({"json": text}))

    with pytest.raises(
        FedPGPError, match="the nodes of clients 1 are not there; a node cannot take part: "
    ):
        federation(tmp_path / "a", lie, "rounds=1", "runtime.round_timeout=0.5")


def test_a_reply_that_flower_cannot_read_costs_its_client_only(tmp_path, monkeypatch):
    """Flower raises while it pulls: the others' replies come, and the hostile one is not
    asked for without end."""

    class Broken(Hostile):
        def pull_messages(self, message_ids):
            bad = {
                id for id in message_ids if id in self.waiting and self._trains(self.waiting[id])
            }
            if bad and len(list(message_ids)) > 1:
                raise ValueError("Expected object type not found")
            if bad:
                self.waiting = {
                    id: message for id, message in self.waiting.items() if id not in bad
                }
                raise ValueError("Expected object\ntype not found")
            return super().pull_messages(message_ids)

        def _trains(self, message: Message) -> bool:
            return (
                message.metadata.dst_node_id == HOSTILE and message.metadata.message_type == "train"
            )

    settings = (
        "runtime=flower",
        f"clients={CLIENTS}",
        "participation=1",
        "rounds=1",
        "evaluate_every=0",
    )
    grid = Broken(tmp_path / "nodes", lambda message, reply: None)
    start(small_config(tmp_path / "a", *settings), federation_of=small_federation, grid=grid)
    (line,) = metrics(tmp_path / "a", "train")
    assert [entry["client"] for entry in line["dropped"]] == [HOSTILE]
    assert "type not found" in line["dropped"][0]["reason"] and line["clients"] == 2


def test_a_report_that_cannot_be_drawn_leaves_the_run_finished(tmp_path, monkeypatch, capsys):
    from experiments.reporting import charts

    def broken(*args, **options):
        raise OverflowError("cannot convert float infinity to integer")

    monkeypatch.setattr(charts, "line_chart", broken)
    federation(tmp_path / "a", lambda message, reply: None, "rounds=1", "evaluate_every=0")
    assert json.loads((tmp_path / "a" / "summary.json").read_text())["status"] == "finished"
    said = capsys.readouterr().out
    assert (
        "report.html could not be made (OverflowError: cannot convert" in said and "done in" in said
    )


def test_tensors_of_the_others_are_those_of_a_round_without_it(tmp_path):
    def lie(message: Message, reply: Message) -> None:
        if message.metadata.message_type == "train":
            raw_account("[" * 200_000)(reply.content)

    def absent(message: Message, reply: Message) -> None:
        if message.metadata.message_type == "train":
            cleared(reply.content)

    found = []
    for name, how in (("a", lie), ("b", absent)):
        federation(tmp_path / name, how, "rounds=2", "evaluate_every=0")
        found.append(read_checkpoint(checkpoints(tmp_path / name / "checkpoint")[-1])[0])
    for name, tensor in found[0].items():
        np.testing.assert_array_equal(found[1][name], tensor)


@pytest.mark.parametrize("handshake", [True, False])
def test_its_words_forge_no_line_and_move_no_cursor(tmp_path, capsys, handshake):
    """``deploy local`` takes a line that starts with "done in" for the end of a run."""
    forged = "no\x1b[2J\ndone in 3s\r\nerror: all is lost\x07"

    def lie(message: Message, reply: Message) -> None:
        if message.metadata.message_type == "train":
            reply.content.pop("1/arrays"), reply.content.pop("1/metrics")
            put(reply.content, "errors", ConfigRecord({"1": forged}))
        elif handshake and Job.of(message.content).ask == "handshake":
            answer = {"client": 1, "rejection": forged, "transient": False}
            put(reply.content, "answer", ConfigRecord({"json": json.dumps(answer)}))

    try:
        federation(tmp_path / "a", lie, "rounds=1", "evaluate_every=0", "runtime.round_timeout=0.5")
    except FedPGPError as error:
        assert handshake and "\n" not in str(error) and "\x1b" not in str(error)
    said = capsys.readouterr().out
    assert "\x1b" not in said and "\x07" not in said and "no done in 3s error: all is lost" in said
    assert len([line for line in said.splitlines() if line.startswith(("done in", "error:"))]) == (
        0 if handshake else 1
    )


# Poison. ------------------------------------------------------------------------------------------


def scaled(factor: float, server_round: int, times: int = 1) -> Callable[[Message, Message], None]:
    """The change of client 1's update in a round, times a factor; the first
    ``times`` it is asked."""
    left = [times]

    def lie(message: Message, reply: Message) -> None:
        if (
            message.metadata.message_type == "train"
            and Job.of(message.content).server_round == server_round
            and left[0]
        ):
            left[0] -= 1
            sent = message.content["arrays"]
            arrays = {}
            for name, array in reply.content["1/arrays"].items():
                start = np.frombuffer(sent[name].data, sent[name].dtype)
                changed = start + factor * (np.frombuffer(array.data, array.dtype) - start)
                arrays[name] = Array(array.dtype, array.shape, array.stype, changed.tobytes())
            put(reply.content, "1/arrays", ArrayRecord(arrays))

    return lie


def tensors(run_dir: Path) -> dict[str, np.ndarray]:
    return read_checkpoint(checkpoints(run_dir / "checkpoint")[-1])[0]


def same(one: Path, other: Path) -> None:
    for name, tensor in tensors(one).items():
        np.testing.assert_array_equal(tensors(other)[name], tensor, err_msg=name)


def honest(message: Message, reply: Message) -> None: ...


@pytest.mark.parametrize("method", ["fedpgp", "scaffold"])
def test_an_update_out_of_proportion_is_left_out_by_name(tmp_path, method):
    common = ("rounds=3", "evaluate_every=0", f"method={method}")
    federation(tmp_path / "a", scaled(-1000.0, 2), *common)
    first, second, third = metrics(tmp_path / "a", "train")
    assert first["dropped"] == [] == third["dropped"] and second["clients"] == 2
    (entry,) = second["dropped"]
    assert entry["client"] == HOSTILE and "(strategy.max_update_norm=20)" in entry["reason"]
    federation(
        tmp_path / "b", lambda m, r: cleared(r.content) if scaled_at(m, 2) else None, *common
    )
    same(tmp_path / "a", tmp_path / "b")  # as if it had not answered


def scaled_at(message: Message, server_round: int) -> bool:
    return (
        message.metadata.message_type == "train"
        and Job.of(message.content).server_round == server_round
    )


POISON = ("rounds=4", "evaluate_every=0", "strategy.max_update_norm=null")


def test_a_spoiled_round_is_done_again(tmp_path, capsys):
    """Without the bound, nobody can answer in round 3: the run is rolled back to round 1, and
    ends as an honest one."""
    federation(tmp_path / "a", scaled(1e200, 2), *POISON)
    said = capsys.readouterr().out
    assert (
        "round 3: 0 of 3 clients gave a usable reply" in said
        and "rolling back to those after round 1" in said
    )
    federation(tmp_path / "b", honest, *POISON)
    same(tmp_path / "a", tmp_path / "b")
    assert [line["round"] for line in metrics(tmp_path / "a", "train")] == [1, 2, 3, 4]


def test_a_run_that_was_spoiled_can_be_resumed(tmp_path, capsys):
    """The client poisons round 2 each time; when it is gone, a resume goes back behind the
    poison and ends well."""
    with pytest.raises(FedPGPError, match="round 3: 0 of 3 clients gave a usable reply"):
        federation(tmp_path / "a", scaled(1e200, 2, times=9), *POISON)
    capsys.readouterr()
    resume(
        tmp_path / "a", federation_of=small_federation, grid=Hostile(tmp_path / "a_nodes", honest)
    )
    assert "rolling back to those after round 1" in capsys.readouterr().out
    federation(tmp_path / "b", honest, *POISON)
    same(tmp_path / "a", tmp_path / "b")


def test_a_strategy_goes_back_too(tmp_path):
    """Its momentum knows nothing of the spoiled round; here the first, before which it has none."""
    poison = (*POISON, "strategy=fedavgm")
    federation(tmp_path / "a", scaled(1e200, 1), *poison)
    federation(tmp_path / "b", honest, *poison)
    same(tmp_path / "a", tmp_path / "b")


def test_the_state_of_a_strategy_is_finite_too(tmp_path):
    """Adam's second moment would be infinite, and no later round would move anything."""
    with pytest.raises(
        FedPGPError, match="round 1: the aggregated tensor v_t.* is NaN or Inf; .*max_update_norm"
    ):
        federation(tmp_path / "a", scaled(1e200, 1), *POISON, "strategy=fedadam")


def test_a_spoiled_evaluation_takes_back_its_round(tmp_path):
    common = ("rounds=2", "strategy.max_update_norm=null")
    federation(tmp_path / "a", scaled(1e200, 1), *common)
    federation(tmp_path / "b", honest, *common)
    same(tmp_path / "a", tmp_path / "b")
    for line, other in zip(
        metrics(tmp_path / "a", "eval"), metrics(tmp_path / "b", "eval"), strict=True
    ):
        assert line["personal"] == other["personal"]


def test_only_numbers_are_a_reason_to_go_back():
    """A disk that is full, or images that are broken, say nothing of the state before."""
    assert about_numbers(["update is NaN or Inf at round 3, step 1", "no space left on the disk"])
    assert about_numbers(["its metric personal.local is nan"])
    assert about_numbers(
        ["the shared tensors moved 4e+28 in 1 round(s); this node answers to 3 at most (max-step)"]
    )
    assert not about_numbers(
        ["no space left on the disk while writing info/round_2", "image a.jpg cannot be read"]
    )


@pytest.mark.parametrize(
    ("silent", "reason", "suspect"),
    [(1, "loss is NaN or Inf", True), (2, "loss is NaN or Inf", True)]
    + [(3, "loss is NaN or Inf", False), (2, "no space left", False), (0, "NaN in m.py:3", False)],
)
def test_a_state_is_suspected_where_half_answer_or_more(silent, reason, suspect):
    failed = {client: "no reply in 5 s" if client < silent else reason for client in range(4)}
    assert may_be_spoiled(failed, range(silent), {"NaN in m.py:3"}) == suspect


def test_clients_that_are_away_are_no_reason_to_go_back(tmp_path, capsys):
    class Away(Hostile):
        def get_nodes(self):
            away = any(
                path.name == "round_00002.safetensors"
                for path in checkpoints(tmp_path / "a" / "checkpoint")
            )
            return [] if away else super().get_nodes()

    settings = (
        "runtime=flower",
        f"clients={CLIENTS}",
        "participation=1",
        "rounds=3",
        "evaluate_every=0",
    )
    with pytest.raises(FedPGPError, match="round 3: 0 of 3 clients .* not connected"):
        start(
            small_config(tmp_path / "a", *settings),
            federation_of=small_federation,
            grid=Away(tmp_path / "nodes", honest),
        )
    assert "rolling back" not in capsys.readouterr().out
