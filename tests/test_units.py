"""Units: every prefix against a table written by hand, and what is printed reads back as what it was."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodel.errors import InputError
from costmodel.units import (
    MAX_BYTES,
    MAX_COUNT,
    MAX_SECONDS,
    format_bytes,
    format_count,
    format_flop,
    format_rate,
    format_seconds,
    parse_bytes,
    parse_count,
    parse_counts,
    parse_seconds,
)

# Written out in full, so that no prefix can be wrong here in the way it is wrong there.
COUNT_SUFFIXES = {
    "": 1,
    "k": 1_000,
    "M": 1_000_000,
    "G": 1_000_000_000,
    "T": 1_000_000_000_000,
    "Ki": 1_024,
    "Mi": 1_048_576,
    "Gi": 1_073_741_824,
    "Ti": 1_099_511_627_776,
}
BYTE_SUFFIXES = {
    "": 1,
    "B": 1,
    "kB": 1_000,
    "MB": 1_000_000,
    "GB": 1_000_000_000,
    "TB": 1_000_000_000_000,
    "PB": 1_000_000_000_000_000,
    "EB": 1_000_000_000_000_000_000,
    "KiB": 1_024,
    "MiB": 1_048_576,
    "GiB": 1_073_741_824,
    "TiB": 1_099_511_627_776,
    "PiB": 1_125_899_906_842_624,
    "EiB": 1_152_921_504_606_846_976,
}
SECOND_SUFFIXES = {
    "": 1.0,
    "ns": 0.000_000_001,
    "us": 0.000_001,
    "µs": 0.000_001,  # micro sign
    "μs": 0.000_001,  # Greek mu
    "ms": 0.001,
    "s": 1.0,
    "min": 60.0,
    "h": 3_600.0,
    "d": 86_400.0,
}
PRINTED_PREFIXES = {
    "": 1,
    "k": 1_000,
    "M": 1_000_000,
    "G": 1_000_000_000,
    "T": 1_000_000_000_000,
    "P": 1_000_000_000_000_000,
    "E": 1_000_000_000_000_000_000,
    "Z": 1_000_000_000_000_000_000_000,
    "Y": 1_000_000_000_000_000_000_000_000,
    "R": 1_000_000_000_000_000_000_000_000_000,
    "Q": 1_000_000_000_000_000_000_000_000_000_000,
}


@pytest.mark.parametrize(("suffix", "size"), COUNT_SUFFIXES.items())
def test_count_suffix(suffix: str, size: int) -> None:
    assert parse_count(f"1{suffix}") == size
    assert parse_count(f"1 {suffix}") == size


@pytest.mark.parametrize(("suffix", "size"), BYTE_SUFFIXES.items())
def test_byte_suffix(suffix: str, size: int) -> None:
    assert parse_bytes(f"1{suffix}") == size


@pytest.mark.parametrize(("suffix", "size"), SECOND_SUFFIXES.items())
def test_second_suffix(suffix: str, size: float) -> None:
    assert parse_seconds(f"1{suffix}") == size


@pytest.mark.parametrize(("prefix", "size"), PRINTED_PREFIXES.items())
def test_printed_prefix(prefix: str, size: int) -> None:
    assert format_flop(2.5 * size) == f"2.50 {prefix}FLOP"
    assert format_rate(2.5 * size, "B") == f"2.50 {prefix}B/s"
    assert format_bytes(250.2 * size) == f"250.2 {prefix}B"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("131072", 131_072),
        ("1_048_576", 1_048_576),
        ("1e6", 1_000_000),
        ("1E6", 1_000_000),
        ("1.5k", 1_500),
        ("0.5Ki", 512),
        (".5Ki", 512),
        ("2.e3", 2_000),
        (" 128k\n", 128_000),
        ("1e3k", 1_000_000),
        ("0.000001e6", 1),
        ("1099511627776", 1_099_511_627_776),
    ],
)
def test_counts_people_write(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize(
    ("text", "rule", "remedy"),
    [
        ("0", "must be between 1 and 1Ti", "the nearest is 1"),
        ("-5", "must be between 1 and 1Ti", "the nearest is 1"),
        ("1e-999999999", "must be between 1 and 1Ti", "the nearest is 1"),
        ("1e30", "must be between 1 and 1Ti", "the nearest is 1Ti"),
        ("1e999999999", "must be between 1 and 1Ti", "the nearest is 1Ti"),
        ("1099511627777", "must be between 1 and 1Ti", "the nearest is 1Ti"),
        ("1.5", "must be a whole number", "try 1 or 2"),
        ("1.0001k", "must be a whole number", "try 1000 or 1001"),
        ("12Q", "'Q' is not one of k, M, G, T, Ki, Mi, Gi, Ti", "for example 128k or 1Mi"),
        ("12K", "'K' is not one of", "did you mean 12k?"),
        ("12MB", "'MB' is not one of", "did you mean 12M?"),
        *(
            (text, "must be a number", "for example 128k or 1Mi")
            for text in (
                "",
                " ",
                "nan",
                "inf",
                "k",
                "1__0",
                "1,000",
                "0x10",
                "\uff11\uff12",  # full-width digits
                "9" * 5000,
                "--5",
                "1/2",
            )
        ),
    ],
)
def test_count_that_cannot_be_used_is_refused(text: str, rule: str, remedy: str) -> None:
    with pytest.raises(InputError) as error:
        parse_count(text, field="--seq")
    message = str(error.value)
    assert message.startswith(f"--seq: {text!r} is not valid: ")
    assert rule in message
    assert message.endswith(f"; {remedy}")


@pytest.mark.parametrize("text", ["0", "-1GB", "1.5B", "40G", "24gb", "24Gb", "8 bits", "2EiB", "nan", "", "GB"])
def test_bytes_that_cannot_be_used_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^--memory: '"):
        parse_bytes(text, field="--memory")


@pytest.mark.parametrize("text", ["-1s", "nan", "inf", "", "3 sec", "5 mi", "2 3 s", "5 min -3 s", "1e13", "1e400 s"])
def test_seconds_that_cannot_be_used_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^--limit: '"):
        parse_seconds(text, field="--limit")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("2.3 s", 2.3),
        ("15ms", 0.015),
        ("1 h 4 min 12.5s", 3852.5),
        ("0.1us", 1e-7),
        ("1e12s", 1e12),
    ],
)
def test_seconds_people_write(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("4k", [4_000]),
        ("1k,4k,64k", [1_000, 4_000, 64_000]),
        ("1:8", [1, 2, 4, 8]),
        ("1k:5k", [1_000, 2_000, 4_000]),
        ("4k:4k", [4_000]),
        ("3:5, 1Mi", [3, 1_048_576]),
    ],
)
def test_several_counts(text: str, counts: list[int]) -> None:
    assert parse_counts(text) == counts


def test_range_from_1k_to_16M_has_the_powers_of_two_times_1k_that_do_not_exceed_it() -> None:
    # 16,000,000 / 1,000 = 16,000, and 2**13 = 8,192 <= 16,000 < 2**14 = 16,384
    assert parse_counts("1k:16M") == [1_000 * 2**doublings for doublings in range(14)]


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("1:2:3", "try 1:3"),
        ("4k:1k", "try 1k:4k"),
        ("1k,,2k", "128k or 1Mi"),
        (":4k", "128k or 1Mi"),
        ("1k:0", "is 1"),
    ],
)
def test_several_counts_that_cannot_be_used_are_refused(text: str, remedy: str) -> None:
    with pytest.raises(InputError, match=r"^--seq: '") as error:
        parse_counts(text, field="--seq")
    assert str(error.value).endswith(remedy)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (1e-9, "1.00 ns"),
        (1e-12, "0.00100 ns"),
        (999.4e-6, "999 us"),
        (999.6e-6, "1.00 ms"),
        (0.0139, "13.9 ms"),
        (0.9996, "1.00 s"),
        (2.3, "2.30 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 0 s"),
        (252, "4 min 12 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1.0 h"),
        (4320, "1.2 h"),
        (47.94 * 3600, "47.9 h"),
        (47.96 * 3600, "2.0 d"),
        (-2.3, "-2.30 s"),
        (-252, "-4 min 12 s"),
        (math.inf, "inf s"),
    ],
)
def test_printed_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1_000, "1k"),
        (1_023, "1.02k"),
        (1_024, "1Ki"),
        (1_536, "1.54k"),
        (128_000, "128k"),  # also 125Ki: what people mean by it is 128k
        (131_072, "128Ki"),
        (999_999, "1.00M"),
        (1_000_000, "1M"),
        (1_048_576, "1Mi"),
        (1_048_577, "1.05M"),
        (1_500_000, "1.5M"),
        (1_572_864, "1536Ki"),
        (10_001 * 1_024, "10.2M"),  # five digits before Ki say less than three before M
        (2**40, "1Ti"),
        (-1_024, "-1Ki"),
    ],
)
def test_printed_counts(count: int, text: str) -> None:
    assert format_count(count) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (0.5, "0.500 B"),
        (1_000, "1.00 kB"),
        (137_438_953_472, "137.4 GB"),
        (999_700, "1.00 MB"),
        (-1_500, "-1.50 kB"),
        (1e36, "1000000.0 QB"),
        (math.inf, "inf B"),
    ],
)
def test_printed_bytes(count: float, text: str) -> None:
    assert format_bytes(count) == text


@given(st.integers(1, MAX_COUNT))
def test_a_count_written_in_full_reads_back(count: int) -> None:
    assert parse_count(str(count)) == count
    assert parse_count(f"{count:_}") == count


@given(st.integers(1, MAX_COUNT // 2))
def test_a_printed_count_reads_back_within_its_three_digits(count: int) -> None:
    # The third of three digits is at least 1 in 100, and rounding moves it by half of that: 1 in 200.
    assert abs(parse_count(format_count(count)) - count) <= count / 200


@given(st.integers(1, 9_999), st.sampled_from(["Ki", "Mi", "Gi", "Ti"]))
def test_a_printed_binary_multiple_reads_back_exactly(multiple: int, suffix: str) -> None:
    count = multiple * COUNT_SUFFIXES[suffix]
    if count <= MAX_COUNT:
        assert parse_count(format_count(count)) == count


@given(st.integers(1, MAX_BYTES // 2))
def test_printed_bytes_read_back_within_their_digits(count: int) -> None:
    assert abs(parse_bytes(format_bytes(count)) - count) <= count / 200


@given(st.floats(1e-9, MAX_SECONDS / 2))
def test_printed_seconds_read_back_within_their_digits(seconds: float) -> None:
    if seconds < 60:
        precision = seconds / 200
    elif seconds < 3600:
        precision = 0.5
    else:
        precision = 0.05 * (3600 if seconds < 48 * 3600 else 86400)
    read = parse_seconds(format_seconds(seconds))
    assert abs(read - seconds) <= precision * (1 + 1e-9)


@given(st.floats(1, 1e33), st.sampled_from(["B", "FLOP", "token"]))
def test_a_printed_rate_is_within_its_digits(per_second: float, unit: str) -> None:
    digits, rest = format_rate(per_second, unit).split(" ")
    size = PRINTED_PREFIXES[rest.removesuffix(f"{unit}/s")]
    assert abs(float(digits) * size - per_second) <= per_second / 200 * (1 + 1e-9)


@given(st.text(max_size=300))
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (parse_count, parse_bytes, parse_seconds, parse_counts):
        try:
            parse(text)
        except InputError as error:
            assert "is not valid: " in str(error)
