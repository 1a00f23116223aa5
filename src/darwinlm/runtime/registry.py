"""What can be had in several ways, by name: those of the package, and those that a script registers before its run.

A registry maps names to entries of one kind. The entries that a recipe chooses among are `Extension` classes, whose
fields are their settings: `database.metric: loss`, or `{name: mine, alpha: 0.5}` for one with settings of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar, Generic, TypeVar, cast

from pydantic import BaseModel, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, core_schema

from darwinlm.runtime.errors import RecipeError
from darwinlm.runtime.json_values import JsonObject
from darwinlm.runtime.limits import suggestion
from darwinlm.runtime.section import Section

T = TypeVar("T")
Entry = TypeVar("Entry")
PACKAGE = __name__.partition(".")[0]


class Extension(Section):
    """One way to do a part of the method: a class with a hook or two, whose fields are its settings.

    Attributes:
        version: Number that its author raises when its results change and its source doesn't, such as that of a
            function that it calls.
    """

    version: ClassVar[int] = 1


AnyExtension = TypeVar("AnyExtension", bound=Extension)


class SettingError(ValueError):
    """A wrong setting inside a field.

    Attributes:
        where: Names of the settings below the field, the outermost first.
        value: What was given.
    """

    def __init__(self, where: tuple[str, ...], message: str, value: object) -> None:
        super().__init__(message)
        self.where, self.value = where, value


class Registry(Generic[T]):
    """Entries of one kind by name.

    Args:
        what: What an entry is, for messages: `removal metric`.
        setting: Name of the setting that takes these names; empty if none does.
    """

    def __init__(self, what: str, setting: str = "") -> None:
        self.what, self.setting = what, setting
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """Decorate a class or a function, or call with an object: `REGISTRY.register("mine")(entry)`.

        A script may register a name again, as a notebook does whose cell runs twice. Raises RecipeError if the name is
        one of the package's.
        """

        def add(entry: Entry) -> Entry:
            if name in self._entries and _in_package(self._entries[name]):
                raise RecipeError(f"there is a {self.what} '{name}' in {PACKAGE}: choose another name")
            self._entries[name] = self._checked(entry)
            return entry

        return add

    def _checked(self, entry: object) -> T:
        """The entry, if it is of the registry's kind. Subclasses check it."""
        return cast("T", entry)

    def remove(self, name: str) -> None:
        """Forget an entry."""
        del self._entries[name]

    def find(self, name: str) -> T:
        """An entry by its name. Raises RecipeError, with a similar name."""
        if name not in self._entries:
            setting = f"{self.setting}: " if self.setting else ""
            raise RecipeError(f"{setting}there is no {self.what} '{name}': {self.hint(name)}")
        return self._entries[name]

    def hint(self, name: str) -> str:
        """What to do about an unknown name."""
        return suggestion(name, self._entries, f"known are {', '.join(self._entries)}")

    def names(self) -> tuple[str, ...]:
        """All names, in the order of registration."""
        return tuple(self._entries)

    def name_of(self, entry: T) -> str:
        """Name of an entry. Raises KeyError if it isn't registered."""
        for name, registered in self._entries.items():
            if registered is entry:
                return name
        raise KeyError(entry)

    def identity(self, name: str) -> dict[str, object] | None:
        """`identity_of` an entry."""
        return identity_of(self.find(name))

    def __contains__(self, name: object) -> bool:
        """Whether there is an entry of this name."""
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self.names())


