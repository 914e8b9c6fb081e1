"""Human units, in and out. Inside the package every quantity is in SI base units; prefixes exist only here.

Reading is strict, because a wrong prefix is a wrong answer: ``M`` is 1e6 and ``Mi`` is 2**20, ``GB`` is 1e9
bytes and ``GiB`` is 2**30, case matters, and what is not understood raises ``InputError``. Printing rounds to
three significant digits or a little finer.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from costmodel.errors import InputError

MAX_COUNT = 2**40
MAX_BYTES = 2**60
MAX_SECONDS = 10**12

_NUMBER = r"[+-]?(?:[0-9]+(?:_[0-9]+)*(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_QUANTITY = re.compile(rf"({_NUMBER})\s*([A-Za-zµμ]*)")
_LONGEST_TEXT = 256


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of quantity as people write it.

    ``units`` gives the size of each suffix in the base unit; ``least`` and ``most`` are the inclusive bounds,
    each as text and as a number.
    """

    units: Mapping[str, int | Fraction]
    least: tuple[str, int]
    most: tuple[str, int]
    example: str

    def read(self, text: str, field: str) -> Fraction:
        """The exact value of ``text`` in the base unit."""
        match = _QUANTITY.fullmatch(text.strip()) if len(text) <= _LONGEST_TEXT else None
        if match is None:
            rule = f"must be a number, alone or followed by one of {self._names()}"
            raise InputError(field, text, rule, f"for example {self.example}")
        number, unit = match[1], match[2].replace("µ", "u").replace("μ", "u")  # micro sign and Greek mu
        if unit not in self.units:
            rule = f"'{unit}' is not one of {self._names()}"
            raise InputError(field, text, rule, self._remedy(number, unit))
        value = _exact(number) * self.units[unit]
        if not self.least[1] <= value <= self.most[1]:
            nearest, _ = self.least if value < self.least[1] else self.most
            rule = f"must be between {self.least[0]} and {self.most[0]}"
            raise InputError(field, text, rule, f"the nearest is {nearest}")
        return value

    def read_whole(self, text: str, field: str) -> int:
        """The exact value of ``text``, which must be a whole number of base units."""
        value = self.read(text, field)
        if value.denominator != 1:
            below = math.floor(value)
            raise InputError(field, text, "must be a whole number", f"try {below} or {below + 1}")
        return int(value)

    def _names(self) -> str:
        return ", ".join(filter(None, self.units))

    def _remedy(self, number: str, unit: str) -> str:
        same_letters = [known for known in self.units if known.lower() == unit.lower()]
        close = same_letters or difflib.get_close_matches(unit, self.units, n=1, cutoff=0.4)
        return f"did you mean {number}{close[0]}?" if close else f"for example {self.example}"


def _exact(number: str) -> Fraction:
    """The exact value, or for numbers far beyond every bound one that is beyond every bound as well.

    The exact value of "1e-999999999" would have a billion digits.
    """
    rough = float(number)
    if 1e-300 < abs(rough) < 1e300:
        return Fraction(number)
    return Fraction(min(max(rough, -1e300), 1e300))


_DECIMAL = {"k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18}
_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60}

_COUNT = _Kind(
    {"": 1} | {prefix: size for prefix, size in (_DECIMAL | _BINARY).items() if size <= MAX_COUNT},
    least=("1", 1),
    most=("1Ti", MAX_COUNT),
    example="128k or 1Mi",
)
_BYTES = _Kind(
    {"": 1, "B": 1} | {f"{prefix}B": size for prefix, size in (_DECIMAL | _BINARY).items()},
    least=("1B", 1),
    most=("1EiB", MAX_BYTES),
    example="40GB or 24GiB",
)
_SECONDS = _Kind(
    {
        "": 1,
        "ns": Fraction(1, 10**9),
        "us": Fraction(1, 10**6),
        "ms": Fraction(1, 10**3),
        "s": 1,
        "m": 60,
        "min": 60,
        "h": 3600,
        "d": 86400,
    },
    least=("0s", 0),
    most=("1e12s", MAX_SECONDS),
    example="2.3s, 15ms or 4min 12s",
)


def parse_count(text: str, field: str = "count") -> int:
    """Read a whole number of things (tokens, heads, devices) between 1 and ``MAX_COUNT``, 1Ti.

    The suffixes k, M, G, T are powers of 1000; Ki, Mi, Gi, Ti are powers of 1024.

    >>> [parse_count(text) for text in ("128k", "1Mi", "1.5k", "1e6", "1_048_576")]
    [128000, 1048576, 1500, 1000000, 1048576]
    >>> parse_count("12K", field="--seq")
    Traceback (most recent call last):
    costmodel.errors.InputError: --seq: '12K' is not valid:
        'K' is not one of k, M, G, T, Ki, Mi, Gi, Ti; did you mean 12k?
    >>> parse_count("1.5", field="--seq")
    Traceback (most recent call last):
    costmodel.errors.InputError: --seq: '1.5' is not valid: must be a whole number; try 1 or 2
    """
    return _COUNT.read_whole(text, field)


def parse_counts(text: str, field: str = "counts") -> list[int]:
    """Read several counts: a list with commas, a range that doubles from its start up to its end, or both.

    >>> parse_counts("1k,4k,64k")
    [1000, 4000, 64000]
    >>> parse_counts("1Ki:16Ki")
    [1024, 2048, 4096, 8192, 16384]

    No value goes beyond the end, so it is among them only where doubling reaches it:

    >>> parse_counts("3:20")
    [3, 6, 12]
    """
    return [count for part in text.split(",") for count in _doubling(part, field)]


