"""A bound on what all readers of this process keep at hand together: the least recently used goes first."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any


class Budget:
    """Sizes of the values in the readers' own dicts (`store`), together at most `most()`; the newest stays in any case.

    Any thread may use it. What is dropped from a store lives on in the hands of whoever uses it just then, and a reader
    that ends clears its store: nothing is called here. `is_tight`: so much is kept that it matters what was used when.
    """

    def __init__(self, most: Callable[[], int]) -> None:
        self._most, self._total, self.is_tight = most, 0, False
        self._kept: OrderedDict[tuple[int, int], tuple[dict[int, Any], int]] = OrderedDict()
        self._lock = threading.Lock()

    def mark(self, store: dict[int, Any], number: int) -> None:
        """The value was used just now."""
        with self._lock:
            if (id(store), number) in self._kept:  # else another thread's need has dropped it just now
                self._kept.move_to_end((id(store), number))

    def add(self, store: dict[int, Any], number: int, value: Any, size: int) -> None:
        """Puts a value into the store, and drops others for it."""
        most = self._most()
        with self._lock:
            store[number] = value
            _, old = self._kept.pop((id(store), number), (store, 0))
            self._kept[id(store), number] = store, size
            self._total += size - old
            self.is_tight = 2 * self._total > most
            while self._total > most and len(self._kept) > 1:
                (_, oldest), (its_store, its_size) = self._kept.popitem(last=False)
                its_store.pop(oldest, None)
                self._total -= its_size

    def drop(self, is_gone: Callable[[Any], bool]) -> None:
        """Forgets every value, of any reader, of which `is_gone` is true."""
        with self._lock:
            for (name, number), (store, size) in list(self._kept.items()):
                value = store.get(number)
                if value is None or is_gone(value):
                    store.pop(number, None)
                    del self._kept[name, number]
                    self._total -= size
