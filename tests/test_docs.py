"""The docs say what the code does: tables, commands, options, modules and links."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import click
import pytest

import podtap

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "sample_pcaps").rglob("*.md")])


def commands(command: click.Command, path: str = "podtap") -> dict[str, click.Command]:
    """Every command that a user can run, by what they type: `podtap report flows`."""
    if not isinstance(command, click.Group):
        return {path: command}
    context = click.Context(command, info_name=path)
    found: dict[str, click.Command] = {path: command} if command.invoke_without_command else {}
    for name in command.list_commands(context):
        child = command.get_command(context, name)
        assert child is not None
        found |= commands(child, f"{path} {name}")
    return found


def sections(page: Path) -> dict[str, str]:
    """The text below each heading of a page, by the heading without its backticks."""
    parts = re.split(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {heading.replace("`", ""): text for heading, text in zip(parts[1::2], parts[2::2], strict=True)}


COMMANDS = commands(podtap.main)


@pytest.mark.parametrize("page", ["tables", "reports", "metrics", "files"])
def test_a_page_made_from_the_code_equals_it(page: str) -> None:
    written_by_make_docs = runpy.run_path(str(ROOT / "docs" / f"{page}.py"))["markdown"]()
    assert (ROOT / "docs" / f"{page}.md").read_text() == written_by_make_docs, "run `make docs`"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_documented_and_no_other(name: str) -> None:
    pages = sections(ROOT / "docs" / "commands.md")
    group = name.rpartition(" ")[0]
    shared = "" if group in COMMANDS else pages.get(group, "")
    rows = re.findall(r"^\| (`-.*?) \|", pages[name] + shared, flags=re.MULTILINE)
    documented = set(re.findall(r"`(--?[A-Za-z-]+)", " ".join(rows)))
    parameters = [parameter for parameter in COMMANDS[name].params if isinstance(parameter, click.Option)]
    assert documented == {option for parameter in parameters for option in parameter.opts + parameter.secondary_opts}


def test_no_command_is_documented_that_does_not_exist() -> None:
    documented = {heading for heading in sections(ROOT / "docs" / "commands.md") if heading.startswith("podtap ")}
    assert documented == set(COMMANDS) | {"podtap report"}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_inside_the_repository_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            linked = (page.parent / path).resolve() if path else page
            assert linked.exists(), target
            assert not anchor or anchor in {slug(heading) for heading in sections(linked)}, target


def slug(heading: str) -> str:
    """The anchor that a heading gets on the web: lower case, words joined by hyphens."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
