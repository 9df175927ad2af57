"""What every public name of the package owes its users."""

import importlib
import inspect
import pathlib
import re

import pytest

import jaxreg

ROOT = pathlib.Path(jaxreg.__file__).parent
SUBPACKAGES = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
EXPORTS = [
    (subpackage, name) for subpackage in SUBPACKAGES for name in importlib.import_module(f"jaxreg.{subpackage}").__all__
]


def exported(subpackage, name):
    return getattr(importlib.import_module(f"jaxreg.{subpackage}"), name)


def test_every_subpackage_loads_on_first_use():
    assert sorted(set(jaxreg.__all__) - {"__version__"}) == SUBPACKAGES
    for subpackage in SUBPACKAGES:
        assert getattr(jaxreg, subpackage) is importlib.import_module(f"jaxreg.{subpackage}")
    with pytest.raises(AttributeError, match="module 'jaxreg' has no attribute 'optimizers'"):
        jaxreg.__getattr__("optimizers")


@pytest.mark.parametrize("subpackage", SUBPACKAGES)
def test_exports_are_sorted_and_complete(subpackage):
    module = importlib.import_module(f"jaxreg.{subpackage}")
    assert module.__all__ == sorted(module.__all__)
    public = {name for name, value in vars(module).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert public == set(module.__all__)


@pytest.mark.parametrize(("subpackage", "name"), EXPORTS)
def test_docstrings_say_what_goes_in_and_what_comes_out(subpackage, name):
    value = exported(subpackage, name)
    doc = inspect.getdoc(value)
    assert doc
    assert len(doc.splitlines()[0]) <= 118, "the first line is one short sentence"
    if inspect.isclass(value):
        fields = getattr(value, "_fields", ())
        assert all(re.search(rf"^ +{field}: ", doc, re.MULTILINE) for field in fields)
        return
    assert "Args:" in doc
    assert "Returns:" in doc
    for parameter in inspect.signature(value).parameters:
        assert re.search(rf"^ +{parameter}: ", doc, re.MULTILINE), f"{parameter} is not described"


@pytest.mark.parametrize(("subpackage", "name"), EXPORTS)
def test_signatures_are_annotated_and_hyperparameters_have_names(subpackage, name):
    value = exported(subpackage, name)
    if inspect.isclass(value):
        return
    signature = inspect.signature(value)
    assert signature.return_annotation is not signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not parameter.empty, f"{parameter.name} has no annotation"
    assert hasattr(value, "__wrapped__"), "public functions are checked: @checked"
