"""Serves one request: the longest prefix that anyone has computed is found, a model computes the rest, and what is new is stored."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvhive import KvHiveError, Layout, Namespace, Prefix
from kvhive.codec import Codec, decode, encode

from .backing import Backing, frames_of
from .behind import Behind
from .config import KVCacheConfig
from .figures import Figures
from .history import History, Served
from .model import Model
from .profile import Profile
from .requests import Answer, Job
from .sessions import Sessions
from .tensors import KV, Growing, storage_dtype

#: Blocks that may wait to be stored, in bytes.
_PENDING_BYTES = 512 << 20
#: Codecs that bring back what was stored, bit by bit.
EXACT = ("raw", "lossless")


class Serving:
    """A model, and the cache of what it has computed. One request at a time, under the backing's lock.

    A cache that fails costs time and never an answer: what cannot be found is computed.
    """

    def __init__(self, config: KVCacheConfig, model: Model, figures: Figures) -> None:
        self._config = config
        self._model = model
        self._figures = figures
        self.layout = Layout(
            layers=config.num_layers,
            kv_heads=config.num_heads,
            head_dim=config.head_dim,
            tokens=config.block_size,
            dtype=config.dtype,
        )
        self.backing = Backing(config, frames_of(config, self.layout), folder="kvhive-engine")
        #: How new blocks are stored.
        self.codec: Codec = config.codec
        self.history = History()
        self._behind: Behind[KV] | None = Behind(_PENDING_BYTES) if config.non_blocking else None
        self._sessions = Sessions()
        self._last: Prefix | None = None

    def flush(self) -> None:
        """Waits until what was computed so far is stored."""
        if self._behind is not None:
            self._behind.wait()

    def close(self) -> None:
        """Stores what waits, persists where that is wanted, and gives the memory back, whatever of it fails."""
        try:
            if self._behind is not None:
                self._behind.close()
        finally:
            self.backing.close({})

    def prefix_of(self, text: str, tenant: str | None) -> Prefix:
        """Names the full blocks of a prompt."""
        return self._namespace(tenant).keys(self._whole(self._model.tokenize(text)))

    def end_session(self, session_id: str) -> bool:
        """Says that a conversation is over; returns whether it was known."""
        is_known, prefix = self._sessions.end(session_id)
        if prefix is not None and len(prefix):
            with self._failing():
                self.backing.client.release(prefix, "over")
        return is_known

    def serve(self, job: Job) -> Answer:
        """Answers a request whose prompt was looked at."""
        config, tokens = self._config, job.tokens
        begun = time.perf_counter()
        profile = Profile()
        prefix = self._prefix(job)
        kv = Growing(config, len(tokens) + job.max_new_tokens)
        # The last token is computed in any case: the answer begins with what the model makes of it.
        most = (len(tokens) - 1) // config.block_size
        found, fetched = self._find(prefix, most, kv, profile) if prefix is not None else (0, 0)
        new: list[_New] = []
        logits = None
        block_seconds = 0.0
        with profile.stage("compute"):
            for begin in range(found * config.block_size, len(tokens), config.block_size):
                piece = tokens[begin : begin + config.block_size]
                piece_begun = time.perf_counter()
                more, logits = self._model.prefill(piece, kv.filled)
                if len(piece) == config.block_size:
                    new.append(self._new(more))
                    more = new[-1].comes_back
                    block_seconds += time.perf_counter() - piece_begun
                kv.append(more)
        answer: list[int] = []
        with profile.stage("generate"):
            while logits is not None:
                token = int(np.argmax(logits))
                if self._model.is_end(token):
                    break
                answer.append(token)
                if len(answer) == job.max_new_tokens:
                    break
                more, logits = self._model.decode(token, kv.filled)
                kv.append(more)
        with profile.stage("store"):
            if prefix is not None:
                self._keep(prefix, new, found, len(tokens), len(answer))
        turn = self._sessions.turn(job.session_id, prefix) if job.session_id is not None else None
        ended = time.perf_counter()
        latency = (ended - job.asked_at) * 1e3
        cached = found * config.block_size
        self._figures.served(latency, len(tokens), cached, len(answer))
        fetch_seconds, store_seconds = profile.seconds["fetch"], profile.seconds["store"]
        self._last = prefix
        self.history.add(
            Served(
                keys=prefix.keys if prefix is not None else [],
                most=most,
                compute_seconds=block_seconds / len(new) if new else None,
                fetch_seconds=fetch_seconds / fetched if fetched else None,
                store_seconds=store_seconds / len(new) if new else None,
                rest_seconds=(ended - begun) - block_seconds - fetch_seconds - store_seconds,
            )
        )
        metadata: dict[str, Any] = {
            "prompt_tokens": len(tokens),
            "cached_tokens": cached,
            "computed_tokens": len(tokens) - cached,
            "generated_tokens": len(answer),
            "waited_ms": (begun - job.asked_at) * 1e3,
            "priority": job.priority,
            "tenant": job.tenant,
            "session_id": job.session_id,
            "turn": turn,
        }
        if config.enable_profiling:
            metadata["profile"] = profile.milliseconds()
        return {"result": self._model.detokenize(answer), "cache_hit": found > 0, "latency": latency, "metadata": metadata}

    def _prefix(self, job: Job) -> Prefix | None:
        """Names a prompt's blocks; None where the cache does not know the tenant and cannot be told."""
        with self._failing():
            return self._namespace(job.tenant).keys(self._whole(job.tokens))
        return None

    def _whole(self, tokens: Sequence[int]) -> Sequence[int]:
        """Returns the tokens that fill blocks."""
        return tokens[: len(tokens) // self._config.block_size * self._config.block_size]

    def _namespace(self, tenant: str | None) -> Namespace:
        # Blocks that were rounded are never taken for others.
        rounding = "" if self.codec in EXACT else f"+{self.codec}"
        return self.backing.namespace(self._model.fingerprint + rounding, self.layout, tenant)

    def _find(self, prefix: Prefix, most: int, kv: Growing, profile: Profile) -> tuple[int, int]:
        """Takes the longest prefix that is there, of at most so many blocks; returns how many they are, and how many of them were
        fetched rather than still here."""
        blocks = min(most, len(prefix))
        if not blocks:
            return 0, 0
        # Looked at before the cache is asked: what leaves it meanwhile is there by then.
        waiting = self._behind.find(prefix.keys[:blocks]) if self._behind is not None else {}
        fetched = 0
        wanted = prefix.first(blocks)
        with self._failing():
            with profile.stage("match"):
                covered = self.backing.client.match(wanted).covered
            if covered:
                with profile.stage("fetch"):
                    room = self._room(covered)
                    fetched = self.backing.client.fetch_into(wanted, room).delivered
                    for block in room[:fetched]:
                        kv.append(block)
        found = fetched
        for key in prefix.keys[found:blocks]:
            block = waiting.get(key)
            if block is None:
                break
            kv.append(block)
            found += 1
        return found, fetched

    def measure_fetch(self) -> float | None:
        """Fetches what is there of the last prompt once more; returns seconds of a block, None where nothing came."""
        if self._last is None:
            return None
        try:
            covered = self.backing.client.match(self._last).covered
            begun = time.perf_counter()
            came = self.backing.client.fetch_into(self._last.first(covered), self._room(covered)).delivered if covered else 0
        except KvHiveError:
            return None
        return (time.perf_counter() - begun) / came if came else None

    def _room(self, blocks: int) -> KV:
        config = self._config
        shape = (blocks, config.num_layers, 2, config.block_size, config.num_heads, config.head_dim)
        return np.empty(shape, storage_dtype(config.dtype))

    def _new(self, computed: KV) -> _New:
        """Makes a block of what was computed. The request goes on with it as it will come back, so that an answer does not depend on
        who computed its prompt."""
        # A copy: the model may use its memory again before the block is stored.
        block = np.array(computed, order="C", copy=True)
        self.history.add_block(block)
        if self.codec in EXACT:
            return _New(block, block)
        back = np.empty_like(block)
        decode(self.codec, self.layout, encode(self.codec, self.layout, block), back)
        return _New(block, back)

    def _keep(self, prefix: Prefix, blocks: list[_New], start: int, prompt_tokens: int, answer_tokens: int) -> None:
        """Stores new blocks: now, or after what waits to be stored."""
        if not blocks:
            return
        codec, client = self.codec, self.backing.client

        def store() -> None:
            with self._failing():
                client.store_from(
                    prefix,
                    [block.computed for block in blocks],
                    start,
                    codec=codec,
                    input_tokens=prompt_tokens,
                    output_tokens=answer_tokens,
                )

        if self._behind is None:
            store()
            return
        keys = prefix.keys[start : start + len(blocks)]
        waiting = dict(zip(keys, (block.comes_back for block in blocks), strict=True))
        self._behind.add(waiting, len(blocks) * self.layout.block_bytes, store)

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Goes on without the cache where it fails."""
        try:
            yield
        except KvHiveError:
            self._figures.failed()


@dataclass(frozen=True)
class _New:
    """A block that was computed, and as it comes back from the cache."""

    computed: KV
    comes_back: KV
