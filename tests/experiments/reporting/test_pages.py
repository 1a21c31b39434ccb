"""Pages: what is drawn, marked and said, and that it is the same everywhere."""

import csv
import json
import re
import shutil

import pytest

from experiments import report
from experiments.reporting import read_run, write_report
from experiments.reporting.drawing import nice_ticks, plain
from experiments.reporting.headlines import headline
from experiments.reporting.scatter import Mark, label_places, scatter
from experiments.reporting.styles import row_styles
from experiments.reporting.tables import Row
from experiments.reporting.titles import in_order, title
from tests.helpers.written import CLASSES, DOMAINS, page, write_run


def edit(path, change):
    """Applies `change` to each line of metrics.jsonl."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        change(line)
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def absent(rounds, all_clients=8):
    """Says that one client did not answer in these rounds, as the server's lines do."""

    def change(line):
        if line["kind"] == "eval":
            line |= {"clients": all_clients - (line["round"] in rounds), "all_clients": all_clients}

    return change


def html(folder, *more):
    assert (
        report.main([str(folder), "--format", "html", "--out", str(folder / "page.html"), *more])
        == 0
    )
    page(folder / "page.html")
    return (folder / "page.html").read_text()


def row(method, model="personal", **labels):
    return Row({"method": method, **labels}, model, (1,), (), {}, ())


def test_a_mean_over_fewer_clients_is_an_open_dot_with_a_note(tmp_path):
    write_run(tmp_path / "run")
    edit(tmp_path / "run", absent([2, 4]))
    text = write_report(tmp_path / "run").read_text()
    shown = page(tmp_path / "run" / "report.html").text
    assert (
        text.count('class="open personal"') == 2 * 5 == text.count('class="open zero_shot"')
    )  # local, base, novel, calibration, worst tenth
    assert "not all clients answered (7 of 8 in round 2, 7 of 8 in round 4)" in shown
    assert "Of 7 of 8 clients" not in shown  # the last evaluation is of all
    edit(tmp_path / "run", absent([]))
    assert 'class="open' not in write_report(tmp_path / "run").read_text()


def test_clients_that_were_not_drawn_are_no_missing_ones(tmp_path):
    """An open dot is a client that was asked and did not answer."""
    write_run(tmp_path / "run")

    def drawn(line):
        if line["kind"] == "eval":
            answered = 3 - (line["round"] == 2)
            line |= {"clients": answered, "drawn_clients": 3, "all_clients": 8}

    edit(tmp_path / "run", drawn)
    text = write_report(tmp_path / "run").read_text()
    assert text.count('class="open personal"') == 5  # local, base, novel, calibration, worst tenth
    assert "not all clients answered (2 of 3 in round 2)" in text


def test_missing_clients_are_named_in_a_comparison(tmp_path, capsys):
    for seed in (1, 2):
        write_run(tmp_path / f"fedpgp{seed}", "fedpgp", seed)
        write_run(tmp_path / f"promptfl{seed}", "promptfl", seed)
    edit(tmp_path / "fedpgp2", absent([3, 6]))  # 6 is the last round
    note = "FedPGP, seed 2: figures of 7 of 8 clients"
    text = html(tmp_path)
    assert note in text and "Of 7 of 8 clients" not in text
    assert text.count('class="open c0"') == 2 * 3 and 'class="open c1' not in text
    assert "not all clients answered FedPGP, seed 2 (7 of 8 in round 3, 7 of 8 in round 6)" in text
    for form in ("text", "csv", "markdown"):
        report.main([str(tmp_path), "--format", form])
        assert note in capsys.readouterr().err
    assert "Of 7 of 8 clients" in write_report(tmp_path / "fedpgp2").read_text()


def test_a_method_has_one_style_on_every_page_and_no_two_are_alike():
    few = [row("zero_shot", "zero_shot"), row("coop"), row("fedpgp"), row("scaffold", "global")]
    many = [
        row(method, "zero_shot" if method == "zero_shot" else "personal") for method in in_order()
    ]
    many += [row(f"own{k}") for k in range(1, 3)]
    styles = row_styles(many)
    assert len(set(styles)) == len(many) == len(in_order()) + 2
    by_method = {one.labels["method"]: style for one, style in zip(many, styles, strict=True)}
    assert row_styles(few) == [by_method[one.labels["method"]] for one in few]
    # one method's models have the colours of a run's page; its variants, and a global
    # prompt, are told apart
    assert row_styles([row("fedpgp", model) for model in ("zero_shot", "global", "personal")]) == [
        *("zero_shot", "global", "personal")
    ]
    mixed = [row("fedpgp", "global"), row("fedpgp"), row("promptfl", "global")]
    assert row_styles(mixed) == [
        by_method["fedpgp"] + " shared",
        by_method["fedpgp"],
        by_method["promptfl"],
    ]
    ranks = row_styles(
        [row("fedpgp", rank=str(k)) for k in range(12)] + [row("promptfl", rank="–")]
    )
    assert (
        len(set(ranks)) == 13
        and ranks[0] == by_method["fedpgp"]
        and ranks[-1] == by_method["promptfl"]
    )


