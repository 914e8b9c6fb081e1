"""Finding mixers and strategies: the package's own, those of entry points, and a user's file."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Iterator
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Generic, TypeVar

from costmodel.errors import InputError, UnknownNameError

T = TypeVar("T")

#: Between the names of several things that are one together.
JOIN = "+"


class Registry(Generic[T]):
    """Named things of one kind, one file each.

    A module of the package that defines instances of ``base`` adds them by being there. Other packages name theirs in
    the entry-point group of that package's name; a user names one as ``path/to/file.py:NAME``. Several names with a
    ``+`` between them are one thing, which the function ``joined`` (``module:function``, of a tuple of them) makes.

    Raises (when asked for a name):
        UnknownNameError: for a name that nothing has.
        InputError: for a file that is not there, does not load, or does not hold such a thing.
    """

    def __init__(self, kind: str, package: str, base: type[T], joined: str) -> None:
        self.kind, self._package, self._base, self._joined = kind, package, base, joined
        self._load = cache(self._load_all)

    def names(self) -> list[str]:
        """Every known name, sorted."""
        return sorted(self._load())

    def get(self, name: str) -> T:
        """The thing of that name."""
        parts = name.split(JOIN)
        if len(parts) > 1 and not Path(name.rpartition(":")[0]).is_file():
            module, _, function = self._joined.partition(":")
            joined: T = getattr(importlib.import_module(module), function)(tuple(map(self.get, parts)))
            return joined
        if ".py:" in name:
            return self._from_file(name)
        if name.endswith(".py"):
            raise InputError(f"--{self.kind}", name, "must be a file and a name in it", f"give {name}:NAME")
        own = self._in_its_own_module(name)
        if own is not None:
            return own
        known = self._load()
        if name not in known:
            raise UnknownNameError(self.kind, name, known)
        return known[name]

    def _in_its_own_module(self, name: str) -> T | None:
        """The thing in the module of its name, if there is one: without importing all others."""
        module = f"{self._package}.{name.replace('-', '_')}"
        if not name.replace("-", "_").isidentifier() or importlib.util.find_spec(module) is None:
            return None
        things = self._instances(importlib.import_module(module))
        return next((thing for thing in things if getattr(thing, "name", None) == name), None)

    def _load_all(self) -> dict[str, T]:
        found: dict[str, T] = {}
        for thing in [*self._built_in(), *self._entry_points()]:
            name: str = getattr(thing, "name")  # noqa: B009 - T is any named thing
            if name in found and found[name] is not thing:
                raise ValueError(f"two {self.kind}s are named '{name}'")
            found[name] = thing
        return found

    def _built_in(self) -> Iterator[T]:
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__):
            yield from self._instances(importlib.import_module(f"{self._package}.{module.name}"))

    def _entry_points(self) -> Iterator[T]:
        for entry in entry_points(group=self._package):
            yield entry.load()

    def _instances(self, module: ModuleType) -> list[T]:
        return [value for value in vars(module).values() if isinstance(value, self._base)]

    def _from_file(self, reference: str) -> T:
        module, attribute = load_file(f"--{self.kind}", reference)
        thing = getattr(module, attribute, None)
        if isinstance(thing, type) and issubclass(thing, self._base):
            thing = thing()
        if not isinstance(thing, self._base):
            held = [name for name, value in vars(module).items() if isinstance(value, self._base)]
            raise InputError(
                f"--{self.kind}", reference, f"'{attribute}' is no {self._base.__name__}", f"the file has: {held}"
            )
        return thing


def load_file(field: str, reference: str) -> tuple[ModuleType, str]:
    """The module of ``path/to/file.py:NAME``, and the name.

    Raises:
        InputError: for a file that is not there or does not load.
    """
    path, _, attribute = reference.rpartition(":")
    if not Path(path).is_file():
        raise InputError(field, reference, "there is no such file", f"give {field.lstrip('-')} as file.py:NAME")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None and spec.loader is not None  # a .py file always has a loader
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(field, reference, f"the file does not load: {error!r}") from error
    return module, attribute
