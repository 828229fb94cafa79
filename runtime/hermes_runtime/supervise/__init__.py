"""Processes: how they are started, sealed, watched, restarted, stopped, and how they call each other.

tree.py          a run's processes: start, wait until ready, restart the dead, stop in order
parent.py        a child ends when its parent does
seal.py          from here on no process can open any but Unix sockets
seal_counter.py  the process that counts who tried; seal_service.py tells it to others of the pod
seccomp.py       the filter itself
rpc.py           gRPC over Unix sockets: server, channel, errors; tcp.py the same for one store and many pods
ready.py         a file that is there while a process serves
init.py          what process 1 of a container must do
"""
