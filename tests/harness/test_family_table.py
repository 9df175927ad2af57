import pytest

import jaxreg
from experiments.harness import family_table


def results():
    verdicts = {"optim": ["holds", "fails", "holds"], "losses": ["inconclusive"]}
    return [{"family": family, "verdict": verdict} for family, found in verdicts.items() for verdict in found]


def test_families_are_counted_and_say_what_they_give():
    lines = family_table.family_table(results()).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| `jaxreg.losses`", "| `jaxreg.optim`", "| all"]
    assert lines[3].split(" | ")[2:] == ["3", "2", "0", "1 |"]
    assert lines[4].split(" | ")[2:] == ["4", "2", "1", "1 |"]
    assert lines[3].split(" | ")[1] in jaxreg.optim.__doc__


def test_the_table_is_written_between_its_comments_and_nowhere_else(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{family_table.BEGIN}\nstale\n{family_table.END}\nafter\n")
    assert family_table.update(readme, results())
    text = readme.read_text()
    assert text.startswith(f"before\n{family_table.BEGIN}\n| family")
    assert text.endswith(f"|\n{family_table.END}\nafter\n")
    assert "stale" not in text
    assert not family_table.update(readme, results())
    assert readme.read_text() == text


def test_a_readme_without_a_place_is_left_alone(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{family_table.BEGIN}\n")
    with pytest.raises(ValueError, match=r"README.md must have the lines .* got no such place"):
        family_table.update(readme, results())
    assert readme.read_text() == f"before\n{family_table.BEGIN}\n"
