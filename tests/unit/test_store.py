"""What is kept of pictures: how much, how long, and what is dropped first."""

import time
import weakref

from tumorseg.serving.web.store import Store


def test_the_store_drops_the_oldest_first():
    store = Store(600, 100)
    for key in "abc":
        store.put(key, bytes(40))
    assert [store.get(key) is not None for key in "abc"] == [False, True, True]
    store.put("b", bytes(60))
    assert [store.get(key) is not None for key in "abc"] == [False, True, True]
    store.put("huge", bytes(101))
    assert store.held == 0
    store.put("d", bytes(100))
    store.remove("d")
    store.remove("never there")
    assert (store.get("d"), store.held) == (None, 0)


class Scan:
    """What a weak reference can point to."""


def test_entries_leave_the_memory_on_time_without_further_requests():
    store, left = Store(0.2, 100), []
    for key in ("first", "second"):
        scan = Scan()
        store.put(key, scan, 1)
        left.append(weakref.ref(scan))
        del scan
        time.sleep(0.1)
    while any(scan() is not None for scan in left):  # asking the store itself would drop them
        time.sleep(0.02)
