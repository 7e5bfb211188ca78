"""Requests that wait, and the one thread that serves them: the more urgent first, and of those that are as urgent the earlier."""

from __future__ import annotations

import itertools
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future

from .requests import Answer, Job

#: Requests that may wait.
_WAITING = 16_384


class Turns:
    """Has ``serve`` be called for each, one at a time."""

    def __init__(self, serve: Callable[[Job], Answer]) -> None:
        self._serve = serve
        self._waiting: queue.PriorityQueue[tuple[int, int, Job | None, Future[Answer] | None]] = queue.PriorityQueue()
        self._numbers = itertools.count()
        # Nothing is put behind the end of what waits.
        self._gate = threading.Lock()
        self._is_over = False
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._run, name="kvhive-engine", daemon=True)
        self._thread.start()

    def number(self) -> int:
        """Returns the place of the next one among those that are as urgent."""
        return next(self._numbers)

    def submit(self, job: Job) -> Future[Answer]:
        """Has it wait for its turn."""
        if os.getpid() != self._process:
            raise RuntimeError("this engine is of the process that forked this one: make one here")
        future: Future[Answer] = Future()
        with self._gate:
            if self._is_over:
                raise RuntimeError("the engine has been closed")
            if self._waiting.qsize() >= _WAITING:
                raise RuntimeError(f"{_WAITING} requests wait already")
            self._waiting.put((-job.priority, job.number, job, future))
        return future

    def end(self) -> bool:
        """Serves what waits, and takes nothing more; returns whether that was not so already."""
        with self._gate:
            if self._is_over:
                return False
            self._is_over = True
            # After everything else, whatever its priority.
            self._waiting.put((1 << 62, next(self._numbers), None, None))
        self._thread.join()
        return True

    def _run(self) -> None:
        while True:
            _, _, job, future = self._waiting.get()
            if job is None or future is None:
                return
            if not future.set_running_or_notify_cancel():
                continue
            try:
                answer = self._serve(job)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(answer)
