"""What scripts register: names, settings, and identity in the keys of steps."""

import importlib.util
import io
import runpy
import sys
from typing import Annotated, ClassVar

import pytest
from pydantic import BaseModel, ValidationError
from rich.console import Console

from darwinlm.recipe.recipe import Recipe
from darwinlm.runtime.console import Reporter
from darwinlm.runtime.errors import RecipeError
from darwinlm.runtime.registry import Extension, Extensions, Registry, SettingError, identity_of
from darwinlm.runtime.run import Run


class Shape(Extension):
    """Base of what is registered here."""


class Round(Shape):
    radius: float = 1.0


class Plain(Shape):
    version: ClassVar[int] = 3


@pytest.fixture
def shapes() -> Extensions[Shape]:
    registry = Extensions(Shape, "shape", "drawing.shape")
    registry.register("round")(Round)
    registry.register("plain")(Plain)
    return registry


def test_names_and_objects():
    registry: Registry[int] = Registry("number")
    registry.register("one")(1)
    assert (registry.names(), list(registry), "one" in registry, "two" in registry) == (("one",), ["one"], True, False)
    assert (registry.find("one"), registry.name_of(1)) == (1, "one")
    registry.register("one")(2)
    assert registry.find("one") == 2, "a cell of a notebook may run twice"
    registry.remove("one")
    with pytest.raises(RecipeError, match=r"^there is no number 'one': known are $"):
        registry.find("one")


def test_an_unknown_name_is_explained(shapes):
    with pytest.raises(RecipeError, match=r"drawing\.shape: there is no shape 'rund': did you mean 'round'\?"):
        shapes.find("rund")
    with pytest.raises(RecipeError, match="there is no shape 'x': known are round, plain"):
        shapes.find("x")


def test_only_classes_of_the_kind_are_registered(shapes):
    with pytest.raises(TypeError, match="a shape is a subclass of Shape, and 5 isn't"):
        shapes.register("five")(5)
    registry: Registry[type] = Registry("recipe")
    registry.register("ours")(Recipe)
    with pytest.raises(RecipeError, match="there is a recipe 'ours' in darwinlm: choose another name"):
        registry.register("ours")(Round)


def test_a_field_takes_a_name_or_settings_and_gives_the_same_back(shapes):
    class Drawing(BaseModel):
        shape: Annotated[Shape, shapes] = Plain()

    assert Drawing().model_dump(mode="json") == {"shape": "plain"}
    given = Drawing.model_validate({"shape": {"name": "round", "radius": "2"}})
    assert given.shape == Round(radius=2)
    assert given.model_dump() == {"shape": {"name": "round", "radius": 2.0}}
    assert Drawing.model_validate(given.model_dump()) == given
    assert Drawing(shape=Round(radius=3)).shape == Round(radius=3)
    for wrong, said in (
        ({"radius": 2}, "must name a shape: round, plain"),
        ("rond", "there is no such shape: did you mean 'round'"),
        ({"name": "plain", "radius": 2}, "no such setting: known are none"),
        ({"name": "round", "radios": 2}, "no such setting: did you mean 'radius'"),
    ):
        with pytest.raises(ValidationError, match=said):
            Drawing.model_validate({"shape": wrong})
    with pytest.raises(SettingError) as caught:
        shapes.parse({"name": "round", "radius": "wide"})
    assert (caught.value.where, caught.value.value) == (("radius",), "wide")


def written(source: str, path, name: str):
    """Identity of a class from a file of its own."""
    path.write_text("from darwinlm.runtime.registry import Extension\n" + source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        return identity_of(module.Mine)
    finally:
        del sys.modules[name]


def test_the_source_and_the_version_identify_what_a_script_registers(tmp_path):
    assert identity_of(Plain)["version"] == 3
    assert identity_of(Extension) is None, "the versions of steps cover what is in the package"
    first = "class Mine(Extension):\n    def f(self): return 1\n"
    same, other = (
        written(text, tmp_path / f"{name}.py", name) for name, text in (("a", first), ("b", first.replace("1", "2")))
    )
    assert same["source"] != other["source"]
    assert written(first, tmp_path / "again.py", "again") == same, "wherever it stands"
    base = "class Base(Extension):\n    def f(self): return {}\nclass Mine(Base):\n    pass\n"
    one, two = (written(base.format(n), tmp_path / f"b{n}.py", f"b{n}")["source"] for n in (1, 2))
    assert one != two, "a base class of the script counts too"


def test_a_source_that_cannot_be_read_is_none():
    names = {"__name__": "nowhere"}
    exec("from darwinlm.runtime.registry import Extension\nclass Mine(Extension):\n    def f(self): return 1\n", names)
    assert identity_of(names["Mine"]) == {"version": 1, "source": None}
    assert identity_of(len) == {"version": 1, "source": None}


SCRIPT = """
from dataclasses import dataclass
from darwinlm.runtime.step import Step

@dataclass(frozen=True, eq=False)
class Numbers(Step):
    name = "numbers"
    count: int

    def work(self, task):
        (task.folder / "numbers.txt").write_text("0123456789"[:self.count])

    def read(self, task):
        return (task.folder / "numbers.txt").read_text()
"""


def test_a_step_of_a_script_is_known_by_its_source_or_the_run_says_that_it_is_not(tmp_path):
    said = Console(record=True, quiet=False, file=io.StringIO(), width=200)
    run = Run(Recipe(model="any"), tmp_path / "out", Reporter(said), order=("text", "report"), until="report")
    for name, source in (("known", SCRIPT), ("changed", SCRIPT.replace("0123", "3210"))):
        path = tmp_path / f"{name}.py"
        path.write_text(source, encoding="utf-8")
        step = runpy.run_path(str(path), run_name=name)["Numbers"]
        assert run(step(2)) == ("01" if name == "known" else "32")
    assert "can't be read" not in said.export_text(clear=False)
    names = {"__name__": "nowhere"}
    exec(SCRIPT, names)
    assert [run(names["Numbers"](count)) for count in (1, 3)] == ["0", "012"]
    assert said.export_text().count("Numbers: its source can't be read, so a change of it isn't noticed") == 1
