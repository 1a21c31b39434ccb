"""Figures for Prometheus, and the report of a run that is at work."""

import json
import re
import socket
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from clients.node_config import ERRORS
from experiments import metrics
from experiments.callbacks.checkpoint import CheckpointMark
from experiments.callbacks.live_report import LiveReport
from experiments.monitoring.exposition import Metric, exposition
from experiments.monitoring.folders import NodeMetrics, RunMetrics
from experiments.monitoring.server import MetricsServer
from experiments.runner import start
from fedpgp.errors import FedPGPError
from tests.helpers.small import small_config, small_federation

SAMPLE = re.compile(r'(\w+)(?:\{((?:\w+="(?:[^"\\\n]|\\.)*",?)*)\})? (\S+)')


def scraped(text: str) -> dict[tuple[str, str], float]:
    """(name, labels) -> value; every line that is no comment is a sample of a declared name."""
    declared = set(re.findall(r"^# TYPE (\w+) (?:gauge|counter)$", text, re.MULTILINE))
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, labels, value = SAMPLE.fullmatch(line).groups()
            assert name in declared
            found[name, labels or ""] = float(value)
    return found


def get(port: int, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as reply:
        assert reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        return reply.read().decode()


def test_labels_are_escaped_and_empty_metrics_left_out():
    one = Metric("a", "b\nc\\").add(float("nan"), x='"\\\n').add(None).add(0.5)
    text = exposition([one, Metric("empty", "No value.")])
    assert text.splitlines() == [
        "# HELP a b\\nc\\\\",
        "# TYPE a gauge",
        'a{x="\\"\\\\\\n"} NaN',
        "a 0.5",
    ]


class Watch(CheckpointMark):
    """Looks at each round as Prometheus and a browser do."""

    port: int
    told: list[tuple[dict, str]]
    pages: list[str]

    def __init__(self, folder):
        super().__init__(folder)
        self._report = folder.path / "report.html"

    def trained(self, record):
        self.told.append((record, get(self.port)))
        self.pages.append(self._report.read_text())


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A run of two rounds that was watched: (its folder, the watch)."""
    folder = tmp_path_factory.mktemp("watched") / "run"
    with socket.create_server(("127.0.0.1", 0)) as free:
        Watch.port, Watch.told, Watch.pages = free.getsockname()[1], [], []
    words = ["rounds=2", f"runtime.metrics_port={Watch.port}", "runtime.live=true"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.attempt.CheckpointMark", Watch)
        patch.setattr("experiments.callbacks.live_report.PART", 1e9)  # however fast the rounds are
        start(small_config(folder, *words), federation_of=small_federation)
    return folder, Watch


def test_a_run_tells_its_metrics_while_it_is_at_work(watched):
    """At every round what the run's folder holds; after the run nobody listens."""
    folder, watch = watched
    assert [record["round"] for record, _ in watch.told] == [1, 2]
    for record, text in watch.told:
        found = scraped(text)
        assert found["fedpgp_round", ""] == record["round"] and found["fedpgp_rounds", ""] == 2
        assert found["fedpgp_round_loss", ""] == pytest.approx(record["loss"])
        assert found["fedpgp_round_clients", ""] >= 1 and found["fedpgp_dropped_total", ""] == 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    up = sum(line.get("bytes_up", 0) for line in lines)
    last = scraped(exposition(RunMetrics(folder)()))
    assert last["fedpgp_payload_bytes_total", 'direction="up"'] == up > 0
    wanted = [line for line in lines if line["kind"] == "eval"][-1]["personal"]["local"]
    assert last["fedpgp_figure", 'model="personal",figure="local"'] == pytest.approx(wanted)
    with pytest.raises(urllib.error.URLError):
        get(watch.port)


def test_a_live_report_loads_itself_again_until_the_run_has_ended(watched):
    folder, watch = watched
    refresh = '<meta http-equiv="refresh" content="10">'
    assert len(watch.pages) == 2 and all(refresh in page for page in watch.pages)
    assert watch.pages[0] != watch.pages[1]
    assert refresh not in (folder / "report.html").read_text()


def test_what_is_half_written_or_rolled_back_is_no_figure(tmp_path):
    of_run, path = RunMetrics(tmp_path, 3), tmp_path / "metrics.jsonl"
    assert scraped(exposition(of_run()))["fedpgp_rounds", ""] == 3
    one = json.dumps({"kind": "train", "round": 1, "loss": 2.0, "dropped": [{"client": 1}]})
    two = json.dumps({"kind": "train", "round": 2, "loss": 1.0, "dropped": []})
    path.write_text(f"{one}\n{two[:10]}")
    assert scraped(exposition(of_run()))["fedpgp_round", ""] == 1
    path.write_text(f"{one}\n{two}\nnonsense\n")
    found = scraped(exposition(of_run()))
    assert (found["fedpgp_round", ""], found["fedpgp_dropped_total", ""]) == (2, 1)
    path.write_text(f"{one}\n")
    found = scraped(exposition(of_run()))
    assert (found["fedpgp_round", ""], found["fedpgp_dropped_total", ""]) == (1, 1)
    other = json.dumps({"kind": "train", "round": 1, "loss": 1.5, "dropped": []})
    path.write_text(f"{other}\n{two}\n{two}\n")  # rolled back, and longer than before
    found = scraped(exposition(of_run()))
    assert (found["fedpgp_round", ""], found["fedpgp_dropped_total", ""]) == (2, 0)


def test_two_that_ask_at_once_count_nothing_twice(tmp_path):
    line = json.dumps({"kind": "train", "round": 1, "loss": 1.0, "bytes_up": 1, "dropped": []})
    of_run, path = RunMetrics(tmp_path), tmp_path / "metrics.jsonl"
    for number in range(1, 20):
        with path.open("a") as file:
            file.write(f"{line}\n" * 50)
        with ThreadPoolExecutor(4) as asked:
            list(asked.map(lambda _: of_run(), range(4)))
        found = scraped(exposition(of_run()))
        assert found["fedpgp_payload_bytes_total", 'direction="up"'] == 50 * number


def test_a_node_tells_of_its_state_dir_alone(tmp_path):
    for run, number in (("a" * 32, 3), ("b" * 32, 7)):
        client = tmp_path / run / "client_00000"
        client.mkdir(parents=True)
        for i in (number - 1, number):
            (client / f"round_{i:05d}.safetensors").touch()
    (tmp_path / "features").mkdir()
    (tmp_path / ERRORS).write_text("something\n")
    server = MetricsServer("127.0.0.1", 0, NodeMetrics(tmp_path))
    try:
        found = scraped(get(server.port))
        assert found["fedpgp_node_round", f'run="{"a" * 32}"'] == 3
        assert found["fedpgp_node_round", f'run="{"b" * 32}"'] == 7
        assert found["fedpgp_node_errors_bytes", ""] == 10
        assert found["fedpgp_disk_free_bytes", ""] > 0
        assert str(tmp_path) not in get(server.port)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(server.port, "/../../etc/passwd")
        with pytest.raises(FedPGPError, match="choose another port"):
            MetricsServer("127.0.0.1", server.port, NodeMetrics(tmp_path))
    finally:
        server.close()


def test_the_command_names_a_folder_that_is_none(tmp_path, capsys):
    for words, said in (
        (["--state", str(tmp_path / "nowhere")], "nowhere is no folder"),
        (["--run", str(tmp_path)], "is no run's folder"),
    ):
        assert metrics.main(words) == 2
        assert said in capsys.readouterr().err


def test_a_live_report_that_cannot_be_written_is_told_once(tmp_path):
    said = []
    report = LiveReport(tmp_path / "nowhere", said.append)
    report._next = 0.0
    report.trained({})
    report._next = 0.0
    report.evaluated({}, [])
    assert len(said) == 1 and said[0].startswith("runtime.live: ")
