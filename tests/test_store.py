"""What is kept of pictures: how much, how long, and what leaves first."""

import time

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


def test_the_store_empties_itself_without_being_asked():
    store = Store(0.2, 100)
    store.put("a", bytes(40))
    held = store._entries
    for _ in range(50):
        if not held:
            break
        time.sleep(0.1)
    assert not held


def test_nobody_has_to_come_back_for_a_picture_to_leave_on_time():
    store = Store(1.0, 100)
    store.put("first", b"1")
    time.sleep(0.6)
    store.put("second", b"2")
    end = time.monotonic() + 30
    while store._entries and time.monotonic() < end:  # from inside: asking for one would tidy up
        time.sleep(0.1)
    assert not store._entries
