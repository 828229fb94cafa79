"""The seccomp filter: which system calls a sealed or sandboxed process may make, as BPF.

Decided here: sockets of any family but AF_UNIX are refused, and io_uring with them (it can open
sockets without socket(2)); system calls of foreign architectures kill the process; the x32 table is
refused. `BENCH` adds what a sandboxed test needs least and a kernel exploit most. Pure ctypes and
struct: no libseccomp. Who installs it: `seal.py` for a run, the sandboxes for their children.

Not stopped: sockets that were open before; descriptors passed in by an unsealed process.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from hermes_runtime.errors import Unsupported

AF_UNIX: Final = 1


class Answer(StrEnum):
    """What a refused socket gets."""

    ERRNO = "errno"
    """EAFNOSUPPORT from the kernel itself."""
    NOTIFY = "notify"
    """The decision of a listener, which can count; ENOSYS where the listener is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a filter refuses beside foreign architectures and sockets that are not AF_UNIX."""

    answer: Answer = Answer.ERRNO
    refused: Mapping[str, int]
    """System call -> errno."""
    new_user_namespaces: bool = True
    """Whether clone(2) may make namespaces; False also hides clone3, whose flags no filter can read."""
    outside_unix_sockets: bool = True
    """Whether a Unix socket may be connected by name; without namespaces such a name is the host's."""


_OUT: Final[dict[str, int]] = {"io_uring_setup": errno.ENOSYS, "pidfd_getfd": errno.EPERM}

SEAL_COUNTED: Final = Rules(answer=Answer.NOTIFY, refused=_OUT)
SEAL_UNCOUNTED: Final = Rules(refused=_OUT)