class Extensions(Registry[type[AnyExtension]]):
    """A registry of classes among which a recipe chooses.

    `Annotated[Base, REGISTRY]` is the type of the recipe's field: it takes a name, a mapping with `name` and the
    settings of that class, or an instance, and gives an instance.

    Args:
        base: Class of which all entries are subclasses.
        what: What an entry is, for messages.
        setting: Name of the recipe's field.
    """

    def __init__(self, base: type[AnyExtension], what: str, setting: str) -> None:
        super().__init__(what, setting)
        self.base = base

    def _checked(self, entry: object) -> type[AnyExtension]:
        if not (isinstance(entry, type) and issubclass(entry, self.base)):
            raise TypeError(f"a {self.what} is a subclass of {self.base.__name__}, and {entry!r} isn't")
        return entry

    def parse(self, value: object) -> AnyExtension:
        """An instance from what a recipe gives. Raises ValueError, which is SettingError for a setting inside it."""
        if isinstance(value, self.base):
            return value
        settings = dict(value) if isinstance(value, Mapping) else {"name": value}
        name = settings.pop("name", None)
        if not isinstance(name, str):
            raise ValueError(f"must name a {self.what}: {', '.join(self)}")  # noqa: TRY004 - pydantic reports ValueError
        if name not in self:
            raise ValueError(f"there is no such {self.what}: {self.hint(name)}")
        return validated_settings(self.find(name), settings)

    def dump(self, extension: AnyExtension) -> JsonObject | str:
        """What `parse` takes: the name alone if there are no settings."""
        name = self.name_of(type(extension))
        settings = extension.model_dump(mode="json")
        return {"name": name, **settings} if settings else name

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """The schema of a field that is annotated with the registry."""
        return core_schema.no_info_plain_validator_function(
            self.parse, serialization=core_schema.plain_serializer_function_ser_schema(self.dump)
        )


def validated_settings(kind: type[AnyExtension], settings: Mapping[str, object]) -> AnyExtension:
    """An extension with these settings. Raises SettingError, which names the first wrong one."""
    try:
        return kind.model_validate(dict(settings))
    except ValidationError as error:
        mistake = error.errors()[0]
        where = tuple(str(part) for part in mistake["loc"])
        message = mistake["msg"].removeprefix("Value error, ")
        if mistake["type"] == "extra_forbidden":
            names = ", ".join(kind.model_fields) or "none"
            message = f"no such setting: {suggestion(where[-1], kind.model_fields, f'known are {names}')}"
        raise SettingError(where, message, mistake["input"]) from error


# ------------------------------------------------------------------------------------------------------- identity


def identity_of(entry: object) -> dict[str, object] | None:
    """What identifies an entry of a script in the keys of steps: its version, and a hash of its source.

    None for one of the package, which the versions of its steps cover. The hash is None if the source can't be read.
    """
    if _in_package(entry):
        return None
    source = source_of(entry)
    digest = None if source is None else hashlib.blake2b(source.encode(), digest_size=16).hexdigest()
    return {"version": getattr(entry, "version", 1), "source": digest}


def source_of(entry: object) -> str | None:
    """Source of a function or a class, or of an object's class, with base classes outside the package.

    None if it can't be read.
    """
    if inspect.isroutine(entry):
        return _source(entry)
    if not isinstance(entry, type):
        return source_of(type(entry))
    bases = [base for base in entry.__mro__ if not _in_package(base) and base.__module__ not in _FOUNDATIONS]
    sources = [_source(base) for base in bases]
    return None if None in sources else "\n".join(filter(None, sources))


_FOUNDATIONS = frozenset({"builtins", "abc", "typing", *(base.__module__ for base in BaseModel.__mro__)})
"""Modules of base classes that aren't an extension's own."""


def _source(entry: Callable[..., object]) -> str | None:
    try:
        return inspect.getsource(entry)
    except (OSError, TypeError):
        return _source_of_methods(entry) if isinstance(entry, type) else None


def _source_of_methods(kind: type) -> str | None:
    """Methods and constants of a class whose own source isn't known, as in a notebook; None if no method's is.

    Methods that a decorator generates have no source.
    """
    sources: list[str] = []
    own = (value for value in vars(kind).values() if getattr(value, "__module__", None) == kind.__module__)
    for method in filter(inspect.isfunction, own):
        with contextlib.suppress(OSError, TypeError):
            sources.append(inspect.getsource(method))
    constants = {name: value for name, value in vars(kind).items() if isinstance(value, str | int | float | tuple)}
    plain = {name: value for name, value in constants.items() if not name.startswith("__")}
    return "\n".join([*sources, repr(plain)]) if sources else None


def _in_package(entry: object) -> bool:
    module = str(getattr(entry, "__module__", type(entry).__module__))
    return module.partition(".")[0] == PACKAGE
