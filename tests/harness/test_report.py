import io
import json
import re

import pytest
from rich.console import Console

from experiments.harness import registry, report, results


def comparison(**changes):
    arm = dict(score=2.0, interval=[1.9, 2.1], scores=[1.9, 2.1], diverged=0, tuned={"learning_rate": 0.01}, figures={})
    fields = dict(
        metric="loss (nats)", better="lower", worst=9.0, min_effect=0.05, margin=None, relative=True, method="new",
        strongest="old", effect=0.123, interval=[0.1, 0.15], probability_of_improvement=1.0, verdict="holds",
        arms={"old": {**arm, "effect": 0.123, "diverged": 1}, "new": {**arm, "score": 1.5, "figures": {"error": 0.25}}},
    )  # fmt: skip
    return {**fields, **changes}


@pytest.fixture
def result():
    return dict(
        family="optim",
        slug="spam",
        title="A title",
        arxiv="2501.06842",
        claim="New beats old.",
        finding="It is new.",
        verdict="holds",
        effect=0.123,
        interval=[0.1, 0.15],
        method="new",
        criteria=[comparison()],
        seeds=2,
        seed_offset=5,
        tuning_seeds=4,
        steps=100,
        beside=[{"says": "on Mars", "settings": {}, **comparison(effect=-0.01, interval=[-0.02, 0.0])}],
        curves={"old": [[3, 2], [3, 2], [3, 2]], "new": [[3, 1], [3, 1], [3, 1]]},
        smoke=False,
        wall_seconds=1.0,
        backend="cpu",
        devices="1 x cpu",
        versions={},
    )


def shown(result):
    console = Console(width=120, record=True, file=io.StringIO())
    report.show(result, console)
    return console.export_text()


def test_the_table_shows_arms_effect_interval_and_verdict(result):
    text = shown(result)
    assert re.search(r"new +learning_rate 0.01 +1.5 +\[1.9, 2.1\]", text)
    assert "new against old: +12.3% [10.0, 15.0], to be better by at least 5%: holds" in text
    assert re.search(r"old .*1 of 2", text), "diverged runs are shown"
    assert "beside: on Mars (loss (nats)): -1.0% [-2.0, 0.0]" in text
    assert "verdict: holds (2 seeds from 5" in text


def test_a_smoke_run_shows_no_verdict(result):
    text = shown({**result, "smoke": True})
    assert "verdict:" not in text
    assert "says nothing about the paper" in text


def test_effects_in_the_unit_of_the_metric():
    absolute = comparison(relative=False, effect=0.031, interval=[-0.01, 0.05], min_effect=None, margin=0.02)
    assert report.effect(absolute) == "+0.031 [-0.01, 0.05]"
    assert report.rule(absolute) == "not worse by more than 0.02"
    assert report.effect(comparison(effect=None)) == "undefined"


def test_the_report_is_made_from_the_files_alone_and_always_the_same(tmp_path, result):
    folder = tmp_path / "results"
    folder.mkdir()
    results.write_json(folder / "spam.json", result)
    written = []
    for _ in range(2):
        assert [r["slug"] for r in report.report(folder)] == ["spam"]
        written.append(((tmp_path / "RESULTS.md").read_bytes(), (folder / "spam.png").read_bytes()))
    assert written[0] == written[1]
    document = written[0][0].decode()
    assert "1 claims: 1 holds, 0 inconclusive, 0 fails." in document
    assert "## optim" in document
    assert "*Finding:* It is new." in document
    assert "| new | learning_rate 0.01 | 1.5 | [1.9, 2.1] | 0.25 |" in document
    assert "- on Mars: loss (nats), new 1.5 against old 2, -1.0% [-2.0, 0.0]" in document
    assert written[0][1].startswith(b"\x89PNG")


def test_learning_curves_beside_the_claim_get_a_panel_of_their_own(tmp_path, result, monkeypatch):
    drawn = []
    monkeypatch.setattr(report, "save", lambda figure, path: drawn.append(figure.axes))
    curves = {"old": [[4, 3], [4, 3], [4, 3]], "newest": [[4, 2], [4, 2], [4, 2]]}
    on_mars = {**result["beside"][0], "says": "on Mars", "curves": curves}
    report.plot({**result, "beside": [*result["beside"], on_mars]}, tmp_path / "plot.png")
    (axes,) = drawn
    assert [axis.get_title() for axis in axes] == [
        "median and quartiles of the seeds",
        "on Mars",
        "seeds, interquartile mean, 95% interval",
    ]
    lines = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes[1].lines}
    assert lines == {"old": [(50, 4), (100, 3)], "newest": [(50, 4), (100, 2)]}


def test_committed_results_are_whole_and_of_existing_claims():
    for result in results.read_all(results.RESULTS):
        claim, _ = registry.find(result["slug"]).load()
        assert not result["smoke"]
        assert result["family"] == registry.find(result["slug"]).family
        assert result["claim"] == claim.says, f"{result['slug']} was measured for another claim: run it again"
        assert result["finding"] == claim.finding
        assert result["seeds"] == claim.seeds
        assert result["steps"] == claim.steps
        assert (results.RESULTS / f"{result['slug']}.png").exists()


def test_committed_report_is_that_of_the_committed_results():
    committed = (results.RESULTS.parent / "RESULTS.md").read_text()
    assert committed == report.markdown(results.read_all(results.RESULTS)), "run `python -m experiments report`"


@pytest.mark.parametrize("path", list(results.RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_results_are_plain_json(path):
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{path} holds {name}"))
