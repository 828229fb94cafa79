"""An act in words, for arm A: the sentence that a language model would write above its JSON.

It says what is meant and what the reader should do; figures only where they are short. The content
follows it and is not told twice.
"""

from __future__ import annotations

from hermes.act.v1 import act_pb2 as pb
from hermes_runtime.acts.build import content_name


def sentence(act: pb.Act, content: pb.Content | None) -> str:
    """What `act` says, in words; words that are the payload stand as they are."""
    match act.WhichOneof("payload"):
        case "text":
            return act.text
        case "anchor":
            return f"The content is in the store; I call it {act.anchor.alias}. {act.anchor.head}".rstrip()
        case _:
            return _of_content(act, content) if content is not None else ""


def _of_content(act: pb.Act, content: pb.Content) -> str:
    match content_name(content):
        case "task":
            return f"Please work on the following task in {content.task.repo or 'the repository'}."
        case "log":
            of = f" of {act.header.test_name}" if act.header.test_name else ""
            return f"Here is the test output{of}."
        case "spectrum":
            return "Here is which lines the failing and the passing tests executed."
        case "places":
            return "I suspect the defect is at one of the following places, most suspicious first."
        case "candidates":
            return "I propose the following patches, best first. Please apply and test each of them."
        case "outcomes" if act.kind == pb.ACT_KIND_CONFIRM:
            return "One of the patches passes all the tests. Here is what the tests said of each."
        case "outcomes":
            return "None of the patches passes so far. Here is what the tests said of each."
        case _:
            return "I cannot do what was asked, for the following reason."
