"""Runs whose newcomers are onboarded after the training, end to end."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.newcomers import images_needed
from experiments.runner import resume, start
from experiments.settings import composed
from fedpgp.build import check_config
from fedpgp.errors import FedPGPError
from strategies.checkpoint import checkpoints, read_checkpoint
from tests.helpers.newcomers import NEWCOMERS, federation_with_newcomers
from tests.helpers.small import small_config

WAYS = "protocol.onboard=[finetune,topk,cluster,memory]"
COMMON = ("protocol=unseen_clients", "rounds=2", "method.share_terms=true")


def run(folder: Path, *overrides: str) -> dict:
    config = small_config(folder, *overrides)
    check_config(config)
    return start(config, federation_of=federation_with_newcomers)


def records(folder: Path) -> list[dict]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, dict, Path, dict]:
    one, other = (tmp_path_factory.mktemp(name) / "run" for name in ("plain", "onboarded"))
    plain = run(one, *COMMON[:2])
    return one, plain, other, run(other, *COMMON, WAYS, "protocol.budget=[0,1]", "protocol.steps=2")


def test_trained_clients_are_the_same_to_the_last_bit_whatever_newcomers_do(runs):
    one, plain, other, onboarded = runs
    assert records(one) == records(other) and plain["accuracy"] == onboarded["accuracy"]
    first, second = (read_checkpoint(checkpoints(f / "checkpoint")[-1])[0] for f in (one, other))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        np.testing.assert_array_equal(second[name], tensor, err_msg=name)
    for file in sorted((one / "private").glob("client_*/*.safetensors")):
        assert file.read_bytes() == (other / file.relative_to(one)).read_bytes()
    assert "onboarding" not in plain and "shared_terms" not in plain


def test_the_summary_has_what_newcomers_reach_and_what_was_shared(runs):
    _, plain, folder, summary = runs
    assert json.loads((folder / "summary.json").read_text()) == summary
    block, shared = summary["onboarding"], summary["shared_terms"]
    ways = [row["way"] for row in block["results"]]
    assert ways == [
        "global",
        "finetune",
        "finetune",
        *["topk"] * 2,
        *["cluster"] * 2,
        *["memory"] * 2,
    ]
    assert block["trained"] == summary["accuracy"]["personal"]["local"]
    rows = {(row["way"], row["budget"]): row for row in block["results"]}
    assert rows["global", 0]["unseen"] == pytest.approx(summary["accuracy"]["personal"]["unseen"])
    assert set(rows["topk", 1]["clients"]) == set(map(str, NEWCOMERS))
    one = 2 * (4 + 32) * 8  # U (4, 2) and V (2, 32), float64
    described = 16 * 8
    assert shared == {"clients": [0, 1, 3, 4], "bytes_up": 4 * (one + described)}
    assert rows["topk", 0]["bytes_up"] == 2 * described and rows["topk", 0]["bytes_down"] == 2 * one
    up = sum(row["bytes_up"] for row in block["results"]) + shared["bytes_up"]
    assert summary["bytes_up"] == plain["bytes_up"] + up
    assert set(block["images_needed"]) == set(ways)


def test_a_finished_run_resumed_to_more_rounds_onboards_again(runs, tmp_path):
    summary = run(tmp_path / "a", *COMMON, "rounds=1", "protocol.onboard=memory")
    more = resume(tmp_path / "a", {"rounds": 2}, federation_of=federation_with_newcomers)
    assert more["accuracy"] == runs[1]["accuracy"] and summary["rounds"] == 1
    assert [row["way"] for row in more["onboarding"]["results"]] == ["global", "memory"]
    unseen = runs[3]["onboarding"]["results"][0]["unseen"]
    assert more["onboarding"]["results"][0]["unseen"] == unseen


def test_images_needed_are_the_fewest_that_are_enough():
    def row(budget, steps, unseen):
        return {"way": "w", "budget": budget, "steps": steps, "unseen": unseen}

    rows = [row(0, 0, 30), row(1, 0, 99), row(1, 5, 50), row(4, 5, 57), row(None, 5, 60)]
    assert images_needed(rows, "w", 60) == 4 and images_needed(rows, "w", 62) == "all"
    assert images_needed(rows, "w", 70) is None and images_needed(rows, "w", None) is None
    assert images_needed(rows, "w", 31) == 0
    rows = [row(0, 0, 99), row(0, 8, 40), row(4, 8, 57)]  # the field has steps without images
    assert images_needed(rows, "w", 42) == 0 and images_needed(rows, "w", 60) == 4


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["protocol.onboard=topk"], "method.share_terms=true"),
        (["protocol.onboard=nothing"], "unknown way of protocol.onboard"),
        (["protocol.onboard=[]"], "names no way"),
        (["protocol.budget=-1"], "protocol.budget=-1 .*or null"),
        (["protocol.steps=[1,2.5]"], "protocol.steps=2.5"),
        (["protocol.tau=0"], "protocol.tau=0"),
        (["protocol.description=smell"], "protocol.description"),
        (["runtime=flower", "protocol.onboard=finetune"], "in a simulation"),
        (["runtime=flower", "method.share_terms=true"], "send no private tensors"),
        (["privacy=client", "method.share_terms=true"], "carry no noise"),
        (["privacy.secure_sum=true", "method.share_terms=true"], "carry no noise"),
        (["privacy=image", "protocol.onboard=finetune"], "without noise"),
        (["privacy=image", "protocol.onboard=memory"], "without noise"),
    ],
)
def test_what_cannot_work_is_refused_before_the_training(overrides, said):
    with pytest.raises(FedPGPError, match=said):
        check_config(composed(["protocol=unseen_clients", "runtime=inline", *overrides]))


@pytest.mark.parametrize(
    ("way", "overrides"),
    [
        ("hyper", ["method=pfedhn"]),
        ("hyper", ["method=pfedhn", "method.description=learned", "protocol.budget=[1]"]),
        ("hyperfield", ["method=hyperfield", "method.description=names"]),
        ("semantic", ["method.share_terms=true"]),
    ],
)
def test_ways_that_learn_from_all_clients(tmp_path, capsys, way, overrides):
    asked = ["protocol.budget=[0,1]", "protocol.steps=2", *overrides, f"protocol.onboard={way}"]
    summary = run(tmp_path / "a", *COMMON[:2], *asked)
    assert not any(line.get("dropped") for line in records(tmp_path / "a"))  # nobody diverges
    found = [row for row in summary["onboarding"]["results"] if row["way"] == way]
    assert found and all(0 <= row["unseen"] <= 100 and row["bytes_down"] for row in found)
    assert "Newcomers: accuracy in %" in capsys.readouterr().out
    assert f"{way} " in (tmp_path / "a" / "report.html").read_text().replace("<", " ")


def test_terms_that_are_no_low_rank_ones_are_refused_before_the_training(tmp_path):
    for way in ("cluster", "semantic"):
        with pytest.raises(FedPGPError, match=f"onboard={way} .*method.personal=low_rank"):
            run(tmp_path / "a", *COMMON, "method.personal=full", f"protocol.onboard={way}")
        assert not (tmp_path / "a").exists()


def test_a_method_without_private_tensors_has_nothing_to_train(tmp_path):
    with pytest.raises(FedPGPError, match="onboard=finetune: method=promptfl has no private"):
        run(tmp_path / "a", *COMMON[:2], "method=promptfl", "protocol.onboard=finetune")
    assert not (tmp_path / "a").exists()
    summary = run(tmp_path / "b", *COMMON[:2], "method=promptfl", "protocol.onboard=memory")
    assert summary["onboarding"]["results"][-1]["way"] == "memory"
