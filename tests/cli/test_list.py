"""``costmodel list``."""

from __future__ import annotations

import pytest

from costmodel.hardware import load_profile, profiles
from costmodel.mixer import mixers
from costmodel.strategy import strategies


def test_everything_known_is_listed(ask, run) -> None:
    document = ask("list")
    assert [mixer["name"] for mixer in document["mixers"]] == mixers.names()
    assert [strategy["name"] for strategy in document["strategies"]] == strategies.names()
    assert [profile["name"] for profile in document["profiles"]] == profiles()
    page = run("list").stdout
    assert all(name in page for name in (*mixers.names(), *strategies.names(), *profiles()))


@pytest.mark.parametrize("name", profiles())
def test_every_number_of_a_profile_has_its_source(ask, run, name: str) -> None:
    (found,) = ask("list", "profiles", name)["profiles"]
    known = {entry["key"]: entry for entry in found["numbers"]}
    device = load_profile(name).device
    assert known["device.memory_bytes"]["value"] == device.memory_bytes.value
    assert known["device.memory_bytes"]["unit"] == "bytes"
    assert all(entry["source"] and entry["low"] <= entry["value"] <= entry["high"] for entry in known.values())
    assert sum(found["provenance"].values()) == len(known)
    page = run("list", "profiles", name).stdout
    assert all(key in page for key in known)


def test_a_mixer_in_full(run) -> None:
    page = run("list", "mixers", "attention").stdout
    for said in ("kv_heads", "H_kv", "arXiv", "Template", "with and without a causal mask"):
        assert said in page


def test_carries_under_both_masks(run) -> None:
    assert "state; without a mask: sum" in run("list", "mixers", "linear-attention").stdout


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("more", [(), ("--verbose",)])
def test_pages_fit_their_width(run, width: int, more: tuple[str, ...]) -> None:
    assert max(map(len, run("list", *more, width=width).stdout.splitlines())) <= width


@pytest.mark.parametrize("kind", ["mixers", "strategies", "profiles"])
def test_an_unknown_name_is_refused(run, kind: str) -> None:
    done = run("list", kind, "nothing-like-it")
    assert done.exit_code == 2
    assert "no " in done.stderr and "Known: " in done.stderr
