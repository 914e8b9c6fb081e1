"""A profile's file with fitted numbers in place of others; comments and everything else stay as they were."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import msgspec
import numpy as np

from calibrate.cases import case, program
from calibrate.fitted import Fit
from calibrate.measurement import Measurement
from calibrate.profile_numbers import HALF_90, START, limits
from costmodel.errors import InputError
from costmodel.hardware.decode import parsed, read_bytes
from costmodel.hardware.profile import Correlation, Measured, Profile, load_profile, look_up, read_profile
from costmodel.hardware.quantity import ALLOWED, Kind, Plain, Quantity
from costmodel.ops.communication import Communication
from costmodel.ops.primitive import Reading
from costmodel.program import Leaf, operations

#: Significant digits of what is written.
DIGITS = 4

Written = Quantity | Measured


@dataclass(frozen=True)
class Changes:
    """What a fit says of a profile: numbers by their keys (``None``: there is none), and their correlations."""

    numbers: Mapping[str, Written | None]
    correlations: tuple[Correlation, ...]


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def changes(fits: Sequence[Fit], command: str, date: str, kind: Kind = "cited") -> Changes:
    """What fits say of their profile.

    Args:
        kind: ``"measured"`` for runs of one's own.
    """
    numbers: dict[str, Written | None] = {}
    correlations = []
    for fit in fits:
        source = _source(fit, command, date, kind)
        numbers |= dict.fromkeys(fit.rejected)
        for key in fit.unidentified:
            held = look_up(fit.profile, key)
            if isinstance(held, Quantity) and held.source == START and held.low is not None:
                numbers[key] = held
        for key, value in fit.values.items():
            numbers[key] = _number(fit, key, value, source, kind)
        numbers |= _spread(fit, source, kind)
        if len(fit.keys) > 1:
            correlations.append(_correlation(fit))
    return Changes(numbers, tuple(correlations))


def _source(fit: Fit, command: str, date: str, kind: Kind) -> str:
    sources = ", ".join(re.sub(r", submission \d+", "", source) for source in fit.offsets)
    names = ", ".join(dict.fromkeys(sources.split(", ")))
    whose = "" if kind == "measured" else "published "
    return f"fit to {len(fit.measurements)} {whose}runs ({names}), {command}, {date}"


def _number(fit: Fit, key: str, value: float, source: str, kind: Kind) -> Quantity:
    low, high = limits(fit.profile, key)
    factor = np.exp(HALF_90 * fit.error(key))
    ends = max(low, _rounded(value / factor)), min(high, _rounded(value * factor))
    held = _rounded(value)
    return Quantity(held, source, kind, low=min(ends[0], held), high=max(ends[1], held))


def _spread(fit: Fit, source: str, kind: Kind) -> dict[str, Written]:
    """What remains between sources and runs, and the sizes that were measured, of each family with measurements."""
    deviation = float(np.hypot(fit.variances.between, fit.variances.within))
    factor = min(_rounded(np.exp(HALF_90 * deviation)), ALLOWED["spread"].high)
    told = f"{fit.variances.between:.1%} between sources and {fit.variances.within:.1%} between runs; {source}"
    number = Quantity(1.0, told, kind, low=_rounded(1 / factor), high=factor)
    found: dict[str, Written] = {}
    for family in fit.block.families:
        whole = family.startswith(("links", "device."))
        rows = [row for row in fit.measurements if whole or case(row).family == family]
        if rows:
            path = family if whole else f"device.kernels.{family}"
            found |= {f"{path}.spread": number, f"{path}.measured": _measured(rows, fit.profile, family)}
    return found


def _measured(rows: Sequence[Measurement], profile: Profile, family: str) -> Measured:
    flop, moved = [], []
    for row in rows:
        run = program(row, profile.device.attention_tile)
        for operation, _ in (*operations(run.forward), *operations(run.backward)):
            if isinstance(operation, Leaf) and isinstance(operation.primitive, Communication):
                moved.append(float(operation.primitive.wire_bytes(operation.inputs)))
            elif family in (operation.family, f"device.single.{operation.kernel[1]}"):
                flop.append(float(operation.flops(Reading.EXECUTED).get("contraction", 0)))
                moved.append(float(sum(operation.traffic())))
    worked = (_rounded(min(flop)), _rounded(max(flop))) if flop and max(flop) > 0 else None
    return Measured(worked, (_rounded(min(moved)), _rounded(max(moved))))


def _correlation(fit: Fit) -> Correlation:
    size = len(fit.keys)
    covariance = fit.covariance[:size, :size]
    deviations = np.sqrt(np.diag(covariance))
    matrix = np.round(covariance / np.outer(deviations, deviations), 3)
    np.fill_diagonal(matrix, 1.0)
    return Correlation(fit.keys, tuple(tuple(float(number) for number in row) for row in matrix))


# Files --------------------------------------------------------------------------------------------------------------

_HEADER = re.compile(r"\[{1,2}([A-Za-z0-9_.]+)\]{1,2}")


def _parts(text: str) -> list[tuple[str, str]]:
    """The text before the first table, then each table with the comments above it; keys as in a `Profile`."""
    found: list[tuple[str, list[str]]] = [("", [])]
    link = -1
    for line in text.splitlines(keepends=True):
        header = _HEADER.fullmatch(line.strip())
        if header:
            link += line.startswith("[[links")
            path = re.sub(r"^links", f"links[{link}]", header[1])
            comments = []
            while found[-1][1] and found[-1][1][-1].startswith("#"):
                comments.insert(0, found[-1][1].pop())
            found.append((path, comments))
        found[-1][1].append(line)
    return [(path, "".join(lines)) for path, lines in found]


def rewritten(text: str, made: Changes) -> str:
    """The text of a profile's file with what a fit says; the profile is then calibrated."""
    parts = [
        (path, part)
        for path, part in _parts(text)
        if path != "correlations" or not any(f'"{key}"' in part for key in made.numbers)
    ]
    for path, written in made.numbers.items():
        places = [number for number, (held, _) in enumerate(parts) if held == path]
        if written is None:
            parts = [(held, part) for held, part in parts if held != path]
        elif places:
            comments = "".join(line for line in parts[places[0]][1].splitlines(True) if line.startswith("#"))
            parts[places[0]] = (path, comments + _table(path, written))
        else:
            parts.insert(_place(parts, path), (path, _table(path, written)))
    parts += [("correlations", _correlations(correlation)) for correlation in made.correlations]
    written = "".join(part for _, part in parts).replace("calibrated = false", "calibrated = true", 1)
    return written.rstrip("\n") + "\n"


