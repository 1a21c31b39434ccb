"""How far workers are: what they write, and what is made of it."""

import json

import clients.progress
from clients.progress import Count, Progress, clear_progress, progress_folder, read_progress


def test_what_is_told_is_read_until_it_is_over(tmp_path, monkeypatch):
    now = [50.0]
    monkeypatch.setattr(clients.progress.time, "monotonic", lambda: now[0])
    progress = Progress(tmp_path)
    progress(1, 10, "clients")  # what is short is not worth a file
    assert read_progress(tmp_path) == []
    for done in (3, 4):  # the second at once after the first: not written
        now[0] += 1.0 if done == 3 else 0.0
        progress(done, 10, "clients")
    assert read_progress(tmp_path) == [Count("clients", 3, 10)]
    progress.end()
    progress.end()
    assert read_progress(tmp_path) == []


def test_rubbish_and_the_dead_are_forgotten(tmp_path):
    progress_folder(tmp_path).mkdir()
    (progress_folder(tmp_path) / "half.json").write_text('{"what": "cli')
    (progress_folder(tmp_path) / "other.json").write_text(json.dumps(["clients"]))
    (progress_folder(tmp_path) / "dead.json").write_text(
        json.dumps({"what": "clients", "done": 2, "total": 5})
    )
    assert read_progress(tmp_path) == [Count("clients", 2, 5)]
    clear_progress(tmp_path)
    assert read_progress(tmp_path) == []


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
