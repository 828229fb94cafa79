"""How values and untrusted text are written where people read them: pages, terminals, lines."""

from __future__ import annotations

import re

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[@-Z\\-_]")
_HIDDEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


def shown(text: str) -> str:
    """`text` as it may be shown: no terminal codes, and every hidden character made visible, so that
    a patch cannot look like what it is not (bidirectional overrides, zero-width characters)."""
    text = _ESCAPES.sub("", text.replace("\r\n", "\n"))
    return _HIDDEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)


def number(value: float) -> str:
    """Thousands set apart: 12,345."""
    return f"{value:,.0f}"


def percent(share: float) -> str:
    """65 %."""
    return f"{100 * share:.0f} %"


def points(difference: float) -> str:
    """+5 or −5, with one decimal where whole points would hide a difference."""
    value = 100 * difference
    text = f"{abs(value):.0f}" if abs(value) >= 1 or round(value, 1) == 0 else f"{abs(value):.1f}"
    sign = "" if float(text) == 0 else ("+" if value > 0 else "−")
    return sign + text


def size(bytes_count: float) -> str:
    """812 B, 12.3 KiB, 4.6 MiB."""
    value = float(bytes_count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def duration(seconds: float) -> str:
    """0.42 s, 12 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
