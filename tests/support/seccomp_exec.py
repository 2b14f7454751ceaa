"""Run a command with a filter of system calls: python seccomp_exec.py ALLOWED REFUSED COMMAND...

ALLOWED and REFUSED are comma-separated names. The refused ones fail with EPERM; any other ends the process with SIGSYS.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys

ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
"""Actions of libseccomp: SCMP_ACT_ALLOW, SCMP_ACT_ERRNO, SCMP_ACT_KILL_PROCESS."""


def restrict(allowed: list[str], refused: list[str]) -> None:
    """Filter the system calls of this process. Names that this kind of machine does not have are left out."""
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = [ctypes.c_uint32]
    library.seccomp_rule_add.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint]
    library.seccomp_load.argtypes = [ctypes.c_void_p]
    context = library.seccomp_init(KILL)
    for action, names in ((ALLOW, allowed), (REFUSE, refused)):
        for number in (library.seccomp_syscall_resolve_name(name.encode()) for name in names):
            if number >= 0:
                assert library.seccomp_rule_add(context, action, number, 0) == 0
    assert library.seccomp_load(context) == 0


if __name__ == "__main__":
    restrict(sys.argv[1].split(","), sys.argv[2].split(","))
    os.execvp(sys.argv[3], sys.argv[3:])
