"""A profile that takes what it does not say from others, as far as that carries over to another device.

Shares of a peak, of a bandwidth or of a line rate carry over, and so do times (launches, latencies) and the sizes of
tiles. What a device has of its own does not (`is_own`): the file says it. Rates of a link that is like another one are
in proportion to their line rates. Each number that is taken says so in its source, and the ``spread`` of every kernel
family and link is widened by `FURTHER`, since none was measured on this machine.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import msgspec

from costmodel.errors import InputError
from costmodel.hardware.decode import converted, found_at
from costmodel.hardware.quantity import ALLOWED, Plain

Raw = dict[str, Any]
Die = Literal["same", "binned", "another"]
Generation = Literal["same", "another"]

#: The document of the profile of a name that the file has at a key.
Load = Callable[[str, str], Raw]

#: Rates of a link that are in proportion to its line rate. A collective copies its own part by as many channels as it
#: sends by, of which there are as many as there are lanes.
IN_PROPORTION = ("bytes_per_s", "own_bytes_per_s", "switch_bytes_per_s", "shared_bytes_per_s", "uplink_bytes_per_s")

#: By how much kernels and messages may take longer or shorter than the other machine's ranges say: what it takes for
#: nine in ten published runs of a device that is predicted from another's profile (python -m calibrate.other_devices).
#: Of the same die all 34 runs are inside as it is; 5 % are for what so few do not say.
FURTHER = {"same die": 1.05, "binned die": 1.62, "another die": 1.76, "same generation": 1.3, "another generation": 1.9}


class Like(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a device's numbers are from.

    ``profile``: a built-in one by name, or a file by its path from this one's folder.
    ``die``: ``"same"`` if its device has as many multiprocessors of the same die, clocked and powered alike;
    ``"binned"`` if it has more or fewer of them, or other limits; else ``"another"``.
    """

    profile: str
    die: Die


