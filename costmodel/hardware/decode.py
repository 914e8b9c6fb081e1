"""From the bytes of a TOML file to a checked struct; every fault is an `InputError` that names the key."""

from __future__ import annotations

import difflib
import re
import tomllib
from typing import Any, Literal, TypeVar, get_args, get_origin

import msgspec

from costmodel.errors import InputError
from costmodel.hardware.quantity import ALLOWED, Allowed, Plain, Quantity

S = TypeVar("S", bound=msgspec.Struct)

MAX_BYTES = 1_000_000
"""Size above which a file is not taken for a profile."""


def read_bytes(path: str) -> bytes:
    """Content of a file; raises `InputError` if it cannot be read or is larger than `MAX_BYTES`."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError("hardware profile", path, f"cannot be read: {reason.lower()}") from None
    if len(data) > MAX_BYTES:
        raise InputError("hardware profile", path, f"is larger than {MAX_BYTES:,} bytes")
    return data


def parsed(data: bytes, file: str) -> dict[str, Any]:
    """TOML as plain dicts and lists; raises `InputError` for bytes that are not UTF-8 and text that is not TOML."""
    try:
        return tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(file, Plain(f"byte {error.start}"), "the file must be UTF-8 text") from None
    except RecursionError:
        raise InputError(file, Plain("the text"), "is nested too deeply to be a profile") from None
    except ValueError as error:  # TOMLDecodeError, and integers of thousands of digits
        raise InputError(file, Plain("the text"), f"must be TOML: {str(error).partition(';')[0]}") from None


def converted(raw: dict[str, Any], kind: type[S], file: str) -> S:
    """Plain dicts and lists as a ``kind``; ``file`` is only for the messages.

    Raises `InputError` for keys that are unknown, missing, of the wrong type or out of range.
    """
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise _explain(error, raw, kind, file) from None


def _explain(error: Exception, raw: object, kind: type[msgspec.Struct], file: str) -> InputError:
    """Reword a msgspec error: file and key first, then what is allowed and the nearest valid key."""
    message, _, where = str(error).partition(" - at `$")
    path = _named(where.rstrip("`").lstrip("."), raw, kind)
    cause = error.__cause__
    if isinstance(cause, InputError):
        field = _join(path, cause.field)
        return InputError(f"{file}: {field}", _shown(cause.value), cause.rule, cause.remedy)
    name = re.search(r"field `(.*)`", message)
    if name and "unknown" in message:
        return _unknown_key(file, path, name[1], raw, _fields(kind, path))
    if name:
        field = _join(path, name[1])
        return InputError(f"{file}: {field}", Plain("no value"), "this key is required", _wanted(field))
    value = _shown(found_at(raw, path, Plain("what is there")))
    rule = _type_rule(message, path, _choices(kind, path))
    return InputError(f"{file}: {path or 'top level'}", value, rule, _wanted(path))


def _named(path: str, raw: Any, kind: type[msgspec.Struct]) -> str:
    """The path with the key of the free-form table that it passes, which msgspec leaves out: the first with a fault."""
    table, free, below = path.partition("[...]")
    for name in found_at(raw, table) if free else ():
        try:
            msgspec.convert(_with_only(raw, table.split("."), name), kind)
        except msgspec.ValidationError:
            return f"{table}.{name}{below}"
    return path


def _with_only(raw: Any, parts: list[str], name: str) -> dict[str, Any]:
    """The document with but one of the keys of a table."""
    if not parts:
        return {name: raw[name]}
    found: dict[str, Any] = raw | {parts[0]: _with_only(raw[parts[0]], parts[1:], name)}
    return found


def _unknown_key(file: str, path: str, key: str, raw: object, known: list[str]) -> InputError:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    field = _join(path, key)
    table = found_at(raw, path)
    value = _shown(table.get(key)) if isinstance(table, dict) else Plain("it")
    hint = f"did you mean {close[0]!r}?" if close else None
    rule = f"there is no such key; known here: {', '.join(known)}"
    return InputError(f"{file}: {field}", value, rule, hint)


def _choices(kind: Any, path: str) -> tuple[object, ...]:
    """Values that may stand at ``path`` below ``kind``, if they are few."""
    above, _, last = path.rpartition(".")
    fields = msgspec.structs.fields(_struct_at(kind, above))
    found = next((field.type for field in fields if field.encode_name == last), None)
    return get_args(found) if get_origin(found) is Literal else ()


def _type_rule(message: str, path: str, choices: tuple[object, ...]) -> str:
    """The rule behind ``Expected `x`, got `y``` or ``Invalid enum value``."""
    if path == "schema":
        return "must be 1, the only schema there is"
    if choices:
        return f"must be one of {', '.join(map(str, choices))}"
    found = re.match(r"Expected `([^`|]*)", message)
    expected = found[1].strip() if found else "float"  # else "Number out of range"
    if expected == "float":
        allowed = _allowed(path)
        return f"must be a number of {allowed.unit}" if allowed else "must be a number"
    words = {"str": "text", "int": "a whole number", "bool": "true or false", "object": "a table"}
    words["array"] = "an array of tables"
    return f"must be {words.get(expected, expected)}"


def _allowed(path: str) -> Allowed | None:
    """Unit and range for a path such as ``device.launch_s.value`` or ``device.launch_s``, else None."""
    parts = path.split(".")
    key = parts[-2] if len(parts) > 1 and parts[-1] in Quantity.__struct_fields__ else parts[-1]
    return ALLOWED.get(key)


def _wanted(path: str) -> str | None:
    """An example of what to write at a path that holds a `Quantity` or one of its numbers."""
    allowed = _allowed(path)
    if allowed is None:
        return None
    if path.rpartition(".")[2] in ALLOWED:
        return f'write {{ value = {allowed.example}, source = "...", kind = "cited" }} in {allowed.unit}'
    return f"for example {allowed.example}" if path.rpartition(".")[2] in ("value", "low", "high") else None


def _struct_at(kind: Any, path: str) -> Any:
    """The struct class at ``path`` below ``kind``."""
    free = False
    for part in _parts(path):
        if not (free or part.isdigit()):
            field = next(f for f in msgspec.structs.fields(kind) if f.encode_name == part)
            kind, free = _struct_in(field.type), get_origin(field.type) is dict
        else:
            free = False
    return kind


def _fields(kind: Any, path: str) -> list[str]:
    """Keys that are valid at ``path`` below ``kind``."""
    return [f.encode_name for f in msgspec.structs.fields(_struct_at(kind, path))]


def _parts(path: str) -> list[str]:
    """``links[0].name`` -> ``["links", "0", "name"]``."""
    return re.findall(r"[^.\[\]]+", path)


def _struct_in(annotation: Any) -> Any:
    """The struct class in ``X``, ``X | None``, ``tuple[X, ...]`` or ``dict[str, X]``."""
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return annotation
    return next(a for a in annotation.__args__ if isinstance(a, type) and issubclass(a, msgspec.Struct))


def found_at(raw: Any, path: str, otherwise: object = None) -> Any:
    """The value at a path such as ``links[0].devices`` in plain dicts and lists."""
    for part in _parts(path):
        try:
            raw = raw[int(part)] if isinstance(raw, list) else raw[part]
        except (KeyError, IndexError, TypeError, ValueError):
            return otherwise
    return raw


def _shown(value: object) -> object:
    """``value`` short enough for one line of a message."""
    if isinstance(value, dict):
        return Plain("a table")
    if isinstance(value, list):
        return Plain("an array")
    if isinstance(value, bool):
        return Plain(str(value).lower())
    if isinstance(value, Plain):
        return value
    text = str(value)
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return text if isinstance(value, str) else Plain(text)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