def test_twelve_methods_are_named_at_their_lines(tmp_path):
    methods = [method for method in in_order() if method != "zero_shot"][:12]
    for method in methods:
        write_run(tmp_path / method, method, rounds=2, clients=4)
    text = html(tmp_path)
    curve = re.search(r'<svg [^>]*aria-label="Local accuracy, %".*?</svg>', text)[0]
    for method in methods:
        assert re.search(
            rf'class="end [^"]*"[^>]*>[\d.]+ {re.escape(title(method))}</text>', curve
        ), method
    assert len(set(re.findall(r'class="line (c\d[^"]*)"', curve))) == 12


def crossed(svg):
    """Names of a trade-off that a whisker runs through."""
    lines = re.findall(
        r'class="whisker[^"]*" x1="([\d.]+)" x2="([\d.]+)" y1="([\d.]+)" y2="([\d.]+)"', svg
    )
    names = re.findall(r'<text class="end[^"]*" x="([\d.]+)" y="([\d.]+)">([^<]*)</text>', svg)
    hit = []
    for x, y, name in names:
        left, bottom, right = float(x), float(y) + 1, float(x) + 6.2 * len(name)
        for x1, x2, y1, y2 in ([float(v) for v in line] for line in lines):
            if x1 < right and x2 > left and y1 < bottom and y2 > bottom - 9:
                hit.append(name)
    return names, hit


def test_names_of_the_trade_off_are_not_crossed_by_whiskers():
    marks = [
        Mark("FedPGP (global)", "c0", (62.3, 55.4), (0.6, 0.8), ()),
        Mark("FedPGP (personal)", "c0", (62.4, 55.4), (0.5, 0.8), ()),
        Mark("PromptFL", "c1", (61.9, 54.8), (1.0, 0.8), ()),
        Mark("Zero-shot CLIP", "zero_shot", (60.5, 55.7), (0.0, 0.0), ()),
        Mark("CoOp", "c2", (60.0, 52.7), (0.2, 0.6), ()),
    ]
    names, hit = crossed(scatter(marks, title="t", x_label="x", y_label="y"))
    assert len(names) == 5 and not hit
    # a name on the whisker would be found
    assert crossed(
        '<line class="whisker c0" x1="0" x2="90" y1="50" y2="50"/><text class="end c0" x="9" '
        'y="54">ab</text>'
    )[1]
    assert label_places([(100, 100)], [], [50], (0, 0, 300, 200)) == [(110, 104)]


def test_bars_are_drawn_once(tmp_path):
    write_run(tmp_path / "promptfl", "promptfl")
    write_run(tmp_path / "fedpgp")
    text = html(tmp_path, "--models", "zero_shot,global,personal")
    for what in ("Bytes of a run", "Time of a run, without encoding images"):
        bars = re.search(rf'aria-label="{what}".*?</svg>', text)[0]
        assert re.findall(r'class="name"[^>]*>([^<]*)<', bars) == ["FedPGP", "PromptFL"]
    summary = json.loads((tmp_path / "promptfl" / "summary.json").read_text())
    (tmp_path / "promptfl" / "summary.json").write_text(json.dumps(summary | {"one_prompt": True}))
    text = write_report(tmp_path / "promptfl").read_text()
    assert (
        'class="fill global"' in text
        and 'class="fill personal"' not in text
        and 'class="line personal"' not in text
    )


def test_time_is_compared_without_encoding(tmp_path):
    for method, encode in (("fedpgp", 21.5), ("promptfl", 0.0)):
        write_run(tmp_path / method, method)
        summary = json.loads((tmp_path / method / "summary.json").read_text())
        summary["seconds"] |= {"encode": encode, "total": 31.0 + encode}
        (tmp_path / method / "summary.json").write_text(json.dumps(summary))
    bars = re.search(r'aria-label="Time of a run, without.*?</svg>', html(tmp_path))[0]
    assert re.findall(r'class="value"[^>]*>([^<]*)<', bars) == ["31 s", "31 s"]
    assert "22 s encoding images, 20 s training" in page(write_report(tmp_path / "fedpgp")).text
    assert "s encoding" not in page(write_report(tmp_path / "promptfl")).text  # nothing to tell


