"""The Dockerfile read as text: what ends up in an image, as whom it runs, what any builder understands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ("operator", "runtime")
Instruction = tuple[str, str]


def instructions() -> list[Instruction]:
    """Each instruction and its arguments, continued lines joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [
        (word, rest.strip())
        for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)
    ]


def stages() -> dict[str, tuple[str, list[Instruction]]]:
    """By name: what the stage starts from, and its instructions."""
    found: dict[str, tuple[str, list[Instruction]]] = {}
    name = ""
    for word, rest in instructions():
        if word == "FROM":
            origin, _, name = rest.partition(" AS ")
            found[name] = (origin, [])
        elif name:
            found[name][1].append((word, rest))
    return found


def inherited(name: str) -> list[Instruction]:
    """What an image is made of: its stage's instructions and those of the stages it starts from."""
    known = stages()
    origin, own = known[name]
    return (inherited(origin) if origin in known else []) + own


def copied_from_the_context() -> list[str]:
    sources = []
    for _, of in stages().values():
        for word, rest in of:
            words = shlex.split(rest)
            if word == "COPY" and not words[0].startswith("--from="):
                sources += words[:-1]
    return sources


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_runs_as_an_ordinary_user_by_number(image):
    users = [rest for word, rest in inherited(image) if word == "USER"]
    assert users[-1] == "10001:10001", "Kubernetes can check a number, and no name"


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_starts_its_program_and_no_shell(image):
    starts = {word: rest for word, rest in inherited(image) if word in ("ENTRYPOINT", "CMD")}
    assert starts.keys() == {"ENTRYPOINT", "CMD"}
    assert all(rest.startswith("[") for rest in starts.values()), "a shell would not pass SIGTERM on"


@pytest.mark.parametrize("image", IMAGES)
def test_nothing_of_pips_settings_is_in_an_image(image):
    for word, rest in inherited(image):
        assert "PIP_" not in rest, f"{word} {rest}"
        assert "ca-bundle" not in rest, f"{word} {rest}"


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_says_what_it_is(image):
    labels = " ".join(rest for word, rest in inherited(image) if word == "LABEL")
    for key in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{key}=" in labels


@pytest.mark.parametrize("image", IMAGES)
def test_what_changes_most_is_copied_last(image):
    copies = [rest.split()[-1] for word, rest in stages()[image][1] if word == "COPY"]
    stable = [place for place in copies if place in ("/opt/hermes/cache", "/opt/hermes/venv")]
    assert stable
    assert copies[: len(stable)] == stable
    assert "/opt/hermes/app" in copies[len(stable) :]


def test_any_builder_understands_it():
    assert not re.search(r"--mount=|<<|# *syntax=|--link|--chmod", (ROOT / "Dockerfile").read_text())


def test_no_host_is_named():
    assert not re.search(r"https?://|docker\.io|ghcr\.io|quay\.io", (ROOT / "Dockerfile").read_text())


def test_everything_that_is_copied_is_there_and_is_let_through():
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = copied_from_the_context()
    assert sources
    for source in sources:
        place = source.replace("${REQUIREMENTS}", "runtime").replace("[t]", "t")
        if place != "build/ca-bundle.crt":
            assert (ROOT / place).exists(), place
        folders = {place, *(parent.as_posix() for parent in Path(place).parents)}
        assert folders & allowed or f"{Path(place).parent}/*{Path(place).suffix}" in allowed, place


@pytest.mark.parametrize("name", ["operator", "runtime-slim"])
def test_images_have_the_versions_that_are_tested(name):
    """Compiled with runtime.txt as the constraint, so that no version is in an image alone."""

    def pinned(file: str) -> set[str]:
        text = (ROOT / "requirements" / f"{file}.txt").read_text()
        assert "://" not in text
        return set(re.findall(r"^([a-zA-Z0-9_.\-]+==[^ ]+) \\", text, flags=re.MULTILINE))

    assert pinned(name) <= pinned("runtime")
    assert not {line for line in pinned(name) if line.startswith(("torch", "nvidia"))}
