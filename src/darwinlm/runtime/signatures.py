"""Functions that take many named arguments as one `**mapping`, and still show each of them to their readers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import Parameter, signature
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., object])


def spelled_out(annotations: Mapping[str, Any], *, after: str | None = None) -> Callable[[F], F]:
    """Show the last argument of a function, `**mapping`, as named arguments with these annotations, None by default.

    Args:
        annotations: Annotation of each argument by its name.
        after: Argument behind which they stand; None puts them last.

    `help`, notebooks and Typer read what is shown. The function itself is called as before.
    """

    def show(function: F) -> F:
        declared = signature(function)
        *parameters, mapping = declared.parameters.values()
        if mapping.kind is not Parameter.VAR_KEYWORD:
            raise TypeError(f"the last argument of {function.__name__} is {mapping}, not a **mapping")
        kind = Parameter.KEYWORD_ONLY
        shown = [Parameter(name, kind, default=None, annotation=given) for name, given in annotations.items()]
        if after is None:
            parameters += shown
        else:
            place = [parameter.name for parameter in parameters].index(after) + 1
            behind = [parameter.replace(kind=kind) for parameter in parameters[place:]]
            parameters = [*parameters[:place], *shown, *behind]
        function.__signature__ = declared.replace(parameters=parameters)  # type: ignore[attr-defined]
        return function

    return show
