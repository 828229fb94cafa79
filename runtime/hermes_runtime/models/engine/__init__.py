"""Many requests computed together by one model, each as if it were alone.

    prefix.py      what is kept of prompts already computed: a tree over their tokens, no torch in it
    schedule.py    which request is computed next, and how much of it: no torch in it
    task.py        a request as numbers, and what comes of it
    slots.py       keys and values: rows of fixed buffers, joined, left, forked; attention over them
    choosing.py    the next token of every row, each by its own request's rules
    engine.py      requests in, tokens and results out, one step at a time

A step computes pieces of prompts and then one token of every row. Nothing here knows text or processes.
"""
