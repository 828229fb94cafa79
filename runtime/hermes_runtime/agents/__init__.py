"""Planner, coder, tester: stateless handlers of acts, each its own process.

conversation.py  what an agent hears and says, without how it travels
planner.py       ranks places: the tests' spectrum, ties broken by the model
coder.py         proposes patches at those places; drafts.py keeps each program once
tester.py        runs tests in a sandbox: baseline under coverage, then candidates
localize.py      Ochiai
edits.py         the closed set of single-defect edits
patch.py         unified diffs made and applied
windows.py       what a line_repair prompt shows of a task; prompts/ holds the dialects
seeds.py         a seed for each random choice
service.py       any of them as a gRPC process
"""
