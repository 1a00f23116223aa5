"""Short names of settings: one declaration gives the field, the argument of Python and the option of the commands."""

from inspect import Parameter, signature

import pytest

import darwinlm
from darwinlm.cli.arguments import RECIPE_OPTIONS
from darwinlm.cli.plan import plan as plan_command
from darwinlm.cli.prune import prune as prune_command
from darwinlm.recipe import BUDGETS, Recipe, RecipeOptions, load_recipe, options
from darwinlm.recipe.options import FIELDS
from darwinlm.runtime.errors import RecipeError
from darwinlm.runtime.signatures import spelled_out

KINDS = set(BUDGETS.names())


def test_every_short_name_is_a_field_an_argument_and_an_option() -> None:
    names = set(RecipeOptions.__annotations__)
    assert names - KINDS == FIELDS.keys() - {"model"} == RECIPE_OPTIONS.keys()
    for function in (darwinlm.prune, darwinlm.plan, prune_command, plan_command):
        parameters = signature(function).parameters
        assert names <= parameters.keys()
        assert all(parameters[name].default is None for name in names)
        assert all(parameter.kind is not Parameter.VAR_KEYWORD for parameter in parameters.values())
    for field in FIELDS.values():
        section, _, name = field.partition(".")
        known = Recipe.model_fields if not name else type(getattr(load_recipe(), section)).model_fields
        assert (name or section) in known


def test_short_names_become_fields() -> None:
    assert options(vocab="50%", keep=0.5, text=["a.txt", "b.txt"]) == {
        "vocabulary.keep": "50%",
        "budget.keep": 0.5,
        "text.source": "a.txt,b.txt",
    }
    with pytest.raises(TypeError, match=r"unexpected arguments \['keeps'\]: known are model, vocab"):
        darwinlm.prune("model", keeps=0.5)


@pytest.mark.parametrize("wrong", [None, 3, [], b"a.txt"])
def test_a_list_of_texts_holds_names_alone(wrong: object) -> None:
    with pytest.raises(RecipeError, match=r"text: .* names no text: give paths or names of data sets"):
        options(text=["a.txt", wrong])


def test_a_mapping_is_spelled_out_where_it_is_wanted() -> None:
    def work(first: int, last: int = 2, **named: int) -> dict[str, int]:
        return {"first": first, "last": last, **named}

    shown = spelled_out({"one": int, "two": str}, after="first")(work)
    assert str(signature(shown)) == "(first: int, *, one: int = None, two: str = None, last: int = 2) -> dict[str, int]"
    assert shown(1, two=3) == {"first": 1, "last": 2, "two": 3}
    with pytest.raises(TypeError, match=r"the last argument of no_mapping is last: int, not a \*\*mapping"):

        @spelled_out({})
        def no_mapping(first: int, last: int) -> None: ...
