"""System calls that Python has no function for: prctl, unshare, mount, capset, seccomp, Landlock.

Each raises OSError and does one thing; what to do with them is decided by the walls.
"""

from __future__ import annotations

import ctypes
import os
import struct

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER = 0x00020000, 0x08000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 4096, 16384, 1 << 18

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP = 1, 4, 22, 24
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 36, 38, 47

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, what + ": " + os.strerror(number))
    return result


def _prctl(option: int, a: int = 0, b: int = 0) -> int:
    words = [ctypes.c_ulong(word) for word in (a, b, 0, 0)]
    return _check(_libc.prctl(ctypes.c_int(option), *words), "prctl %d" % option)


def die_with_parent(signal: int) -> None:
    _prctl(_PR_SET_PDEATHSIG, signal)


def become_subreaper() -> None:
    """Orphans among the descendants become children of this process."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_dumpable(dumpable: bool) -> None:
    """Whether processes of the same user may trace this one and open its private /proc entries."""
    _prctl(_PR_SET_DUMPABLE, int(dumpable))


def no_new_privileges() -> None:
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def unshare(flags: int) -> None:
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    result = _libc.mount(
        source.encode(),
        os.fsencode(target),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        options.encode() if options else None,
    )
    _check(result, "mount " + target)


class _SeccompProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def seccomp(program: bytes) -> None:
    """Install a filter made by the host for this process and its children."""
    buffer = ctypes.create_string_buffer(program, len(program))
    what = _SeccompProgram(len(program) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    result = _libc.prctl(
        ctypes.c_int(_PR_SET_SECCOMP),
        ctypes.c_ulong(2),
        ctypes.byref(what),
        ctypes.c_ulong(0),
        ctypes.c_ulong(0),
    )
    _check(result, "seccomp")


def drop_capabilities() -> None:
    """Give up every capability, also for programs that are executed later."""
    _prctl(_PR_CAP_AMBIENT, 4)  # PR_CAP_AMBIENT_CLEAR_ALL
    for capability in range(64):
        try:
            _prctl(_PR_CAPBSET_DROP, capability)
        except OSError:  # past the last one, or none held: then there is nothing to drop
            break
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0))
    _check(_libc.capset(header, ctypes.create_string_buffer(24)), "capset")


_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446


def landlock_abi() -> int:
    """The kernel's Landlock version; 0 where it has none or it is switched off."""
    return max(0, int(_libc.syscall(_long(_CREATE_RULESET), None, _long(0), _long(1))))


def landlock_ruleset(abi: int, files: int, network: int, scoped: int) -> int:
    """A new ruleset's descriptor; what the version does not know is left out."""
    words = [files] + ([network] if abi >= 4 else []) + ([scoped] if abi >= 6 else [])
    raw = struct.pack("=%dQ" % len(words), *words)
    buffer = ctypes.create_string_buffer(raw, len(raw))
    result = _libc.syscall(_long(_CREATE_RULESET), buffer, _long(len(raw)), _long(0))
    return int(_check(result, "landlock_create_ruleset"))


def landlock_allow(ruleset: int, path: str, rights: int) -> None:
    """Grant `rights` on `path` and below; for a file only those rights that files have."""
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        raw = struct.pack("=Qi", rights, descriptor)
        buffer = ctypes.create_string_buffer(raw, len(raw))
        result = _libc.syscall(_long(_ADD_RULE), _long(ruleset), _long(1), buffer, _long(0))
        _check(result, "landlock_add_rule " + path)
    finally:
        os.close(descriptor)


def landlock_restrict(ruleset: int) -> None:
    """From here on this process and its children are in the ruleset's domain. Closes `ruleset`."""
    _check(_libc.syscall(_long(_RESTRICT_SELF), _long(ruleset), _long(0)), "landlock_restrict_self")
    os.close(ruleset)


def _long(value: int) -> ctypes.c_long:
    return ctypes.c_long(value)
