"""The command line: `hermes <noun> <verb>`. It parses and calls; all it can do, a Python call can do.

One module a noun, each with `add(commands)`; `__main__.py` puts them together and turns errors into
exit codes: 0 done, 1 failed, 2 used wrongly, 130 interrupted.
"""
