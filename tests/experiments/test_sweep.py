"""A sweep says which job of how many, ends with its table and page, and the newest run
has a name that stays."""

import os

import pytest
import yaml

from experiments.latest_link import LATEST, link_latest, resolve_latest
from experiments.run import main
from experiments.sweep import Sweep, jobs

SMALL = [
    "runtime=inline",
    "clients=6",
    "rounds=1",
    "shots=1",
    "local_epochs=1",
    "dataset.domains=[noto]",
]
SMALL += ["partition=iid", "protocol=personal"]


def test_jobs_and_the_table_at_the_end(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["-m", *SMALL, "method=zero_shot,promptfl", "seed=1"]) == 0
    out = capsys.readouterr().out
    assert "\njob 1 of 2: " in out and "\njob 2 of 2: " in out
    (folder,) = [p for p in (tmp_path / "outputs" / "default").iterdir() if p.name != LATEST]
    table = out[out.rindex("Zero-shot CLIP") :]
    assert "wrote " in table and (folder / "comparison.html").exists()
    assert (tmp_path / "outputs" / "default" / LATEST).resolve() == folder
    assert main(["-m", f"resume={folder}"]) == 0
    assert "is finished" in capsys.readouterr().out


def test_a_run_is_the_latest_of_its_experiment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*SMALL, "method=zero_shot"]) == 0
    latest = tmp_path / "outputs" / "default" / LATEST
    assert (latest / "summary.json").exists()
    folder = latest.resolve()
    assert main([*SMALL, "method=zero_shot", "partition=natural"]) == 2
    assert latest.resolve() == folder  # a run that was refused left nothing
    assert main([*SMALL, "experiment_name=other", "partition=natural"]) == 2
    assert list((tmp_path / "outputs" / "other").iterdir()) == []
    assert main([*SMALL, "method=zero_shot", f"run_dir={tmp_path / 'mine'}"]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "outputs"]


@pytest.mark.parametrize(
    ("overrides", "swept", "count"),
    [
        (["seed=1,2,3", "method=fedpgp,coop"], {}, 6),
        (["seed=1", "lr=choice(0.1,0.2)", "method.rank=range(1,4)"], {}, 6),
        (["seed=5"], {"seed": "1,2,3", "method": "a,b"}, 2),
        ([], {"seed": "1,2,3", "method": "a,b"}, 6),
        (["hydra.launcher.n_jobs=2,3"], {}, 1),
        (["method=glob(promptfl*)", "seed=1,2"], {}, 4),
    ],
)
def test_the_number_of_jobs(overrides, swept, count):
    assert jobs(overrides, swept) == count


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("lr=interval(0,1)", "lr=interval(0,1) is an interval"),
        ("lr=0.1,1e-1,.2", "lr=0.1,1e-1,.2 has 0.1 twice"),
        ("seed=glob(*)", "seed=glob(*) has no value: glob is for groups"),
        ("method=glob(nothing*)", "has no value; choose among"),
    ],
)
def test_what_is_no_sweep_is_refused_before_a_folder_is_made(
    word, said, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(["-m", *SMALL, word]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error and not list(tmp_path.iterdir())


def test_the_time_left_is_judged_by_the_jobs_that_are_done(monkeypatch):
    clock = iter([0.0, 30.0, 30.0, 90.0, 90.0, 90.0])
    monkeypatch.setattr("experiments.sweep.time.monotonic", lambda: next(clock))
    sweep = Sweep(4)
    assert sweep.begin("a") == "\njob 1 of 4: a"
    sweep.end()
    assert sweep.begin("b") == "\njob 2 of 4: b (about 1:30 min left of the whole)"
    sweep.end()
    assert sweep.begin("c") == "\njob 3 of 4: c (about 1:30 min left of the whole)"
    assert Sweep(None).begin("a") == "\na"


def test_jobs_that_were_finished_before_say_nothing_of_the_time_left(monkeypatch):
    clock = iter([0.0, 0.1, 40.1, 40.1])
    monkeypatch.setattr("experiments.sweep.time.monotonic", lambda: next(clock))
    sweep = Sweep(3)
    sweep.begin("a")
    sweep.skip()
    sweep.end()
    assert sweep.begin("b") == "\njob 2 of 3: b"
    sweep.end()
    assert sweep.begin("c") == "\njob 3 of 3: c (about 40 s left of the whole)"


def test_without_links_a_file_names_the_latest(tmp_path, monkeypatch):
    def refuse(*given, **named):
        raise OSError("no links here")

    monkeypatch.setattr("pathlib.Path.symlink_to", refuse)
    (tmp_path / "one").mkdir()
    link_latest(tmp_path / "one")
    assert (tmp_path / LATEST).read_text() == "one\n" and not os.path.islink(tmp_path / LATEST)
    assert resolve_latest(tmp_path / LATEST) == tmp_path / "one"


def test_a_folder_that_is_called_latest_stays(tmp_path):
    (tmp_path / LATEST / "thesis").mkdir(parents=True)
    link_latest(tmp_path / "one")
    assert [path.name for path in tmp_path.iterdir()] == [LATEST] and (
        tmp_path / LATEST / "thesis"
    ).is_dir()
    assert resolve_latest(tmp_path / LATEST) == tmp_path / LATEST


def test_the_latest_run_is_resumed_where_it_is(tmp_path, monkeypatch, capsys):
    """Under its own name, which stays when another run becomes the newest."""
    monkeypatch.chdir(tmp_path)
    assert main([*SMALL, "method=zero_shot"]) == 0
    latest = tmp_path / "outputs" / "default" / LATEST
    folder = latest.resolve()
    (folder / "summary.json").unlink()
    capsys.readouterr()
    assert main([f"resume={latest}"]) == 0
    assert f"run folder: {folder}" in capsys.readouterr().out and (folder / "summary.json").exists()
    assert main([*SMALL, "method=promptfl", "rounds=0", "n_ctx=4", f"init_from={latest}"]) == 2
    assert "zero_shot" in capsys.readouterr().err


def test_a_setting_of_the_swept_choices_is_set_for_each_job(tmp_path, capsys):
    """Hydra composes what is not swept first, with the group's default choice: attack=none has no
    share."""
    folder = tmp_path / "sweep"
    words = [*SMALL, "method=promptfl", "attack=label_flip,free_rider", "attack.share=0.4"]
    assert main(["-m", *words, f"run_dir={folder}"]) == 0
    configs = [yaml.safe_load(path.read_text()) for path in folder.glob("*/config.yaml")]
    assert sorted(c["attack"]["name"] for c in configs) == ["free_rider", "label_flip"]
    assert {c["attack"]["share"] for c in configs} == {0.4}
    assert all("attack.share=0.4" in path.name for path in folder.iterdir() if path.is_dir())
    capsys.readouterr()
    assert main(["-m", f"resume={folder}"]) == 0
    assert capsys.readouterr().out.count("is finished") == 2


def test_a_setting_that_some_choice_lacks_is_said_in_a_line(capsys):
    assert main(["-m", "attack=none,label_flip", "attack.share=0.4"]) == 2
    said = capsys.readouterr().err
    assert "attack=none has no setting attack.share" in said and "in a sweep of its own" in said
