"""The seccomp filter of system calls for programs in a sandbox.

It is a list of allowed calls: those that Python, Node, C++ programs and the
compiler need for computation, files, threads, processes, pipes and local
sockets. All other calls fail with ENOSYS ("does not exist"), so that libraries
fall back on allowed ones. Not allowed are namespaces and mounts, access to the
memory of other processes, kernel modules, keys, tracing, io_uring and whatever
newer kernels add; sockets of other families (namespaces do not hide the host of
a virtual machine); and memory that no limit counts (memfd, System V).
"""

import errno
import functools
import platform
import socket
import struct

MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_*

# Each name, and its number on each of the MACHINES (Linux's unistd.h); "-" for
# none.
ALLOWED = {
  "files": """
    read 0 63, write 1 64, readv 19 65, writev 20 66, pread64 17 67,
    pwrite64 18 68, preadv 295 69, pwritev 296 70, preadv2 327 286,
    pwritev2 328 287, open 2 -, openat 257 56, creat 85 -, close 3 57,
    close_range 436 436, lseek 8 62, stat 4 -, fstat 5 80, lstat 6 -,
    newfstatat 262 79, statx 332 291, statfs 137 43, fstatfs 138 44,
    access 21 -, faccessat 269 48, faccessat2 439 439, truncate 76 45,
    ftruncate 77 46, fallocate 285 47, fadvise64 221 223, readahead 187 213,
    fsync 74 82, fdatasync 75 83, flock 73 32, fcntl 72 25, dup 32 23,
    dup2 33 -, dup3 292 24, pipe 22 -, pipe2 293 59, sendfile 40 71,
    copy_file_range 326 285, getdents 78 -, getdents64 217 61, getcwd 79 17,
    chdir 80 49, fchdir 81 50, rename 82 -, renameat 264 38, renameat2 316 276,
    mkdir 83 -, mkdirat 258 34, rmdir 84 -, link 86 -, linkat 265 37,
    unlink 87 -, unlinkat 263 35, symlink 88 -, symlinkat 266 36, readlink 89 -,
    readlinkat 267 78, chmod 90 -, fchmod 91 52, fchmodat 268 53, umask 95 166,
    mknod 133 -, mknodat 259 33, utime 132 -, utimes 235 -, utimensat 280 88,
    futimesat 261 -, getxattr 191 8, lgetxattr 192 9, fgetxattr 193 10,
    listxattr 194 11, llistxattr 195 12, flistxattr 196 13
  """,
  "memory": """
    mmap 9 222, mprotect 10 226, munmap 11 215, mremap 25 216, msync 26 227,
    mincore 27 232, madvise 28 233, brk 12 214
  """,
  "processes": """
    fork 57 -, vfork 58 -, execve 59 221, execveat 322 281, exit 60 93,
    exit_group 231 94, wait4 61 260, waitid 247 95, getpid 39 172,
    gettid 186 178, getppid 110 173, getpgrp 111 -, getpgid 121 155,
    getsid 124 156, setsid 112 157, setpgid 109 154, getuid 102 174,
    getgid 104 176, geteuid 107 175, getegid 108 177, getgroups 115 158,
    getresuid 118 148, getresgid 120 150, setgroups 116 159, setresuid 117 147,
    setresgid 119 149, capget 125 90, capset 126 91, getrlimit 97 163,
    setrlimit 160 164, prlimit64 302 261, getrusage 98 165, getpriority 140 141,
    setpriority 141 140, uname 63 160, sysinfo 99 179, times 100 153,
    pidfd_open 434 434, pidfd_send_signal 424 424, arch_prctl 158 -,
    set_tid_address 218 96, set_robust_list 273 99, get_robust_list 274 100,
    rseq 334 293, membarrier 324 283, futex 202 98, getcpu 309 168,
    getrandom 318 278, restart_syscall 219 128, sched_yield 24 124,
    sched_getparam 143 121, sched_getscheduler 145 120,
    sched_get_priority_max 146 125, sched_get_priority_min 147 126,
    sched_rr_get_interval 148 127, sched_getaffinity 204 123,
    sched_setaffinity 203 122
  """,
  "signals": """
    kill 62 129, tkill 200 130, tgkill 234 131, rt_sigaction 13 134,
    rt_sigprocmask 14 135, rt_sigreturn 15 139, rt_sigpending 127 136,
    rt_sigsuspend 130 133, rt_sigtimedwait 128 137, rt_sigqueueinfo 129 138,
    rt_tgsigqueueinfo 297 240, sigaltstack 131 132, pause 34 -, signalfd 282 -,
    signalfd4 289 74
  """,
  "time": """
    time 201 -, gettimeofday 96 169, nanosleep 35 101, alarm 37 -,
    getitimer 36 102, setitimer 38 103, clock_gettime 228 113,
    clock_getres 229 114, clock_nanosleep 230 115, timer_create 222 107,
    timer_settime 223 110, timer_gettime 224 108, timer_getoverrun 225 109,
    timer_delete 226 111, timerfd_create 283 85, timerfd_settime 286 86,
    timerfd_gettime 287 87
  """,
  "waiting": """
    poll 7 -, ppoll 271 73, select 23 -, pselect6 270 72, epoll_create 213 -,
    epoll_create1 291 20, epoll_ctl 233 21, epoll_wait 232 -,
    epoll_pwait 281 22, epoll_pwait2 441 441, eventfd 284 -, eventfd2 290 19
  """,
  "sockets": """
    connect 42 203, accept 43 202, accept4 288 242, bind 49 200, listen 50 201,
    shutdown 48 210, getsockname 51 204, getpeername 52 205, getsockopt 55 209,
    setsockopt 54 208, sendto 44 206, recvfrom 45 207, sendmsg 46 211,
    recvmsg 47 212, sendmmsg 307 269, recvmmsg 299 243
  """,
}

