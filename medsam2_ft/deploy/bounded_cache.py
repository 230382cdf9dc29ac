"""A least-recently-used cache with a total cost that it never exceeds, safe between threads."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class BoundedCache(Generic[Value]):
    """Values by key; the least recently used go first when the sum of costs passes `capacity`."""

    def __init__(self, capacity: int, *, cost: Callable[[Value], int] = lambda value: 1) -> None:
        self._capacity = capacity
        self._cost = cost
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._total = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Value | None:
        """The value, now the most recently used, or None."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: Hashable, value: Value) -> None:
        """Keep the value; one that costs more than everything the cache may hold is not kept."""
        with self._lock:
            if key in self._values:
                self._total -= self._cost(self._values.pop(key))
            self._values[key] = value
            self._total += self._cost(value)
            while self._total > self._capacity:
                _, oldest = self._values.popitem(last=False)
                self._total -= self._cost(oldest)

    def drop(self, is_stale: Callable[[Hashable], bool]) -> None:
        """Forget every value whose key `is_stale`."""
        with self._lock:
            for key in [key for key in self._values if is_stale(key)]:
                self._total -= self._cost(self._values.pop(key))

    def __len__(self) -> int:
        return len(self._values)
