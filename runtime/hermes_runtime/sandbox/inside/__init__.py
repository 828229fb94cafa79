"""What runs inside a sandbox, in the instance's own interpreter: standard library only, Python 3.9+.

zygote.py         the warm interpreter: imports, then forks a keeper for every attempt
keeper.py         one attempt: sets it up, watches its limits, kills all of it, says how it ended
namespaces.py     the wall of bubblewrap's sandbox: nested namespaces and an overlay of the tree
confined.py       the wall of Landlock's sandbox: a copied tree, Landlock, scoped signals
kernel.py         the system calls that Python has no function for
frames.py         length-prefixed JSON
pytest_inside.py  what the attempt runs

Loaded as the package `hermes_inside`, so that nothing of it is in the way of the tested code.
"""
