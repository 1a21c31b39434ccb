"""What a page says first: the result of one run, or of a comparison, in plain sentences."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from experiments.reporting.client_panels import by_client
from experiments.reporting.formatting import format_points
from experiments.reporting.runs import Run
from experiments.reporting.statistics import mean_std
from experiments.reporting.tables import Row
from experiments.reporting.titles import title
from fedpgp.evaluation.figures import COLUMNS, MODELS, UNSEEN

_FEWEST_CLIENTS = 3  # of a spread over clients
_COMPARED = {
    name: figure.phrase
    for name, figure in COLUMNS.items()
    if figure.phrase and not figure.lower_is_better
}


def headline(run: Run) -> str:
    """Return the result in one or two plain sentences."""
    zero, shared, personal = (run.figure(model, "local") for model in MODELS)
    if math.isnan(personal) and (run.summary or {}).get("no_figures"):
        return (
            f"{title(run.choice('method'))} on {run.choice('dataset')}: the clients keep their "
            "figures."
        )
    if math.isnan(personal):
        return f"{title(run.choice('method'))} on {run.choice('dataset')}: nothing is measured yet."
    own = "each client’s own images"
    above_zero = (
        "" if math.isnan(zero) else f", {_against(run, 'personal', 'zero_shot', 'zero-shot CLIP')}"
    )
    if run.choice("method") == "zero_shot":
        first = f"Without any training, CLIP is right on {personal:.1f}\u00a0% of {own}"
    elif run.one_prompt:
        first = f"One prompt for all is right on {personal:.1f}\u00a0% of {own}{above_zero}"
    elif math.isnan(shared):
        first = (
            f"Each client’s own prompt is right on {personal:.1f}\u00a0% of its images{above_zero}"
        )
    else:
        first = _personal_against_global(run, own)
    return f"{first}.{_unseen(run)}"


def lead(run: Run) -> str:
    """Return who was helped, and how far training went."""
    clients = by_client(run)
    sentences = []
    if why := (run.summary or {}).get("no_figures"):
        sentences.append(f"{why[0].upper()}{why[1:]}.")
    if clients and not run.one_prompt:
        against = "global" if run.accuracy["global"] else "zero_shot"
        differences = [
            row["personal"]["local"] - row[against]["local"]
            for row in clients
            if against in row and "personal" in row
        ]
        differences = [d for d in differences if not math.isnan(d)]
        if differences:
            better, worse = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
            other = "the global one" if against == "global" else "zero-shot CLIP"
            with_own = f"better off with their own prompt than with {other}"
            if not better:
                sentence = f"No client is {with_own.replace('their', 'its')}"
            elif len(differences) == 1:
                sentence = f"The client is {with_own.replace('their', 'its')}"
            elif better == len(differences):
                sentence = f"All {better} clients are {with_own}"
            else:
                sentence = (
                    f"{better} of {len(differences)} clients {'is' if better == 1 else 'are'} "
                    f"{with_own}"
                )
                sentence = sentence.replace("their", "its") if better == 1 else sentence
            if worse:
                sentence += f", {worse} {'is' if worse == 1 else 'are'} worse off"
            sentences.append(sentence + ".")
    zero, personal = run.figure("zero_shot", "local"), run.figure("personal", "local")
    if not math.isnan(zero) and run.accuracy["global"] and not run.one_prompt:
        sentences.append(
            f"Locally, zero-shot CLIP starts at {zero:.1f}\u00a0%; the personal prompts end at "
            f"{personal:.1f}\u00a0%."
        )
    if run.status != "finished":
        sentences.append(f"The run is {run.status}; these are its figures so far.")
    return " ".join(sentences)


def _personal_against_global(run: Run, own: str) -> str:
    gain, clear = _difference(run, "personal", "global", "local")
    above = run.figure("personal", "local") - run.figure("zero_shot", "local")
    clauses: dict[str, list[str]] = defaultdict(list)
    for name in ("base", "novel"):
        difference, certain = _difference(run, "personal", "global", name)
        if not math.isnan(difference):
            verb = (
                "no clear difference" if not certain else "gained" if difference > 0 else "gave up"
            )
            clauses[verb].append(
                f"on {name}" if not certain else f"{abs(difference):.1f} on {name}"
            )
    level = [f"{what} classes" for what in clauses.pop("no clear difference", [])]
    words = [f"{verb} {' and '.join(what)} classes" for verb, what in clauses.items()]
    if clear and gain > 0:
        zero = f" and {above:.1f} over zero-shot CLIP" if above >= 0 else ""
        start = (
            f"The personal prompts gained {format_points(gain)} over the global one{zero} on {own}"
        )
    elif clear:
        start = f"The personal prompts lost {format_points(gain)} against the global one on {own}"
    else:
        start = (
            "Personal and global prompts show no clear difference "
            f"{and_([f'on {own} ({_signed(gain)})', *level])}"
        )
    if clear and level:
        words.append(f"show no clear difference {and_(level)}")
    against = ""
    if not math.isnan(above) and not (clear and gain > 0 and above >= 0):
        against = f"are {_against(run, 'personal', 'zero_shot', 'zero-shot CLIP')}"
    if not clear:  # the first sentence is of both prompts, the second of the personal ones
        did = [*words, *([against] if against else [])]
        return f"{start}; the personal ones {and_(did)}" if did else start
    text = f"{start}, {and_(words)}" if words else start
    return f"{text}; the personal ones {against}" if against else text


def _unseen(run: Run) -> str:
    """Return what happened to data that nobody trained on, of protocols that have such a figure."""
    names = {
        "personal": "each client’s own prompt" if not run.one_prompt else "the prompt",
        "global": "the global one",
    }
    shown = ["personal"] if run.one_prompt or not run.accuracy["global"] else ["personal", "global"]
    zero = run.figure("zero_shot", "unseen")
    if math.isnan(run.figure("personal", "unseen")):
        return ""
    where = UNSEEN.get(run.choice("protocol"), ("unseen data", ""))[0]
    protocol = run.config.get("protocol")
    held_out = protocol.get("held_out") if isinstance(protocol, dict) else None
    where += f" ({held_out})" if held_out else ""
    if run.choice("method") == "zero_shot":
        return f" On {where} it is right on {run.figure('personal', 'unseen'):.1f}\u00a0%."
    words = [f"{names[model]} on {run.figure(model, 'unseen'):.1f}\u00a0%" for model in shown]
    words[0] = words[0].replace(" on ", " is right on ", 1)
    words += [] if math.isnan(zero) else [f"zero-shot CLIP on {zero:.1f}\u00a0%"]
    return f" On {where} {and_(words)}."


def _difference(run: Run, first: str, second: str, figure: str) -> tuple[float, bool]:
    """Difference of the means of two models, and whether it is clear: more than two standard errors
    over the clients, where the clients' figures are known, and not 0.0 when it is printed."""
    difference = run.figure(first, figure) - run.figure(second, figure)
    rows: dict[int, dict[str, float]] = defaultdict(dict)
    for row in run.clients:
        rows[row["id"]][row["model"]] = row[figure]
    pairs = [row[first] - row[second] for row in rows.values() if first in row and second in row]
    pairs = [value for value in pairs if not math.isnan(value)]
    clear = abs(difference) >= 0.05
    if len(pairs) >= _FEWEST_CLIENTS:
        clear = clear and abs(difference) > 2 * mean_std(pairs)[1] / math.sqrt(len(pairs))
    return difference, clear


