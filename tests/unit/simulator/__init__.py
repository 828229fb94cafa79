"""A cluster in one thread and in virtual time, for trying the operator under faults from a seed.

Real: the decisions, the reconciler, its cache and its queue. Played: `server` the API server, `kubelet`
pods and their containers, `controllers` Jobs, queues and garbage, `process` the operator's life and its
requests; `world` holds them together and checks every write, `schedule` is one seed: users, faults, and
what must be true in the end. `faults` says what may go wrong, `truth` keeps what really happened.
"""
