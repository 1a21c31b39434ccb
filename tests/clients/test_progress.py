"""How far workers are: what they write, and what is made of it."""

import json

import clients.progress
from clients.progress import Progress, Told, forget, heard, place


def test_what_is_told_is_heard_until_it_is_over(tmp_path, monkeypatch):
    now = [50.0]
    monkeypatch.setattr(clients.progress.time, "monotonic", lambda: now[0])
    progress = Progress(tmp_path)
    progress(1, 10, "clients")  # what is short is not worth a file
    assert heard(tmp_path) == []
    for done in (3, 4):  # the second at once after the first: not written
        now[0] += 1.0 if done == 3 else 0.0
        progress(done, 10, "clients")
    assert heard(tmp_path) == [Told("clients", 3, 10)]
    progress.end()
    progress.end()
    assert heard(tmp_path) == []


def test_rubbish_and_the_dead_are_forgotten(tmp_path):
    place(tmp_path).mkdir()
    (place(tmp_path) / "half.json").write_text('{"what": "cli')
    (place(tmp_path) / "other.json").write_text(json.dumps(["clients"]))
    (place(tmp_path) / "dead.json").write_text(
        json.dumps({"what": "clients", "done": 2, "total": 5})
    )
    assert heard(tmp_path) == [Told("clients", 2, 5)]
    forget(tmp_path)
    assert heard(tmp_path) == []


def test_a_deployed_client_tells_its_log(monkeypatch, capsys):
    now = [50.0]
    monkeypatch.setattr(clients.progress.time, "monotonic", lambda: now[0])
    progress = Progress(None)
    for done in (32, 64, 96):
        now[0] += 6.0
        progress(done, 4800, "encoding train images")
    assert capsys.readouterr().err == "encoding train images 64/4,800\n"
    now[0] += 60.0
    progress(0, 1, "clients")  # its only one
    progress.end()
    assert capsys.readouterr().err == ""


def test_a_full_disk_is_no_reason_to_fail(tmp_path, monkeypatch):
    monkeypatch.setattr(clients.progress, "BETWEEN", 0.0)
    (tmp_path / "private").write_text("a file where the folder should be")
    Progress(tmp_path / "private")(1, 2, "clients")
