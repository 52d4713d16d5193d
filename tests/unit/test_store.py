"""What is kept of pictures: how much, how long, and what leaves first."""

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
    assert len(store) == 0
    store.put("d", bytes(100))
    assert store.get("d") == bytes(100)
    store.remove("d")
    store.remove("never there")
    assert store.get("d") is None
    store.put("e", bytes(100))
    assert store.get("e") == bytes(100)


class Scan:
    """What a weak reference can point to."""


def test_entries_leave_the_memory_on_time_though_nobody_comes_back():
    store, left = Store(0.5, 100), []
    for key in ("first", "second"):
        scan = Scan()
        store.put(key, scan, 1)
        left.append(weakref.ref(scan))
        del scan
        time.sleep(0.2)
    while any(scan() is not None for scan in left):  # asking the store itself would tidy up
        time.sleep(0.05)
