import types

import pytest

from experiments.harness import registry, results


def test_every_claim_file_declares_its_own_name_and_can_be_run():
    for slug, entry in registry.entries().items():
        claim, run = entry.load()
        assert claim.slug == slug
        assert callable(run)


def test_claims_are_found_by_slug_and_by_family():
    assert registry.find("spam") == registry.Entry("spam", "optim")
    assert registry.Entry("elr", "losses") in registry.family("losses")
    assert registry.find("spam") not in registry.family("losses")


@pytest.mark.parametrize(
    ("wrong", "hint"), [("span", "did you mean spam"), ("multi_sample_dropuot", "did you mean multi_sample_dropout")]
)
def test_near_matches_are_suggested(wrong, hint):
    with pytest.raises(registry.UnknownName, match=hint):
        registry.find(wrong)


@pytest.mark.parametrize("folder", ["harness", "benchmarks"])
def test_what_is_no_family_is_refused(folder):
    with pytest.raises(registry.UnknownName, match=rf"no family is called '{folder}'; there are .*optim"):
        registry.family(folder)


def test_a_claim_under_a_foreign_name_is_refused(monkeypatch):
    claim, run = registry.find("spam").load()
    foreign = types.SimpleNamespace(CLAIM=claim, run=run)
    monkeypatch.setattr(registry.importlib, "import_module", lambda name: foreign)
    with pytest.raises(ValueError, match=r"losses/elr.py declares the slug 'spam'"):
        registry.Entry("elr", "losses").load()


def test_findings_are_taken_over_from_the_claim_files(tmp_path):
    claim, _ = registry.find("elr").load()
    committed = next(result for result in results.read_all(results.RESULTS) if result["slug"] == "elr")
    for slug, finding in (("elr", "another"), ("gone", "kept")):
        results.write_json(tmp_path / f"{slug}.json", {**committed, "slug": slug, "finding": finding})
    assert registry.update_findings(tmp_path) == ["elr"]
    found = {result["slug"]: result for result in results.read_all(tmp_path)}
    assert found["elr"] == {**committed, "finding": claim.finding}
    assert found["gone"]["finding"] == "kept"
    assert registry.update_findings(tmp_path) == []
