"""What is stated in several places of the repository is stated alike."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import costmodel

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def read(name: str) -> str:
    return (ROOT / name).read_text()


def citation(key: str) -> str:
    [value] = re.findall(rf"^{key}: (.+)$", read("CITATION.cff"), flags=re.MULTILINE)
    return value


def test_version_is_one() -> None:
    assert PROJECT["project"]["version"] == costmodel.__version__ == citation("version")


def test_license_is_apache_2() -> None:
    text = read("LICENSE")
    assert text.split("\n", 3)[1].strip() == "Apache License"
    assert "Version 2.0, January 2004" in text
    assert all(f"\n   {section}. " in text for section in range(1, 10))
    assert "END OF TERMS AND CONDITIONS" in text
    assert text.rstrip().endswith("limitations under the License.")
    assert PROJECT["project"]["license"] == citation("license") == "Apache-2.0"


def test_readme_exists() -> None:
    assert read("README.md").startswith("# ")


def test_changelog_has_a_place_for_what_comes_next() -> None:
    headings = re.findall(r"^## (.+)$", read("CHANGELOG.md"), flags=re.MULTILINE)
    assert headings[0] == "[Unreleased]"


def requirement_names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=!~; ]", line, maxsplit=1)[0].lower().replace("_", "-") for line in requirements}


def test_every_dependency_is_pinned() -> None:
    lines = [line for line in read("constraints.txt").splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    extras = PROJECT["project"]["optional-dependencies"].values()
    needed = requirement_names([*PROJECT["project"]["dependencies"], *(line for extra in extras for line in extra)])
    assert needed - {"costmodel"} <= requirement_names(lines)
