"""Which sends of a content are certain when its maker says it, and what each receiver does with it.

The loop is rounds of planner, coder, tester; it may end after any of them, so only what the round at
hand brings is certain. Logs are shown in prompts; everything else is read by code.
"""

from __future__ import annotations

from hermes_runtime.acts.anchors import Consumer, Reads

_DRIVER = Consumer(role="driver", reads=Reads.NOTHING)


def reads_of(name: str, role: str) -> Reads:
    """What `role` does with a content of that name."""
    if role == "driver":
        return Reads.NOTHING
    return Reads.PROMPT if name == "log" and role in ("planner", "coder") else Reads.CODE


def certain_sends(name: str, *, sender: str, round: int) -> tuple[Consumer, ...]:
    """The sends ahead of a content that `sender` says in `round`, this one first.

    The driver keeps a copy of what it is sent inline, and needs none of an anchored log or spectrum.
    """
    match sender, name:
        case "tester", "log" if round == 0:
            return (_DRIVER, *(Consumer(role=role, reads=Reads.PROMPT) for role in ("planner", "coder")))
        case "tester", "spectrum" if round == 0:
            return (_DRIVER, Consumer(role="planner", reads=Reads.CODE))
        case "planner", "places":
            return (_DRIVER, Consumer(role="coder", reads=Reads.CODE))
        case "coder", "candidates":
            # the driver counts candidates, and says which one is the answer
            return (Consumer(role="driver", reads=Reads.CODE), Consumer(role="tester", reads=Reads.CODE))
        case "driver", "task":
            # tester before round 1, then planner, coder: the first send to each
            return tuple(Consumer(role=role, reads=Reads.CODE) for role in ("tester", "planner", "coder"))
        case "driver", _:
            return (Consumer(role="planner", reads=reads_of(name, "planner")),)
        case _:
            return (Consumer(role="driver", reads=Reads.CODE),)
