"""The one list of figures: what is computed, written and documented is what it names."""

from pathlib import Path

from experiments.reporting.tables import column_name
from fedpgp.evaluation import client_figures, summarize
from fedpgp.evaluation.figures import (
    ACCURACIES,
    CLIENT_FIGURES,
    FIGURES,
    GROUPED,
    LIFELONG,
    MODELS,
)

DOCS = Path(__file__).resolve().parents[3] / "docs"
PAGE, LIFELONG_PAGE = (
    (DOCS / name).read_text(encoding="utf-8") for name in ("protocols.md", "lifelong.md")
)


def test_an_evaluation_has_the_figures_of_the_list_for_each_model():
    measured = {f"{model}.{name}": 50.0 for model in MODELS for name in ACCURACIES}
    summary = summarize([{"id": 0, "domain": None, **measured}])
    assert set(summary) == set(MODELS)
    for block in summary.values():
        assert set(block) == {*FIGURES, *GROUPED, "std_clients"}
        assert set(block["std_clients"]) == set(CLIENT_FIGURES)
    assert set(client_figures(measured, "personal")) == set(CLIENT_FIGURES)


def test_the_page_has_a_row_for_each_figure_in_the_words_of_the_list():
    for figure in FIGURES.values():
        assert f"| `{figure.name}` | {figure.title} | {figure.unit} | {figure.meaning} |\n" in PAGE
        assert column_name(figure.name) == figure.title
    for figure in LIFELONG.values():
        row = f"| `{figure.name}` | {figure.title} | {figure.unit} | {figure.meaning} |"
        assert row in LIFELONG_PAGE and f"`{figure.name}`" in PAGE
        assert column_name(figure.name) == figure.title
    assert all(f"`{name}`" in PAGE for name in GROUPED)