def test_bold_is_the_best_of_a_column(tmp_path):
    accuracy = write_run(
        tmp_path / "run"
    )  # the personal prompt is best locally, the global one on novel classes
    text = write_report(tmp_path / "run").read_text()
    table = re.search(r'<table class="big">.*?</table>', text, re.DOTALL)[0]
    for figure in ("local", "base", "novel"):
        values = {f"{block[figure]:.1f}" for block in accuracy.values()}
        best = f"{max(block[figure] for block in accuracy.values()):.1f}"
        assert [value for value in values if f"<b>{value}</b>" in table] == [best]
    assert len(re.findall("<b>", table)) == 5 and "tr.personal td" not in text


def test_panels_of_one_client_say_client(tmp_path):
    write_run(tmp_path / "run", clients=13, domains=("noto",), rounds=1)
    shown = page(write_report(tmp_path / "run")).text
    assert "client 12" in shown and "clients 0 to 11" in shown and "12 to 12" not in shown


def test_samples_say_that_they_were_picked(tmp_path):
    write_run(tmp_path / "run")
    shown = page(write_report(tmp_path / "run")).text
    assert (
        "Picked to show right and wrong answers in turn" in shown and "shown are right" not in shown
    )
    assert len(re.findall(r"picked: \d right, \d wrong", shown)) == 4


