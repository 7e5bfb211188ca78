"""What many use at a time and one replaces."""

import threading
from concurrent.futures import ThreadPoolExecutor

from kvhive.engine.shared import Shared


def test_who_replaces_waits_for_who_uses_and_has_it_alone_then() -> None:
    shared = Shared()
    asked, replaces, may_end = threading.Event(), threading.Event(), threading.Event()

    def replace() -> None:
        asked.set()
        with shared.replaced():
            replaces.set()
            # Whoever replaces it may use it.
            with shared.used():
                assert may_end.wait(30)

    def use() -> bool:
        with shared.used():
            return may_end.is_set()

    with ThreadPoolExecutor(3) as threads:
        with shared.used():
            replacing = threads.submit(replace)
            assert asked.wait(30)
            # Who is in already never waits for who wants to be alone.
            with shared.used():
                assert not replaces.is_set()
        assert replaces.wait(30)
        users = [threads.submit(use) for _ in range(2)]
        may_end.set()
        replacing.result(30)
        assert [user.result(30) for user in users] == [True, True]
        # And again, also after one that fails.
        try:
            with shared.replaced():
                raise ArithmeticError
        except ArithmeticError:
            assert threads.submit(use).result(30)
