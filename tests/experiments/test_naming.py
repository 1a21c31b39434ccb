"""Names of folders and files: as they always were for ordinary settings, unique for all."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import evaluate
from experiments.naming import LONGEST, job_name, older_job_name
from experiments.run import main
from fedpgp.errors import FedPGPError
from tests.experiments.test_run import SMALL

LONG = "/" + "/".join(["a_folder_of_images"] * 7)


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["seed=1", "method=fedpgp"], "method=fedpgp,seed=1"),
        (["method.mu=0.5", "runtime=inline", "verbose=true", "run_dir=/tmp/x"], "method.mu=0.5"),
        (["+protocol.base=all", "experiment=smoke"], "experiment=smoke,protocol.base=all"),
        (["runtime.dropout=0.2", "runtime.workers=2"], "runtime.dropout=0.2"),
        (["logger=wandb"], "run"),
        ([], "run"),
    ],
)
def test_ordinary_names_are_what_they_were(overrides, name):
    assert job_name(overrides) == older_job_name(overrides) == name


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([f"dataset.root={LONG}", "seed=0"], [f"dataset.root={LONG}", "seed=1"]),
        (
            [f"dataset.root={LONG}/a/b/c/d/e/f/g/h/i/j"],
            [f"dataset.root={LONG}/a/b/c/d/e/f/g/h/i/k"],
        ),
        (["dataset.root=/a/b"], ["dataset.root=/a-b"]),
        (["dataset.root=/a/b"], ["dataset.root='/a b'"]),
        (["context_init=a photo of a"], ["context_init=a-photo-of a"]),
        (["~method.tau=1"], ["method.tau=1"]),
        (["dataset.root=/" + "ü" * 200 + "/1"], ["dataset.root=/" + "ü" * 200 + "/2"]),
        (["dataset.root=/\udce4"], ["dataset.root=/\udcf6"]),  # bytes that are no UTF-8
    ],
)
def test_two_settings_have_two_names(one, other):
    names = job_name(one), job_name(other)
    assert names[0] != names[1] and job_name(list(reversed(one))) == names[0]
    assert all(len(name.encode()) <= LONGEST and "/" not in name for name in names)


@given(
    st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=2, max_size=2, unique=True)
)
def test_names_of_any_two_values_differ(values):
    assert len({job_name([f"context_init={value}"]) for value in values}) == 2


def test_a_sweep_below_a_long_path_has_a_folder_for_each_seed(tmp_path, small):
    """Each is found again by resume, and one that an older version named is too, by
    the job it holds alone."""
    folder = tmp_path / "sweep"
    sweep = [
        "-m",
        *(o for o in SMALL if "rank" not in o),
        f"dataset.root={LONG}",
        "method=coop",
        "seed=0,1",
    ]
    assert main([*sweep, f"run_dir={folder}"]) == 0
    first, second = (path.parent for path in sorted(folder.glob("*/summary.json")))
    seeds = {json.loads((run / "summary.json").read_text())["seed"] for run in (first, second)}
    assert seeds == {0, 1}
    overrides = [o for o in [*sweep[1:-1], "seed=0"] if not o.startswith("-")]
    zero = folder / job_name(overrides)
    assert zero in (first, second)
    zero.rename(folder / older_job_name(overrides))
    kept = (folder / older_job_name(overrides) / "summary.json").stat().st_mtime_ns
    assert main([*sweep, f"resume={folder}"]) == 0
    assert len(list(folder.glob("*/summary.json"))) == 2
    assert (folder / older_job_name(overrides) / "summary.json").stat().st_mtime_ns == kept


def test_a_folder_of_another_job_is_never_taken_for_this_one(tmp_path, small, capsys):
    folder = tmp_path / "sweep"
    sweep = ["-m", *(o for o in SMALL if "rank" not in o), "method=coop"]
    assert main([*sweep, "seed=0", f"run_dir={folder}"]) == 0
    (run,) = (path.parent for path in folder.glob("*/summary.json"))
    run.rename(run.with_name(run.name.replace("seed=0", "seed=1")))
    assert main([*sweep, "seed=1", f"resume={folder}"]) == 2
    said = capsys.readouterr()
    assert (
        "started with another configuration; other there: seed" in said.err
        and "is finished" not in said.out
    )


def test_figures_of_an_evaluation_are_never_overwritten_by_others(tmp_path):
    (tmp_path / "evaluations").mkdir()
    one, other = ([f"dataset.root={LONG}/{end}"] for end in ("sites/first", "sites/other"))
    record = {"data": {"test": {"images": 3, "sha256": "1"}}}
    place = evaluate._place(tmp_path, one, record)
    place.write_text(json.dumps({"overrides": one, **record}))
    assert (
        evaluate._place(tmp_path, one, record) == place != evaluate._place(tmp_path, other, record)
    )
    with pytest.raises(
        FedPGPError, match="holds the figures of other images; name another file: --to FILE"
    ):
        evaluate._place(tmp_path, one, {"data": {}})
    place.write_text(json.dumps({"overrides": other, **record}))
    with pytest.raises(
        FedPGPError, match="holds the figures of dataset.root=.*other; name another file: --to FILE"
    ):
        evaluate._place(tmp_path, one, record)