# Calls that are allowed for some values of an argument: (numbers of the call,
# index of the argument, allowed values, error for all other values).
LOCAL = {socket.AF_UNIX}
TERMINAL = {0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451}  # TCGETS etc.
ATTRIBUTES = {1, 2, 3, 15, 16}  # A thread's name; the signal on parent death.
RESTRICTED = {
  "socket": ((41, 198), 0, LOCAL, errno.EPERM),
  "socketpair": ((53, 199), 0, LOCAL, errno.EPERM),
  "ioctl": ((16, 29), 1, TERMINAL, errno.ENOTTY),
  "prctl": ((157, 167), 0, ATTRIBUTES, errno.EPERM),
}
CLONE, NEW_NAMESPACES = (56, 220), 0x7E020000  # CLONE_NEW* in its flags.

# Instructions of the kernel's packet filter (linux/filter.h).
LOAD, EQUAL, AT_LEAST, HAS_BITS, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCH, ARGUMENTS = 0, 4, 16  # Offsets in struct seccomp_data.
ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000


@functools.cache
def program() -> bytes:
  """Returns the filter as bubblewrap reads it: a BPF program.

  Raises ValueError on machines whose call numbers are not known.
  """
  machine = platform.machine()
  if machine not in MACHINES:
    raise ValueError(
      f"no filter of system calls for {machine!r}; have {[*MACHINES]}: add its "
      "numbers to r1jax/rewards/code/seccomp.py"
    )
  which = [*MACHINES].index(machine)
  allow = RETURN, 0, 0, ALLOW
  code = [  # (operation, jump if true, jump if false, operand)
    (LOAD, 0, 0, ARCH),
    (EQUAL, 1, 0, MACHINES[machine]),
    (RETURN, 0, 0, KILL),
    (LOAD, 0, 0, NUMBER),
    (EQUAL, 0, 4, CLONE[which]),
    (LOAD, 0, 0, ARGUMENTS),
    (HAS_BITS, 0, 1, NEW_NAMESPACES),
    (RETURN, 0, 0, REFUSE | errno.EPERM),
    allow,
  ]
  for numbers, place, values, error in RESTRICTED.values():
    code += [
      (EQUAL, 0, len(values) + 3, numbers[which]),
      (LOAD, 0, 0, ARGUMENTS + 8 * place),  # The kernel reads the lower half.
      *((EQUAL, len(values) - i, 0, v) for i, v in enumerate(sorted(values))),
      (RETURN, 0, 0, REFUSE | error),
      allow,
    ]
  for first, last in _runs(allowed(machine)):
    code += [(AT_LEAST, 2, 0, last + 1), (AT_LEAST, 0, 1, first), allow]
  code += [(RETURN, 0, 0, REFUSE | errno.ENOSYS)]
  return b"".join(struct.pack("=HBBI", *each) for each in code)


def allowed(machine: str) -> set[int]:
  """Returns the numbers of the calls that are allowed with any arguments."""
  which = 1 + [*MACHINES].index(machine)
  calls = [
    call.split() for text in ALLOWED.values() for call in text.split(",")
  ]
  return {int(call[which]) for call in calls if call[which] != "-"}


def _runs(numbers: set[int]) -> list[tuple[int, int]]:
  """Returns (first, last) of each run of consecutive numbers, ascending."""
  firsts = sorted(n for n in numbers if n - 1 not in numbers)
  lasts = sorted(n for n in numbers if n + 1 not in numbers)
  return [*zip(firsts, lasts)]