_BENCH_REFUSED: Final[dict[str, int]] = _OUT | dict.fromkeys(
    [
        "unshare",
        "setns",
        "mount",
        "umount2",
        "pivot_root",
        "chroot",
        "open_tree",
        "move_mount",
        "fsopen",
        "fsconfig",
        "fsmount",
        "fspick",
        "mount_setattr",
        "bpf",
        "perf_event_open",
        "userfaultfd",
        "keyctl",
        "add_key",
        "request_key",
        "ptrace",
        "process_vm_readv",
        "process_vm_writev",
        "kexec_load",
        "kexec_file_load",
        "init_module",
        "finit_module",
        "delete_module",
        "reboot",
        "swapon",
        "swapoff",
        "acct",
        "quotactl",
        "open_by_handle_at",
        "name_to_handle_at",
        "syslog",
    ],
    errno.EPERM,
)
BENCH: Final = Rules(refused=_BENCH_REFUSED, new_user_namespaces=False)
"""For a sandboxed test with a network namespace of its own."""
BENCH_ON_HOST: Final = Rules(refused=_BENCH_REFUSED, new_user_namespaces=False, outside_unix_sockets=False)
"""For a sandboxed test that shares the host's namespaces."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Machine:
    audit_arch: int
    seccomp_call: int
    column: int


_MACHINES: Final = {
    "x86_64": _Machine(audit_arch=0xC000003E, seccomp_call=317, column=0),
    "aarch64": _Machine(audit_arch=0xC00000B7, seccomp_call=277, column=1),
}
# Source: arch/x86/entry/syscalls/syscall_64.tbl; include/uapi/asm-generic/unistd.h (aarch64).
_CALLS: Final[dict[str, tuple[int, int]]] = {
    "socket": (41, 198),
    "socketpair": (53, 199),
    "connect": (42, 203),
    "clone": (56, 220),
    "clone3": (435, 435),
    "ioctl": (16, 29),
    "io_uring_setup": (425, 425),
    "pidfd_getfd": (438, 438),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "syslog": (103, 116),
}

_LD, _JEQ, _JGE, _JSET, _AND, _RET = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_KILL_PROCESS, _ALLOW, _RET_ERRNO, _USER_NOTIF = 0x80000000, 0x7FFF0000, 0x00050000, 0x7FC00000
_NUMBER, _ARCH, _ARG0, _ARG1 = 0, 4, 16, 24
_X32_BIT = 0x40000000
_NEW_NAMESPACES = 0x7E020080
"""CLONE_NEWTIME, NS, CGROUP, UTS, IPC, USER, PID, NET."""
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_SOCK_DGRAM, _SOCK_RAW = 2, 3

Instruction = tuple[int, int, int, int]


def _op(code: int, k: int, if_true: int = 0, if_false: int = 0) -> Instruction:
    return (code, if_true, if_false, k)


def _refuse(error: int) -> Instruction:
    return _op(_RET, _RET_ERRNO | error)


def _for_call(number: int, block: Sequence[Instruction]) -> list[Instruction]:
    """`block` for one system call; it returns or falls through, and the next block loads anew."""
    return [_op(_LD, _NUMBER), _op(_JEQ, number, 0, len(block)), *block]


def instructions(rules: Rules, machine: str) -> list[Instruction]:
    """The filter as (code, jump if true, jump if false, operand); Unsupported for other machines."""
    if machine not in _MACHINES:
        raise Unsupported(f"no system call filter for {machine}: it is written for x86_64 and aarch64")
    here = _MACHINES[machine]

    def call(name: str) -> int:
        return _CALLS[name][here.column]

    out = [_op(_LD, _ARCH), _op(_JEQ, here.audit_arch, 1, 0), _op(_RET, _KILL_PROCESS)]
    if machine == "x86_64":
        out += [_op(_LD, _NUMBER), _op(_JGE, _X32_BIT, 0, 1), _refuse(errno.ENOSYS)]
    refused = _op(_RET, _USER_NOTIF) if rules.answer is Answer.NOTIFY else _refuse(errno.EAFNOSUPPORT)
    for name in ("socket", "socketpair"):
        out += _for_call(call(name), [_op(_LD, _ARG0), _op(_JEQ, AF_UNIX, 1, 0), refused])
        if not rules.outside_unix_sockets:  # a datagram can name its receiver without connect(2)
            datagram = [_op(_LD, _ARG1), _op(_AND, 0xF), _op(_JEQ, _SOCK_DGRAM, 1, 0)]
            out += _for_call(call(name), [*datagram, _op(_JEQ, _SOCK_RAW, 0, 1), _refuse(errno.EACCES)])
    if not rules.outside_unix_sockets:
        out += _for_call(call("connect"), [_refuse(errno.EACCES)])
    if not rules.new_user_namespaces:
        flags = [_op(_LD, _ARG0), _op(_JSET, _NEW_NAMESPACES, 0, 1), _refuse(errno.EPERM)]
        out += _for_call(call("clone"), flags)
        out += _for_call(call("clone3"), [_refuse(errno.ENOSYS)])
        typing = [_op(_LD, _ARG1), _op(_JEQ, _TIOCSTI, 1, 0), _op(_JEQ, _TIOCLINUX, 0, 1)]
        out += _for_call(call("ioctl"), [*typing, _refuse(errno.EPERM)])
    for name, error in rules.refused.items():
        out += _for_call(call(name), [_refuse(error)])
    return [*out, _op(_RET, _ALLOW)]


def call_name(number: int, machine: str | None = None) -> str:
    """The system call of that number, or the number."""
    column = _MACHINES[machine or platform.machine()].column
    return next((name for name, numbers in _CALLS.items() if numbers[column] == number), str(number))


def program(rules: Rules, machine: str | None = None) -> bytes:
    """The filter as the kernel takes it: an array of `struct sock_filter`."""
    return b"".join(struct.pack("=HBBI", *one) for one in instructions(rules, machine or platform.machine()))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


_PR_SET_NO_NEW_PRIVS = 38
_SET_MODE_FILTER = 1
_FLAG_TSYNC, _FLAG_NEW_LISTENER, _FLAG_TSYNC_ESRCH = 1, 8, 16


def install(rules: Rules) -> int | None:
    """Install for every thread of this process and all its future children; it cannot be undone.

    Returns the listener's descriptor for `Answer.NOTIFY` (close-on-exec), else None.

    Raises:
        OSError: EBUSY: an ancestor has a listener already (there can be one); ESRCH: a thread runs
            under a filter of its own; EINVAL, ENOSYS: the kernel is older than 5.7.
    Source: seccomp(2); TSYNC with NEW_LISTENER needs TSYNC_ESRCH.
    """
    if not sys.platform.startswith("linux"):
        raise Unsupported(f"no system call filters on {sys.platform}: run in a Linux container")
    code = program(rules)
    buffer = ctypes.create_string_buffer(code, len(code))
    what = _Program(length=len(code) // 8, filter=ctypes.cast(buffer, ctypes.c_void_p))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise _last_error("prctl(PR_SET_NO_NEW_PRIVS)")
    notify = rules.answer is Answer.NOTIFY
    flags = _FLAG_TSYNC | (_FLAG_NEW_LISTENER | _FLAG_TSYNC_ESRCH if notify else 0)
    libc.syscall.restype = ctypes.c_long
    call = _MACHINES[platform.machine()].seccomp_call
    result = int(
        libc.syscall(
            ctypes.c_long(call),
            ctypes.c_long(_SET_MODE_FILTER),
            ctypes.c_ulong(flags),
            ctypes.byref(what),
        )
    )
    if result < 0:
        raise _last_error("seccomp")
    if not notify and result > 0:  # TSYNC says which thread it could not bring in line
        raise OSError(errno.ESRCH, f"thread {result} has a filter of its own")
    return result if notify else None


def _last_error(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")
