"""The end of a listening socket that loses no connection, whichever process closes it last.

Closing resets what the kernel has completed and nobody has taken. Between the last look at the
queue and the close of the last holder, perhaps a worker that is late to hear of the end, more would
come. So the kernel is told first to drop what asks for a connection: who asks tries again after a
second, and is refused, as nobody listens any more.
"""

import ctypes
import struct
from socket import SOL_SOCKET, socket

SO_ATTACH_FILTER = 26
"""Of Linux, <asm-generic/socket.h>."""

DROP = struct.pack("HBBI", 0x06, 0, 0, 0)
"""struct sock_filter, of <linux/filter.h>: return 0, for none of a packet's bytes is kept."""


def let_nobody_in(listener: socket) -> None:
    """Complete no more connections, in any process that shares the socket; those that wait in its
    queue can be accepted still, and those that were accepted are as they were."""
    program = ctypes.create_string_buffer(DROP, len(DROP))
    told = struct.pack("HP", 1, ctypes.addressof(program))  # struct sock_fprog
    listener.setsockopt(SOL_SOCKET, SO_ATTACH_FILTER, told)
