"""What the nouns' parsers share: how a verb is added, and what a command is."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

Command = Callable[[argparse.Namespace], int]

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Commands = argparse._SubParsersAction


def noun(commands: Commands, name: str, about: str) -> Commands:
    """Add a noun; its verbs are added to what is returned."""
    parser = commands.add_parser(name, help=about, description=about)
    return parser.add_subparsers(title="verbs", metavar="VERB", required=True)


def verb(
    commands: Commands, name: str, about: str, command: Command, *, example: str
) -> argparse.ArgumentParser:
    """Add a verb that runs `command`; its help starts with an example."""
    parser = commands.add_parser(
        name,
        help=about,
        usage=None,
        description=f"example:\n  {example}\n\n{about}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=command)
    return parser


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned columns, the first of them the headings."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)