def test_headlines_know_spread_zero_shot_and_unseen_data(tmp_path, capsys):
    write_run(tmp_path / "run")
    said = headline(read_run(tmp_path / "run"))
    assert re.search(
        r"gained [\d.]+ points over the global one and [\d.]+ over zero-shot CLIP on each", said
    )

    # the same means, but the clients' differences go both ways: no clear difference
    shutil.copytree(tmp_path / "run", tmp_path / "noise")
    with (tmp_path / "noise" / "clients.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for index, one in enumerate(rows):
        if one["model"] == "personal":
            one["local"] = float(one["local"]) + (60 if index % 2 else -60)
    with (tmp_path / "noise" / "clients.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    said = headline(read_run(tmp_path / "noise"))
    assert said.startswith(
        "Personal and global prompts show no clear difference on each client’s own images (+"
    )
    assert re.search(
        r"\); the personal ones .* classes? and are not clearly different from zero-shot CLIP", said
    )

    held_out = tmp_path / "held_out"
    protocol = {"name": "leave_one_domain_out", "held_out": "noto"}
    write_run(held_out, novel=False, protocol=protocol)
    summary = json.loads((held_out / "summary.json").read_text())
    for model, value in (("zero_shot", 50.0), ("global", 57.5), ("personal", 55.25)):
        summary["accuracy"][model]["unseen"] = value
    (held_out / "summary.json").write_text(json.dumps(summary))
    assert headline(read_run(held_out)).endswith(
        "On the domain left out (noto) each client’s own prompt is right on 55.2\u00a0%, the "
        "global one on 57.5\u00a0% and zero-shot CLIP on 50.0\u00a0%."
    )


@pytest.mark.parametrize(
    ("apart", "words"),
    [(10, "FedPGP has the best"), (0.2, "No clear difference between FedPGP and")],
)
def test_a_comparison_is_led_only_beyond_the_spread(tmp_path, apart, words):
    for method, level in (("fedpgp", 70.0 + apart), ("promptfl", 70.0)):
        for seed, off in ((1, -1.0), (2, 1.0)):
            path = tmp_path / f"{method}{seed}"
            write_run(path, method, seed)
            summary = json.loads((path / "summary.json").read_text())
            for model in ("global", "personal"):
                for figure in ("local", "novel", "hm3"):
                    summary["accuracy"][model][figure] = level + off
            for figure in ("local", "novel", "hm3"):
                summary["accuracy"]["zero_shot"][figure] = 42.0
            (path / "summary.json").write_text(json.dumps(summary))
    text = html(tmp_path)
    title = re.search("<h1>(.*?)</h1>", text)[1]
    assert title.startswith(words)
    assert ("zero-shot CLIP 42.0" in title) == (apart == 10)


def test_the_mean_over_held_out_domains_comes_first(tmp_path, capsys):
    for domain, unseen in (("noto", 50.0), ("fluent", 60.0)):
        for method in ("fedpgp", "promptfl"):
            path = tmp_path / domain / method
            write_run(
                path,
                method,
                novel=False,
                protocol={"name": "leave_one_domain_out", "held_out": domain},
            )
            summary = json.loads((path / "summary.json").read_text())
            for block in summary["accuracy"].values():
                block["unseen"] = unseen + (method == "fedpgp")
            (path / "summary.json").write_text(json.dumps(summary))
    report.main([str(tmp_path)])
    first, rest = capsys.readouterr().out.split("\n\n", 1)
    assert first.splitlines()[0] == "mean over the 2 domains held out" and re.search(
        r"FedPGP .* 56\.00\b", first
    )
    assert rest.count("FedPGP") == 2 and re.search(r"FedPGP +noto .* 51\.00\b", rest)
    text = html(tmp_path)
    assert (
        text.index("Mean over the 2 domains held out")
        < text.index("Each domain held out")
        < text.index("trade-off")
    )
    assert text.count('<details class="part">') == 2
    drawn = text[: text.index('<details class="part">')]
    assert drawn.count('aria-label="Local accuracy, %"') == 1
    capsys.readouterr()
    report.main([str(tmp_path), "--format", "markdown"])
    assert capsys.readouterr().out.startswith("mean over the 2 domains held out\n\n| method")

    write_run(tmp_path / "other", "fedpgp")  # beside runs of another protocol too
    report.main([str(tmp_path)])
    out = capsys.readouterr().out
    assert out.startswith("mean over the 2 domains held out\n") and "\nprotocol base2novel\n" in out
    text = html(tmp_path)
    assert text.count('<details class="part">') == 2 and "Each domain held out" not in text
    assert "Novel accuracy, %" in text[: text.index('<details class="part">')]


def test_tables_scroll_sort_and_load_nothing(tmp_path):
    for method in ("fedpgp", "promptfl"):
        for seed in (1, 2):
            write_run(tmp_path / f"{method}{seed}", method, seed)
    text = html(tmp_path)
    shown = page(tmp_path / "page.html")
    assert shown.tags.count("script") == 1 and "<script>" in text  # no src
    table = re.search(r'<table class="sortable">.*?</table>', text, re.DOTALL)[0]
    local = [float(v) for v in re.findall(r'<td data-v="([\d.]+)">', table)]
    assert (
        len(local) == 2 * 9
    )  # seeds, five figures and three costs: units do not hide their numbers
    assert ".scroll th:first-child, .scroll .pinned { position: sticky" in text


def test_null_and_a_setting_that_did_not_exist_are_one(tmp_path, capsys):
    write_run(tmp_path / "old", seed=1)
    write_run(tmp_path / "new", seed=2, init_from=None)
    report.main([str(tmp_path), "--format", "csv"])
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["seeds"] for row in rows] == ["1 2"]


def test_one_seed_is_said_and_one_client_is_one(tmp_path):
    for method in ("fedpgp", "promptfl"):
        write_run(tmp_path / method, method, clients=1)
    assert "One seed does not tell how much of a difference is chance" in html(tmp_path)
    write_run(tmp_path / "again", "promptfl", 2, clients=1)
    assert "One seed does not tell" not in html(tmp_path)
    assert not re.search(
        r"1 of \d+ clients are|\b1 clients", page(write_report(tmp_path / "fedpgp")).text
    )


def test_the_two_ends_of_many_clients_compare_models_that_differ(tmp_path):
    for method, other in (
        ("fedpgp", "global prompt"),
        ("promptfl", "zero-shot"),
        ("coop", "zero-shot"),
    ):
        write_run(tmp_path / method, method, clients=130, domains=None, rounds=1)
        if method == "promptfl":
            path = tmp_path / method / "summary.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"one_prompt": True}))
        assert f"Gained most over the {other}" in page(write_report(tmp_path / method)).text, method


@pytest.mark.parametrize("value", [0.0, 1.53, 44.44444, 12_345.0])
def test_an_axis_of_equal_values_can_be_read(value):
    ticks = nice_ticks(value, value)
    assert ticks[0] <= value <= ticks[-1] and len(ticks) > 2 and min(ticks) >= 0
    assert all(len(plain(tick)) <= 6 for tick in ticks)  # 44.4445 and 44.44425 tell nobody anything


def test_a_run_that_was_given_more_rounds_says_how_to_make_all_of_them(tmp_path):
    command = "python -m experiments.run rounds=3 method=fedpgp run_dir=first"
    write_run(tmp_path / "run", command=command, extended=[3])
    write_report(tmp_path / "run")
    assert "experiments.run method=fedpgp rounds=6" in page(tmp_path / "run" / "report.html").text


UNSEEN = "c\u202eat\x1b[31m"


def test_names_turn_no_text_and_move_no_cursor(tmp_path, capsys):
    """Of classes and of sites: in drawings, tables and words."""
    for seed in (1, 2):
        write_run(tmp_path / f"run{seed}", seed=seed)
    for path in tmp_path.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".csv"):
            name = UNSEEN if path.suffix == ".csv" else json.dumps(UNSEEN)[1:-1]
            text = path.read_text()
            for known in (CLASSES[0], DOMAINS[0]):
                text = text.replace(known, name)
            path.write_text(text)
    assert report.main([str(tmp_path)]) == 0
    texts = [html(tmp_path), write_report(tmp_path / "run1").read_text(), capsys.readouterr().out]
    for text in texts:
        assert "\u202e" not in text and "\x1b" not in text
    assert " × cat" in texts[1]
