"""Datasets: instances made here.

packages.py       which packages mutants are made of: pinned sources, a test environment each
packages.txt      their source distributions, pinned by sha256
environment.txt   what every test environment holds, pinned by sha256
baseline.py       a package's tests before any mutation: which are sound, which lines each runs
candidates.py     which mutants are tried, in which order; which tests are run for one
mutants.py        build: mutants that fail at least two tests become instances
"""
