"""The filter of system calls that programs in a sandbox run under.

Namespaces hide the machine, and limits count memory. What is refused here would
make new namespaces, look into other processes, talk to the kernel's less tried
parts, reach what no namespace hides (a virtual machine's host, by its socket),
or take memory that no limit counts.
"""

import errno
import functools
import platform
import socket
import struct

MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_*

# Their numbers on the machines, in that order (Linux's unistd.h).
REFUSED = {
  "add_key": (248, 217),
  "bpf": (321, 280),
  "fsopen": (430, 430),
  "io_uring_enter": (426, 426),
  "io_uring_register": (427, 427),
  "io_uring_setup": (425, 425),
  "kcmp": (312, 272),
  "keyctl": (250, 219),
  "memfd_create": (319, 279),
  "memfd_secret": (447, 447),
  "mount": (165, 40),
  "mount_setattr": (442, 442),
  "move_mount": (429, 429),
  "mq_open": (240, 180),
  "msgget": (68, 186),
  "name_to_handle_at": (303, 264),
  "open_by_handle_at": (304, 265),
  "open_tree": (428, 428),
  "perf_event_open": (298, 241),
  "pidfd_getfd": (438, 438),
  "process_vm_readv": (310, 270),
  "process_vm_writev": (311, 271),
  "ptrace": (101, 117),
  "request_key": (249, 218),
  "semget": (64, 190),
  "setns": (308, 268),
  "shmget": (29, 194),
  "umount2": (166, 39),
  "unshare": (272, 97),
  "userfaultfd": (323, 282),
}
CLONE, CLONE3, SOCKET = (56, 220), 435, (41, 198)
NEW_NAMESPACES = 0x7E020000  # CLONE_NEW* in the flags of clone.
X32 = 0x40000000  # A second set of numbers on x86_64.

# Instructions of the kernel's packet filter (linux/filter.h).
LOAD, EQUAL, AT_LEAST, HAS_BITS, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCH, ARGUMENT = 0, 4, 16  # Places in struct seccomp_data.
ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000


@functools.cache
def program() -> bytes:
  """The filter, as bubblewrap reads it. ValueError on an unknown machine."""
  machine = platform.machine()
  if machine not in MACHINES:
    raise ValueError(
      f"no filter of system calls for {machine!r}; have {[*MACHINES]}: add its "
      "numbers to r1jax/rewards/seccomp.py"
    )
  which = [*MACHINES].index(machine)
  refuse = RETURN, 0, 0, REFUSE | errno.EPERM
  unknown = RETURN, 0, 0, REFUSE | errno.ENOSYS
  allow = RETURN, 0, 0, ALLOW
  code = [  # Operation, how many to skip if true, if false, and its operand.
    (LOAD, 0, 0, ARCH),
    (EQUAL, 1, 0, MACHINES[machine]),
    (RETURN, 0, 0, KILL),
    (LOAD, 0, 0, NUMBER),
    (AT_LEAST, 0, 1, X32),
    unknown,
    (EQUAL, 0, 1, CLONE3),  # Its flags cannot be read: libraries use clone.
    unknown,
  ]
  for numbers in REFUSED.values():
    code += [(EQUAL, 0, 1, numbers[which]), refuse]
  code += [
    (EQUAL, 0, 4, CLONE[which]),
    (LOAD, 0, 0, ARGUMENT),
    (HAS_BITS, 0, 1, NEW_NAMESPACES),
    refuse,
    allow,
    (EQUAL, 0, 3, SOCKET[which]),
    (LOAD, 0, 0, ARGUMENT),
    (EQUAL, 1, 0, socket.AF_UNIX),
    refuse,
    allow,
  ]
  return b"".join(struct.pack("=HBBI", *each) for each in code)