def plain(text: str) -> str:
    """The text of a profile's file without what was measured of single kernels, of what remains between runs, and of
    numbers that were fitted together: another machine's own.
    """
    return "".join(part for path, part in _parts(text) if not _is_own(path))


def _is_own(path: str) -> bool:
    return path == "correlations" or path.startswith("device.single.") or path.endswith((".spread", ".measured"))


def _place(parts: Sequence[tuple[str, str]], path: str) -> int:
    """Behind its siblings, or behind what belongs to the nearest table above it."""
    parent = path.rpartition(".")[0]
    siblings = [number for number, (held, _) in enumerate(parts) if held.rpartition(".")[0] == parent]
    if siblings:
        return siblings[-1] + 1
    while parent:
        inside = [n for n, (held, _) in enumerate(parts) if held == parent or held.startswith(f"{parent}.")]
        if inside:
            return inside[-1] + 1
        parent = parent.rpartition(".")[0]
    return len(parts)


def _table(path: str, written: Written) -> str:
    header = re.sub(r"\[\d+\]", "", path)
    lines = [f"[{header}]"]
    if isinstance(written, Measured):
        pairs = {"flop": written.flop, "bytes": written.bytes}
        lines += [f"{name} = [{ends[0]!r}, {ends[1]!r}]" for name, ends in pairs.items() if ends]
        return "\n".join(lines) + "\n\n"
    ends = {"value": written.value, "low": written.low, "high": written.high}
    lines += [f"{name} = {number!r}" for name, number in ends.items() if number is not None]
    wrapped = textwrap.wrap(written.source, 104, break_long_words=False, break_on_hyphens=False)
    lines += [f'kind = "{written.kind}"', 'source = """\\', *(f"{line} \\" for line in wrapped[:-1])]
    return "\n".join(lines) + f'\n{wrapped[-1]}"""\n\n'


def _correlations(correlation: Correlation) -> str:
    keys = "".join(f'    "{key}",\n' for key in correlation.of)
    rows = "".join(f"    [{', '.join(map(repr, row))}],\n" for row in correlation.matrix)
    return f"[[correlations]]\nof = [\n{keys}]\nmatrix = [\n{rows}]\n\n"


def read(text: str, file: str) -> Profile:
    """A profile as it would be loaded.

    Raises:
        InputError: for what is no profile.
    """
    return read_profile(text.encode(), file)


def profile_text(name_or_path: str) -> tuple[str, str]:
    """The text of a built-in profile or of a user's file, and the file's name.

    What a profile takes from others is written out, so that a fit can put other numbers in its place or none.

    Raises:
        UnknownNameError: for a name that is not built in.
        InputError: for a file that cannot be read.
    """
    text, name = _file_text(name_or_path)
    raw = parsed(text.encode(), name)
    heads = [raw, *(link for link in raw.get("links", ()) if isinstance(link, dict))]
    return (written_out(read(text, name)), name) if any("like" in head for head in heads) else (text, name)


def _file_text(name_or_path: str) -> tuple[str, str]:
    if not name_or_path.endswith(".toml"):
        load_profile(name_or_path)
        file = resources.files("costmodel.hardware") / "profiles" / f"{name_or_path}.toml"
        return file.read_text(encoding="utf-8"), file.name
    try:
        return read_bytes(name_or_path).decode("utf-8"), name_or_path
    except UnicodeDecodeError as error:
        raise InputError(name_or_path, Plain(f"byte {error.start}"), "the file must be UTF-8 text") from None


def written_out(profile: Profile) -> str:
    """The text of a profile with every number, whatever file it is from."""
    whole: dict[str, Any] = msgspec.to_builtins(profile)
    text = "".join(_tables({key: child for key, child in whole.items() if key != "like"}, ""))
    return text.rstrip("\n") + "\n"


def _tables(noun: Mapping[str, Any], path: str) -> Iterator[str]:
    """A table of plain values, then each table below it."""
    said = {key: child for key, child in noun.items() if child is not None and child != {}}
    nested = {key: child for key, child in said.items() if isinstance(child, dict) or _is_tables(child)}
    plain = [f"{key} = {json.dumps(child)}\n" for key, child in said.items() if key not in nested]
    if plain:
        yield (f"[{path}]\n" if path else "") + "".join(plain) + "\n"
    for key, child in nested.items():
        below = f"{path}.{key}" if path else key
        if isinstance(child, dict) and "source" in child:
            yield _table(below, msgspec.convert(child, Quantity))
        elif isinstance(child, dict):
            yield from _tables(child, below)
        else:
            for one in child:
                first, *rest = _tables(one, below)
                yield from (first.replace(f"[{below}]", f"[[{below}]]", 1), *rest)


def _is_tables(child: object) -> bool:
    return isinstance(child, list | tuple) and len(child) > 0 and isinstance(child[0], dict)