class LikeLink(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a link's numbers are from.

    ``profile``: as of `Like`; ``link``: the name that it has there; ``generation``: whether it is of the same one,
    perhaps with more or fewer lanes, or of another.
    """

    profile: str
    link: str
    generation: Generation


class _Heading(msgspec.Struct, frozen=True):
    like: Like


class _LinkHeading(msgspec.Struct, frozen=True):
    like: LikeLink | None = None


class _LinkHeadings(msgspec.Struct, frozen=True):
    links: tuple[_LinkHeading, ...] = ()


def is_own(key: str) -> bool:
    """Whether a file has to say a number itself where the profile that it is like says it.

    These are the device's rates, the sizes of its memory and cache, and how many tiles it works on at a time.
    """
    return key.endswith("_per_s") or key in ("memory_bytes", "cache_bytes", "fill")


def completed(raw: Raw, file: str, load: Load) -> Raw:
    """The document of a profile with what it takes from others.

    Args:
        raw: as the file says it.
        file: only for messages.

    Raises:
        InputError: for numbers that do not carry over and that the file does not say, and for a link that is like none.
    """
    found, correlations = dict(raw), list[Raw]()
    if "like" in raw:
        like = converted({"like": raw["like"]}, _Heading, file).like
        parent = load(like.profile, "like.profile")
        found = _merged(_device(raw, parent, like, file), raw)
        correlations += _correlations(parent, "device", "device", raw)
    for number, heading in enumerate(converted({"links": raw.get("links", [])}, _LinkHeadings, file).links):
        if heading.like:
            parent = load(heading.like.profile, f"links[{number}].like.profile")
            link, place = _link(raw["links"][number], parent, heading.like, f"{file}: links[{number}]")
            found["links"] = [*found["links"][:number], link, *found["links"][number + 1 :]]
            correlations += _correlations(parent, f"links[{place}]", f"links[{number}]", raw)
    own = raw.get("correlations", [])
    return found | {"correlations": [*own, *correlations]} if isinstance(own, list) else found


def _device(raw: Raw, parent: Raw, like: Like, file: str) -> Raw:
    """What a document takes from the profile that its device is like."""
    missing = [path for path in _own(parent["device"], "device") if found_at(raw, path) is None]
    missing += [] if "links" in raw else ["links"]
    if missing:
        rule = f"it does not carry over from {parent['name']} and must be given"
        more = f"so must {', '.join(missing[1:])}" if missing[1:] else None
        raise InputError(f"{file}: {missing[0]}", Plain("no value"), rule, more)
    parts = {"device": _carried(parent["device"]), "host": parent["host"], "composition": parent["composition"]}
    taken: Raw = {part: _taken(held, parent["name"]) for part, held in parts.items() if held}
    del taken["device"]["name"]
    for kernels in (taken["device"]["kernels"], taken["device"]["single"]):
        for kernel in kernels.values():
            kernel["spread"] = _wider(kernel.get("spread"), parent["name"], f"{like.die} die")
    return taken


def _own(noun: Raw, path: str) -> Iterator[str]:
    """Where a device has what others have to say themselves."""
    for key, child in noun.items():
        if is_own(key) and child is not None:
            yield f"{path}.{key}"
        elif isinstance(child, dict):
            yield from _own(child, f"{path}.{key}")


def _carried(noun: Any) -> Any:
    """What of a device carries over."""
    if not isinstance(noun, dict):
        return noun
    return {key: _carried(child) for key, child in noun.items() if not is_own(key)}


def _link(link: Raw, parent: Raw, like: LikeLink, where: str) -> tuple[Raw, int]:
    """A link with what it takes from another, and the place of that one among its profile's."""
    names = [held["name"] for held in parent["links"]]
    if like.link not in names:
        close = difflib.get_close_matches(like.link, names, n=1, cutoff=0.5)
        rule = f"must be the name of a link of {parent['name']}: {', '.join(names)}"
        raise InputError(f"{where}.like.link", like.link, rule, f"did you mean {close[0]!r}?" if close else None)
    place = names.index(like.link)
    rate = found_at(link, "peak_bytes_per_s.value")
    number = isinstance(rate, int | float) and not isinstance(rate, bool)
    fault = ALLOWED["peak_bytes_per_s"].fault(rate) if number else "must be a number of bytes/s"
    if fault:
        shown = Plain(f"{rate:g}" if number else "what is there")
        raise InputError(f"{where}.peak_bytes_per_s.value", shown, f"{fault}; the link's rates are in proportion to it")
    held: Raw = _taken(parent["links"][place], parent["name"])
    ratio = rate / held["peak_bytes_per_s"]["value"]
    for table, keys in ((held, IN_PROPORTION), (held["collectives"], list(held["collectives"]))):
        table |= {key: _times(table[key], ratio) for key in keys if key in table}
    held["spread"] = _wider(held.get("spread"), parent["name"], f"{like.generation} generation")
    return _merged(held, {key: child for key, child in link.items() if key != "like"}), place


# Numbers ------------------------------------------------------------------------------------------------------------


def _is_quantity(noun: Any) -> bool:
    return isinstance(noun, dict) and "source" in noun


def _taken(noun: Any, name: str) -> Any:
    """A part of a profile, each number with where it is from."""
    if _is_quantity(noun):
        kind = "assumed" if noun["kind"] == "assumed" else "derived"
        return noun | {"kind": kind, "source": f"as {name}: {noun['source']}"}
    if not isinstance(noun, dict):
        return noun
    return {key: _taken(child, name) for key, child in noun.items() if child is not None}


def _times(number: Raw, ratio: float) -> Raw:
    ends = {end: number[end] * ratio for end in ("value", "low", "high") if number.get(end) is not None}
    told = f"the same share of the line rate (x {ratio:.4g}), " if ratio != 1 else ""
    return number | ends | {"source": told + number["source"]}


def _wider(spread: Raw | None, name: str, what: str) -> Raw:
    """A factor on times whose range holds that the machine is another one."""
    held = spread or {"value": 1.0, "source": f"as {name}, which says none"}
    value, further = held["value"], math.log(FURTHER[what])
    low, high = (math.hypot(math.log((held.get(end) or value) / value), further) for end in ("low", "high"))
    told = f"widened by {FURTHER[what]:g}, as it is another machine ({what}): python -m calibrate.other_devices"
    ends = {"low": value * math.exp(-low), "high": value * math.exp(high)}
    return {"value": value, **ends, "kind": "derived", "source": f"{told}; {held['source']}"}


def _merged(base: Any, over: Any) -> Any:
    """A table with the keys of another in place of its own; numbers are replaced as a whole."""
    if not isinstance(base, dict) or not isinstance(over, dict) or _is_quantity(base):
        return over
    return base | {key: _merged(base.get(key), child) for key, child in over.items()}


def _correlations(parent: Raw, there: str, here: str, raw: Mapping[str, Any]) -> Iterator[Raw]:
    """Correlations of what is taken from a part of a profile and not said by the file."""
    for correlation in parent["correlations"]:
        named = [(row, key) for row, key in enumerate(correlation["of"]) if key.startswith(f"{there}.")]
        keys = {row: here + key.removeprefix(there) for row, key in named}
        kept = {row: key for row, key in keys.items() if found_at(raw, key) is None}
        if len(kept) > 1:
            matrix = [[correlation["matrix"][row][column] for column in kept] for row in kept]
            yield {"of": list(kept.values()), "matrix": matrix}
