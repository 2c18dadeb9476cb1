"""Which of several workers takes a connection: what they tell each other in shared memory."""

import ctypes
from multiprocessing.sharedctypes import RawArray, RawValue

CLOSED = -1
"""In place of a worker's connections while it takes none."""


class Accepting:
    """Of `workers` processes: how many connections each has, and whether all may take them."""

    def __init__(self, workers: int):
        self._connections = RawArray(ctypes.c_int, [CLOSED] * workers)
        self._others_may = RawValue(ctypes.c_bool, False)

    def part(self, slot: int, *, early: bool = False) -> "Part":
        """Of the worker in a slot; `early`: it takes connections before its engines are loaded."""
        return Part(slot, early, self._connections, self._others_may)

    def ended(self, slot: int) -> None:
        """A worker is no more; if it was the first, the others wait for it no longer."""
        self._connections[slot] = CLOSED
        if slot == 0:
            self._others_may.value = True


class Part:
    """One worker's: when it takes connections, and whether another has fewer."""

    def __init__(
        self,
        slot: int,
        early: bool,
        connections: "ctypes.Array[ctypes.c_int]",
        others_may: ctypes.c_bool,
    ):
        self.early, self._slot = early, slot
        self._connections, self._others_may = connections, others_may

    @property
    def allowed(self) -> bool:
        """Whether a worker may take connections whose engines are loaded: the first may, and the
        others once the first's are loaded, or it has ended."""
        return self.early or self._others_may.value

    def loaded(self) -> None:
        """To be told once this worker's engines are loaded."""
        if self.early:
            self._others_may.value = True

    def tell(self, connections: int) -> None:
        """So many does this worker have; it takes more."""
        self._connections[self._slot] = connections

    @property
    def has_more(self) -> bool:
        """Whether this worker has more than another that takes some."""
        own = self._connections[self._slot]
        return any(CLOSED < others < own for others in self._connections)

    def closes(self) -> None:
        """To be told when this worker takes no more."""
        self._connections[self._slot] = CLOSED