def _against(run: Run, first: str, second: str, other: str) -> str:
    difference, clear = _difference(run, first, second, "local")
    if not clear:
        return f"not clearly different from {other} ({_signed(difference)})"
    return f"{format_points(difference)} {'above' if difference > 0 else 'below'} {other}"


def _signed(difference: float) -> str:
    return f"{difference:+.1f} points".replace("-", "−")


def comparison_headline(rows: Sequence[Row], with_model: bool) -> str:
    """Return who leads, zero-shot CLIP among them, where all rows can be compared; otherwise what
    is on the page.

    The best leads clearly where it is ahead of the next by more than either's
    standard deviation over seeds.
    """
    setups = [row for row in rows if row.model != "zero_shot"]
    if len({row.task for row in rows}) != 1 or len(rows) < 2:
        return f"{len(setups)} setup{'s' * (len(setups) != 1)} side by side."
    leaders: dict[str, list[str]] = {}
    unclear: dict[tuple[str, str], list[str]] = {}
    for column, words in _COMPARED.items():
        if column == "base":
            continue
        ranked = [
            row for row in rows if column in row.cells and not math.isnan(row.cells[column].mean)
        ]
        ranked.sort(key=lambda row: -row.cells[column].mean)
        if len(ranked) < 2:
            continue
        first, second = (row.cells[column] for row in ranked[:2])
        names = tuple(row.name(with_model) for row in ranked[:2])
        spread = max((std for std in (first.std, second.std) if not math.isnan(std)), default=0.0)
        if first.mean - second.mean > max(spread, 0.005):
            zero = next(
                (row.cells[column].mean for row in ranked if row.model == "zero_shot"), math.nan
            )
            beside = (
                "" if math.isnan(zero) or zero == first.mean else f", zero-shot CLIP {zero:.1f}"
            )
            leaders.setdefault(names[0], []).append(f"{words} ({first.mean:.1f}\u00a0%{beside})")
        else:
            unclear.setdefault(names, []).append(words)
    said = [f"{name} has the best {and_(what)}" for name, what in leaders.items()]
    said += [
        f"no clear difference between {one} and {two} in {and_(what)}"
        for (one, two), what in unclear.items()
    ]
    text = "; ".join(said) + "."
    return text if leaders else text[0].upper() + text[1:]  # a method's name keeps its small letter


def and_(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
