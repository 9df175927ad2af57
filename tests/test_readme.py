"""The README's commands and code are those that work."""

import functools
import pathlib
import re
import shlex
import subprocess
import sys

import pytest
import tyro

import experiments.__main__ as command_line
from experiments import combine, consistency, pretrain
from experiments.harness import family_table, registry, results

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


SHELL = "".join(blocks("bash"))


def shell_commands(text=SHELL):
    lines = text.replace("\\\n", " ").replace(".venv/bin/", "").splitlines()
    commands = [command for line in lines if "python" in line for command in line.split("&&")]
    return [shlex.split(command, comments=True) for command in commands]


def test_the_tour_runs():
    (tour,) = blocks("python")
    names = {}
    exec(compile(tour, "README.md", "exec"), names)
    assert names["params"]["w"].shape == (64, 10)
    assert (names["params"]["w"] != 0).any()


def test_the_claims_it_runs_exist():
    run = [words for words in shell_commands() if words[:4] == ["python", "-m", "experiments", "run"]]
    assert len(run) >= 3
    for words in run:
        slugs = [word for word in words[4:] if word.isidentifier()]
        assert slugs
        for slug in slugs:
            registry.find(slug)


def test_its_table_of_families_is_that_of_the_results():
    """`python -m experiments report` writes it anew."""
    assert family_table.family_table(results.read_all(results.RESULTS)) in README


@pytest.mark.parametrize("script", [pretrain, consistency])
def test_the_training_commands_it_shows_are_understood(monkeypatch, script):
    calls = []
    for name, function in script.COMMANDS.items():
        monkeypatch.setitem(
            script.COMMANDS, name, functools.wraps(function)(lambda name=name, **given: calls.append(name) or 0)
        )
    train = [words[3:] for words in shell_commands() if words[:3] == ["python", "-m", script.__name__]]
    assert all(script.main(arguments) == 0 for arguments in train)
    assert set(calls) == set(script.COMMANDS)


@pytest.mark.parametrize("text", [SHELL, pretrain.__doc__], ids=["README", "docstring"])
def test_the_runs_it_shows_do_not_get_in_each_others_way(monkeypatch, text):
    runs = {}

    def train(settings, workdir, sweep, upkeep, **others):
        settings = settings.complete()
        directory = workdir or pretrain.default_workdir(settings, sweep)
        assert runs.setdefault(directory, (settings, sweep, upkeep)) == (settings, sweep, upkeep)
        return 0

    def replay(step, workdir, **others):
        settings, _, upkeep = runs[workdir]
        saved = range(0, settings.optimization.steps + 1, upkeep.checkpoint_every)[1:][-upkeep.keep :]
        assert saved[0] < step <= settings.optimization.steps
        return 0

    for function in (train, replay):
        given = functools.wraps(getattr(pretrain, function.__name__))(function)
        monkeypatch.setitem(pretrain.COMMANDS, function.__name__, given)
    for words in shell_commands(text):
        if words[:3] == ["python", "-m", "experiments.pretrain"] and words[3:4] != ["generate"]:
            assert pretrain.main(words[3:]) == 0
    assert len(runs) >= 3


@pytest.mark.parametrize("script", [pretrain, consistency])
def test_everything_that_can_be_set_is_in_help(capsys, script):
    with pytest.raises(SystemExit, match="0"):
        script.main(["--help"])
    text = capsys.readouterr().out
    assert all(option in text for option in ("--learning-rate", "--coordinator", "--keep-every", "--workdir"))
    assert "`generate`" in text


def test_the_combinations_it_shows_are_understood():
    shown = [words[3:] for words in shell_commands() if words[:3] == ["python", "-m", "experiments.combine"]]
    assert len(shown) >= 3
    for arguments in shown:
        given = tyro.cli(functools.wraps(combine.main)(lambda workdir, **options: workdir), args=arguments)
        assert given.parts[0] == "runs"


def test_the_list_it_shows_works(capsys):
    assert command_line.main(["list", "optim", "--search", "momentum"]) == 0
    assert "spam" in capsys.readouterr().out


def test_the_files_it_links_to_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_importing_jaxreg_imports_nothing_else():
    code = "import sys; before = set(sys.modules); import jaxreg; print(sorted(set(sys.modules) - before))"
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not re.search(r"'(jax|numpy|optax|flax|jaxtyping|beartype)[.']", output), output
