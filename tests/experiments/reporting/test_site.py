"""The results site: every number and command on its pages, links that hold, nothing loaded."""

import json
import re
import statistics

import pytest

from experiments import report
from experiments.reporting.measured import measured_runs
from tests.helpers.written import Page, write_run


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Three methods with three seeds, one of them also on other data, and an unfinished run."""
    root = tmp_path_factory.mktemp("site")
    reached = {}
    for method in ("fedpgp", "promptfl", "coop"):
        for seed in (1, 2, 3):
            folder = root / "runs" / method / str(seed)
            reached[method, seed] = write_run(folder, method, seed)
    (root / "runs" / "fedpgp" / "1" / "report.html").write_text("its report")
    write_run(root / "runs" / "other", "fedpgp", 1, dataset="cifar10", novel=False)
    write_run(root / "runs" / "unfinished", "fedotp", 1, status="unfinished")
    assert report.main([str(root / "runs"), "--site", str(root / "site")]) == 0
    return root / "site", reached


def read(path):
    text = path.read_text()
    assert "http" not in text and "@import" not in text and "url(" not in text
    return Page(text)


def test_a_page_a_protocol_and_data_set_and_a_method(site):
    folder, _ = site
    assert sorted(path.name for path in folder.iterdir()) == [
        *("base2novel-cifar10.html", "base2novel-emoji.html", "index.html"),
        *("method-coop.html", "method-fedpgp.html", "method-promptfl.html"),
        "method-zero_shot.html",
    ]


def test_links_hold_and_nothing_is_loaded(site):
    folder, _ = site
    for path in folder.iterdir():
        for link in read(path).loads:
            name, _, anchor = link.partition("#")
            target = (folder / name).resolve() if name else path
            assert target.is_file(), f"{path.name} links to {link}"
            assert not anchor or f'id="{anchor}"' in target.read_text()


def test_cells_are_means_over_seeds_with_a_dot_each(site):
    folder, reached = site
    text = (folder / "base2novel-emoji.html").read_text()
    rows = re.findall(r'<tr data-model="personal".*?</tr>', text, re.DOTALL)
    (row,) = [row for row in rows if "FedPGP" in row]
    cells = dict(re.findall(r'<td data-c="(\w+)"(.*?)</td>', row, re.DOTALL))
    for figure in ("local", "base", "novel", "worst10"):
        values = [reached["fedpgp", seed]["personal"][figure] for seed in (1, 2, 3)]
        assert f"{statistics.mean(values):.2f}" in cells[figure]
        assert f"± {statistics.stdev(values):.2f}" in cells[figure]
        assert cells[figure].count("<circle") == 3
    assert " hidden" in cells["worst10"].partition(">")[0]
    assert " hidden" not in cells["local"].partition(">")[0]


def test_a_global_prompt_beside_a_personal_one_is_hidden_at_first(site):
    folder, _ = site
    text = (folder / "base2novel-emoji.html").read_text()
    rows = re.findall(r"<tr data-model=\"global\"([^>]*)>.*?<th.*?</i>(.*?)</th>", text, re.DOTALL)
    found = [("hidden" in about, re.sub("<.*?>", "", name)) for about, name in rows]
    assert found == [(True, "FedPGP"), (False, "PromptFL")]


def test_each_run_has_its_command_and_what_it_was_made_with(site):
    folder, _ = site
    page = read(folder / "base2novel-emoji.html")
    for method in ("fedpgp", "promptfl", "coop"):
        for seed in (1, 2, 3):
            assert f"python -m experiments.run method={method} seed={seed}" in page.text
    assert "commit 0123456789, fedpgp 0.1.0, torch 2.13.0" in page.text
    assert [link for link in page.loads if link.endswith("report.html")] == [
        "./../runs/fedpgp/1/report.html"
    ]


def test_a_method_has_its_equations_and_its_places(site):
    folder, _ = site
    page = read(folder / "method-fedpgp.html")
    assert "p_i = p_G + U_i V_i" in page.text and "TianyuCuiOvO/FedPGP" in page.text
    assert re.search(r"Its best place is \d of \d", page.text)
    assert page.text.count(" of 4") >= 1


def test_the_index_names_the_best_and_what_is_left_out(site):
    folder, reached = site
    page = read(folder / "index.html")
    best = max(
        ("fedpgp", "promptfl", "coop"),
        key=lambda m: sum(reached[m, seed]["personal"]["local"] for seed in (1, 2, 3)),
    )
    mean = statistics.mean(reached[best, seed]["personal"]["local"] for seed in (1, 2, 3))
    assert f"{mean:.1f}" in page.text
    assert "unfinished at round 3 of 6: FedOTP, seed 1" in page.text


def test_the_site_of_the_kept_runs(tmp_path, capsys):
    assert report.main(["--site", str(tmp_path)]) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert {"index.html", "method-fedpgp.html"} <= names
    for run in measured_runs():
        assert f"{run.choice('protocol')}-{run.choice('dataset')}.html" in names
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert max(sizes.values()) < 4_000_000, json.dumps(sizes)


def test_a_link_to_a_report_stays_on_the_site(tmp_path):
    folder = tmp_path / "javascript:alert(1) #"
    write_run(folder, "fedpgp", 1)
    (folder / "report.html").write_text("its report")
    assert report.main([str(folder), "--site", str(tmp_path)]) == 0
    page = Page((tmp_path / "base2novel-emoji.html").read_text())
    (link,) = [link for link in page.loads if link.endswith("report.html")]
    assert link == "./javascript%3Aalert%281%29%20%23/report.html"