def _doubling(text: str, field: str) -> list[int]:
    ends = [parse_count(end, field) for end in text.split(":")]
    if len(ends) > 2:
        rule = "a range has one start and one end"
        raise InputError(field, text, rule, f"try {format_count(ends[0])}:{format_count(ends[-1])}")
    start, end = ends[0], ends[-1]
    if start > end:
        rule = "a range doubles from its start up to its end"
        raise InputError(field, text, rule, "try " + ":".join(reversed(text.split(":"))))
    return [start << doublings for doublings in range((end // start).bit_length())]


def parse_bytes(text: str, field: str = "bytes") -> int:
    """Read a whole number of bytes between 1 and ``MAX_BYTES``, 1 EiB.

    The suffixes kB to EB are powers of 1000, KiB to EiB are powers of 1024; B or none is bytes.

    >>> [parse_bytes(text) for text in ("40GB", "24 GiB", "80e9")]
    [40000000000, 25769803776, 80000000000]
    """
    return _BYTES.read_whole(text, field)


def parse_seconds(text: str, field: str = "seconds") -> float:
    """Read a time between 0 and ``MAX_SECONDS``, 1e12 s, as one number with its unit or a sum of several.

    The units are ns, us, ms, s, min (or m), h and d; none is seconds.

    >>> [parse_seconds(text) for text in ("2.3 s", "15ms", "3 us", "0.5", "4 min 12 s", "5m")]
    [2.3, 0.015, 3e-06, 0.5, 252.0, 300.0]
    """
    terms = re.split(r"(?<=[A-Za-z])\s+(?=[0-9.])", text.strip())
    return float(sum(_SECONDS.read(term, field) for term in terms))


_PREFIXES = dict(zip(range(-9, 33, 3), ("n", "u", "m", "", *"kMGTPEZYRQ"), strict=True))


def _three_digits(value: float, powers: range, least_decimals: int = 0) -> tuple[str, str]:
    """``value`` with three significant digits or more, and its prefix: 13900 gives "13.9" and "k".

    ``powers`` are the powers of ten that may be taken out. What rounds to 1000 takes the next prefix.
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}", ""
    power = int(f"{value:.2e}".split("e")[1])
    prefix_power = min(max(power - power % 3, powers[0]), powers[-1])
    decimals = max(least_decimals, 2 - (power - prefix_power))
    return f"{value / 10.0**prefix_power:.{decimals}f}", _PREFIXES[prefix_power]


def _whole_or_three_digits(value: float, unit: str, least_decimals: int = 0) -> str:
    if abs(value) < 1000 and value == int(value):
        return f"{int(value)} {unit}"
    digits, prefix = _three_digits(value, range(0, 33, 3), least_decimals)
    return f"{digits} {prefix}{unit}"


def format_count(count: int) -> str:
    """Print a count: exactly where a binary or decimal suffix can, else with three significant digits.

    >>> [format_count(count) for count in (7, 128_000, 131_072, 1_048_576, 1_050_001, 8_030_261_248)]
    ['7', '128k', '128Ki', '1Mi', '1.05M', '8.03G']
    """
    if count < 0:
        return "-" + format_count(-count)
    if count < 1000:
        return str(count)
    digits, prefix = _three_digits(count, range(0, 15, 3))
    if Fraction(digits) * _COUNT.units[prefix] == count:
        return (digits.rstrip("0").rstrip(".") if "." in digits else digits) + prefix
    for suffix, size in reversed(_BINARY.items()):
        multiple, remainder = divmod(count, size)
        if remainder == 0 and 0 < multiple < 10_000:
            return f"{multiple}{suffix}"
    return digits + prefix


def format_bytes(count: float) -> str:
    """Print a number of bytes with decimal prefixes, as datasheets and networks do, and at least one decimal.

    >>> [format_bytes(count) for count in (512, 137_438_953_472, 3.35e12)]
    ['512 B', '137.4 GB', '3.35 TB']
    """
    return _whole_or_three_digits(count, "B", least_decimals=1)


def format_flop(count: float) -> str:
    """Print a number of floating-point operations.

    >>> [format_flop(count) for count in (12, 1.8e16)]
    ['12 FLOP', '18.0 PFLOP']
    """
    return _whole_or_three_digits(count, "FLOP")


def format_rate(per_second: float, unit: str) -> str:
    """Print how many of ``unit`` (B, FLOP, token) come in a second.

    >>> format_rate(1.008e12, "B"), format_rate(989.4e12, "FLOP"), format_rate(41_250, "token")
    ('1.01 TB/s', '989 TFLOP/s', '41.2 ktoken/s')
    """
    return _whole_or_three_digits(per_second, f"{unit}/s")


def format_seconds(seconds: float) -> str:
    """Print a time: with three significant digits below a minute, then in minutes, hours and days.

    >>> [format_seconds(seconds) for seconds in (3.14e-6, 0.0139, 2.3, 252, 4400, 250_000)]
    ['3.14 us', '13.9 ms', '2.30 s', '4 min 12 s', '1.2 h', '2.9 d']
    """
    if seconds < 0:
        return "-" + format_seconds(-seconds)
    if not math.isfinite(seconds) or float(f"{seconds:.2e}") < 60:
        digits, prefix = _three_digits(seconds, range(-9, 3, 3))
        return f"{digits} {prefix}s"
    if round(seconds) < 3600:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s"
    hours = seconds / 3600
    return f"{hours:.1f} h" if round(hours, 1) < 48 else f"{hours / 24:.1f} d"
