"""The native half of kvhive; use it through the package's own modules."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, Self, SupportsIndex, TypedDict, TypeVar, final

_T = TypeVar("_T")
_Path = str | os.PathLike[str]

__version__: str

def interpreter_ends() -> None: ...
def serve_gpu_worker() -> None:
    """Makes the calls of NCCL for the node that has started this process, and returns when that has ended."""

@final
class Layout:
    """What a block's bytes mean: its shape, its numbers and the order of its axes."""

    def __init__(
        self,
        *,
        layers: int,
        kv_heads: int,
        head_dim: int,
        tokens: int,
        dtype: str = "float16",
        order: str = "layers-first",
    ) -> None: ...
    @staticmethod
    def opaque(block_bytes: int, tokens: int) -> Layout:
        """Makes a layout of blocks whose bytes mean nothing to anybody but their owner."""
    @property
    def layers(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def order(self) -> str: ...
    @property
    def block_bytes(self) -> int:
        """The bytes of one block."""
    @property
    def fingerprint(self) -> str:
        """What every block of this layout carries, so that it is never taken for one of another."""
    def __hash__(self) -> int: ...
    def __eq__(self, other: object, /) -> bool: ...

@final
class Namespace:
    """Blocks of one tenant, model, layout and rank. Made by a client."""

    @property
    def layout(self) -> Layout: ...
    @property
    def block_bytes(self) -> int:
        """The bytes of one block."""
    def keys(self, tokens: Iterable[SupportsIndex], extras: Sequence[bytes] = ...) -> Prefix:
        """Names every full block of `tokens` (a sequence, or an array of one axis), from token 0. `extras` are what else changes the
        tensors: an adapter's id, hashes of media."""
    def keys_of_hashes(self, hashes: Sequence[bytes]) -> Prefix:
        """Names blocks that an engine has named already, in order from token 0. Its names are keyed into this namespace."""
    def raw_keys(self, keys: Sequence[bytes], *, chained: bool = True) -> Prefix:
        """Takes keys of 32 bytes as they are: chained from token 0, or each on its own. Who makes keys sees to it that no two
        tenants, models or layouts share one."""

@final
class Prefix:
    """Ordered names of blocks, from token 0. Made by a namespace."""

    def __len__(self) -> int: ...
    def first(self, blocks: int) -> Prefix:
        """Names the first `blocks` of them; all, where they are fewer."""
    def traced(self, traceparent: str) -> Prefix:
        """Returns the same prefix for calls that are parts of a trace: what a W3C `traceparent` says."""
    @property
    def keys(self) -> list[bytes]:
        """The keys, 32 bytes each."""

@final
class Match:
    """How far a cluster covers a prefix."""

    @property
    def covered(self) -> int:
        """Blocks from the first on that are there without a gap; they are held for a while, so that they can be fetched."""
    @property
    def unreachable(self) -> int:
        """Devices that nobody could be asked instead of and that would have counted; their blocks count as not covered."""

@final
class FetchReport:
    """What became of a fetch."""

    @property
    def delivered(self) -> int:
        """Blocks from the first on that are in the caller's memory without a gap: as far as it may be used."""
    @property
    def missed(self) -> dict[int, str]:
        """Why a block was not loaded, by its position in the prefix. The memory meant for it is undefined."""

@final
class StoreReport:
    """What became of a store."""

    @property
    def acknowledged(self) -> int:
        """Blocks that as many replicas hold as were asked."""
    @property
    def sent(self) -> int:
        """Blocks that were new to the cluster."""
    @property
    def failed(self) -> dict[int, str]:
        """Why a block was not acknowledged, by its position in the prefix."""

@final
class Operation(Generic[_T]):
    """A call that has not begun, or is under way."""

    def wait(self) -> _T: ...
    def start(self, settle: Callable[[_T | None, BaseException | None], object]) -> None: ...
    def cancel(self) -> None: ...

@final
class EngineAnswer:
    """What an engine answers; times in seconds."""

    @property
    def text(self) -> str: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def cached_tokens(self) -> int: ...
    @property
    def generated_tokens(self) -> int: ...
    @property
    def session_turn(self) -> int | None: ...
    @property
    def waited(self) -> float: ...
    @property
    def took(self) -> float: ...
    @property
    def stages(self) -> dict[str, float]: ...

_Request = tuple[str, int, int | None, str | None, str | None]

@final
class EngineAdvice:
    """What settings serve recent traffic better."""

    @property
    def json(self) -> str: ...

@final
class EnginePause:
    """Keeps an engine from serving until it is resumed."""

    def advise(
        self, target: str, strategy: str, frames: Mapping[int, int], codecs: Sequence[str]
    ) -> Operation[EngineAdvice]: ...
    def take(self, advice: EngineAdvice) -> Operation[None]: ...
    def set_strategy(self, name: str) -> Operation[None]: ...
    def clear(self) -> Operation[None]: ...
    def renew(self, connection: Connection, tenants: Sequence[str]) -> None: ...
    def resume(self) -> None: ...

@final
class Engine:
    """Serves requests with a model, and keeps what it computes: the engine of `kvhive_node`."""

    def __init__(
        self,
        connection: Connection,
        model: object,
        fingerprint: str,
        layout: Layout,
        *,
        max_tokens: int,
        codec: str,
        cache_wait: float,
        pending_bytes: int,
        new_tenants: str,
    ) -> None: ...
    def serve(self, asked: _Request) -> Operation[EngineAnswer]: ...
    def serve_all(self, asked: Sequence[_Request], in_line: int) -> Operation[list[EngineAnswer | BaseException]]: ...
    def covered(self, prompt: str, tenant: str | None) -> Operation[int]: ...
    def end_session(self, name: str) -> Operation[bool]: ...
    def settled(self) -> Operation[None]: ...
    def end(self) -> Operation[None]: ...
    def pause(self) -> Operation[EnginePause]: ...
    def holds(self, connection: Connection) -> None: ...
    def stats(self) -> dict[str, float]: ...

@final
class Connection:
    """A connected client."""

    @staticmethod
    def connect(
        coordinators: Sequence[str],
        token: bytes,
        tls: tuple[_Path, _Path, _Path] | None,
        connect_timeout: float,
        request_timeout: float,
        connections_per_member: int,
        hold: float,
        raw_reads: bool,
        gpu_stages: bool,
        near: str | None,
    ) -> Operation[Connection]: ...
    def namespace(self, tenant: str, model: str, layout: Layout, rank: int) -> Namespace: ...
    def match_prefix(self, prefix: Prefix, timeout: float | None) -> Operation[Match]: ...
    def fetch_into(
        self, prefix: Prefix, targets: object, start: int, timeout: float | None
    ) -> Operation[FetchReport]: ...
    def store_from(
        self,
        prefix: Prefix,
        sources: object,
        start: int,
        ack: str | None,
        codec: str | None,
        about: tuple[int, int, str, int | None],
        timeout: float | None,
    ) -> Operation[StoreReport]: ...
    def release(
        self, prefix: Prefix, hint: str, returns: int | None, timeout: float | None
    ) -> Operation[int]: ...
    def pin(self, prefix: Prefix, name: str, lasts: float | None, reason: str) -> Operation[None]: ...
    def unpin(self, name: str) -> Operation[None]: ...
    def frame_room(self) -> Operation[tuple[int, int] | None]: ...
    def pins(self) -> Operation[list[tuple[str, str, int, float | None, str]]]: ...
    def clear(self, tenant: str) -> Operation[int]: ...
    def create_tenant(self, name: str) -> Operation[None]: ...
    def ensure_tenant(self, name: str, shares_with: str | None) -> Operation[None]: ...
    def set_strategy(self, tenant: str, strategy: str | None) -> Operation[None]: ...
    def refresh(self) -> Operation[int]: ...
    def stats(self) -> list[tuple[str, int]]: ...

@final
class EnginePlanner:
    """What an engine's scheduler says of its requests: which blocks are asked for, promised, loaded and saved."""

    def __init__(
        self,
        *,
        groups: Sequence[tuple[int, int | None]],
        hash_tokens: int,
        ranks: int,
        wait: float,
        asks: int,
        least_tokens: int,
        loads: bool,
        saves: bool,
        known: float,
    ) -> None: ...
    def matched(self, request: str, local: int, tokens: int, hashes: list[bytes]) -> int | None:
        """Says how many tokens there are beyond the first `local`; None while that is not known."""
    def allocated(self, request: str, tables: Sequence[Sequence[int]], tokens: int) -> None:
        """Takes in that a request has been given blocks, into which so many promised tokens are loaded."""
    def scheduled(
        self,
        request: str,
        blocks: Sequence[Sequence[int]] | None,
        is_whole: bool,
        computed: int,
        hashes: list[bytes],
    ) -> None:
        """Takes in a request's part of the step that comes: its whole block table or what is new in it, and what is computed then."""
    def preempted(self, request: str) -> None: ...
    def wished(self, request: str, kind: str, version: str, payload: str, hashes: list[bytes]) -> bool:
        """Takes in what is wished for the blocks of a request that is over; says whether it is one of kvhive's actions."""
    def finished(self, request: str) -> None: ...
    def orders(self) -> bytes:
        """Returns what the workers are told with the step that comes."""
    def heard(self, reports: bytes) -> None:
        """Takes in what one worker answered."""

@final
class EngineCourier:
    """What a worker does for its scheduler: fetches, holds, stores."""

    def __init__(
        self,
        *,
        coordinators: Sequence[str],
        token: bytes,
        tls: tuple[_Path, _Path, _Path] | None,
        tenant: str,
        model: str,
        rank: int,
        groups: Sequence[tuple[int, int | None]],
        hash_tokens: int,
        block_bytes: Sequence[int],
        wait: float,
        asks: int,
        memory: int,
        allocate: Callable[[int], object],
    ) -> None: ...
    @property
    def model(self) -> str:
        """What this worker's blocks are called."""
    def told(self, orders: bytes) -> None: ...
    def loads(self) -> list[tuple[int, list[tuple[Any, int, list[int]]]]]:
        """Returns what is copied into the engine's blocks now: a number, and of each group memory, the first row, and the blocks."""
    def loaded(self, load: int) -> None:
        """Takes in that a load's memory is not read any more."""
    def saves(self) -> list[tuple[int, int, list[int]]]:
        """Returns what is copied out of the engine's blocks now: a number, the group and the blocks."""
    def store(self, save: int, memory: object) -> None:
        """Stores what was copied out."""
    def unsaved(self, save: int) -> None:
        """Takes in that nothing was copied out."""
    def reports(self) -> bytes | None: ...
    def troubles(self) -> list[str]:
        """Returns what went wrong since this was asked last, each by itself."""
    def figures(self) -> list[tuple[str, int]]: ...
    def flush(self, limit: float) -> bool:
        """Waits until nothing is being saved any more; says whether that is so. What still is, `troubles` tells."""

@final
class EngineTier:
    """A secondary tier of an engine's offloading: lookups, stores and loads of single chunks, none of which waits."""

    def __init__(
        self,
        *,
        coordinators: Sequence[str],
        token: bytes,
        tls: tuple[_Path, _Path, _Path] | None,
        tenant: str,
        model: str,
        block_bytes: int,
        wait: float,
    ) -> None: ...
    @property
    def model(self) -> str:
        """What this tier's blocks are called."""
    def lookup(self, name: bytes) -> bool | None:
        """Says whether a chunk is there; None while that is not known."""
    def ask(self) -> None:
        """Puts what is to be asked to the cluster."""
    def store(self, job: int, names: Sequence[bytes], rows: object) -> None: ...
    def load(self, job: int, names: Sequence[bytes], rows: object) -> None: ...
    def wish(self, kind: str, version: str, payload: str, chunks: Sequence[tuple[bytes, int]]) -> bool:
        """Does what is wished for a request's chunks: each by its name, and where its last token is in the request. Returns False for what is
        somebody else's to do."""
    def finished(self) -> list[tuple[int, bool, list[int], float, int]]:
        """Returns the jobs that are over: number, whether all was done, which chunks were, seconds, bytes."""
    def is_busy(self) -> bool: ...
    def drain(self) -> None:
        """Waits until no job is under way."""
    def troubles(self) -> list[str]:
        """Returns what went wrong since this was asked last, each by itself."""

class EngineObjects:
    """A storage plugin of an engine: objects of any length under names, in batches that nobody waits for."""

    def __new__(
        cls,
        *,
        coordinators: Sequence[str],
        token: bytes,
        tls: tuple[_Path, _Path, _Path] | None,
        tenant: str,
        model: str,
        wait: float,
        load: float,
    ) -> Self: ...
    @property
    def model(self) -> str:
        """What these objects are called."""
    def event_fd(self) -> int:
        """Returns a descriptor that can be read from while batches are over of which nobody was told."""
    def submit_batch_get(self, names: Sequence[str], memory: Sequence[object]) -> int:
        """Begins to fetch objects, each into memory of its length; returns the batch's number."""
    def submit_batch_set(self, names: Sequence[str], memory: Sequence[object]) -> int:
        """Begins to store objects; returns the batch's number."""
    def submit_batch_exists(self, names: Sequence[str]) -> int:
        """Begins to ask which objects are there; returns the batch's number."""
    def drain_completions(self) -> list[tuple[int, bool, str, list[bool]]]:
        """Returns the batches that are over: number, whether it was done, what was wrong, and of each object whether it was."""
    def close(self, patience: float) -> None:
        """Has no batch begin any more, waits for those under way for so many seconds, and gives up the others."""
    def troubles(self) -> list[str]:
        """Returns what went wrong since this was asked last, each by itself."""

@final
class EnginePages:
    """Pages of an engine's storage: calls that wait, each no longer than it is told, and that answer page by page."""

    def __init__(
        self,
        *,
        coordinators: Sequence[str],
        token: bytes,
        tls: tuple[_Path, _Path, _Path] | None,
        tenant: str,
    ) -> None: ...
    def open(self, model: str, page_bytes: int) -> int:
        """Opens a shelf for pages of one size, by the name that says what they are; returns its number."""
    def which(self, shelf: int, names: Sequence[bytes], limit: float, run: bool) -> list[bool]:
        """Says of each page whether it is there, within so many seconds. In a run, what is after the first gap may be said to be
        missing without being asked for."""
    def fetch(self, shelf: int, names: Sequence[bytes], rows: object, limit: float) -> list[bool]:
        """Fetches pages, each into a row of memory, within so many seconds; says which came."""
    def store(self, shelf: int, names: Sequence[bytes], rows: object, limit: float) -> list[bool]:
        """Stores pages, each a row of memory, within so many seconds; says which are there."""
    def troubles(self) -> list[str]:
        """Returns what went wrong since this was asked last, each by itself."""
    def figures(self) -> list[tuple[str, int]]: ...
    def close(self) -> None:
        """Ends it: waits for calls under way, and others do nothing from now on."""

def engine_stops(pages: int, pools: Sequence[tuple[int | None, Sequence[bool]]]) -> tuple[list[int], list[int]]:
    """Says where a prefix may stop whose first `pages` pages are there; of each other pool how many pages before a stop it needs, None
    for all of them, and which are there. Returns the stops, and how far each pool goes by itself."""

def engine_fingerprint(engine: str, facts: Sequence[tuple[str, str]]) -> str: ...

class _Nccl(TypedDict):
    program: _Path
    arguments: Sequence[str]
    environment: Sequence[tuple[str, str]]
    after_bytes: int
    guest_bytes: int

class _Setup(TypedDict):
    name: str
    passing: bool
    memory: int
    host_memory: int
    disk: int
    disk_folder: _Path | None
    devices: int
    gpu: int | None
    nccl: _Nccl | None
    block_bytes: Sequence[int]
    block_shares: Sequence[int] | None
    pin_memory: bool
    restore: bytes | None
    mode: str
    strategy: str
    codec: str
    prefetch_blocks: int
    gc_threshold: float | None
    persist_folder: _Path | None
    persist_every: float | None
    coordinators: Sequence[str] | None
    token: bytes | None
    tls: tuple[_Path, _Path, _Path] | None
    listen: str
    advertise: str
    labels: Mapping[str, str]
    io_threads: int

@final
class Node:
    """A node with its devices, and whatever it needs to be a cluster."""

    @staticmethod
    def start(setup: _Setup, timeout: float) -> Node: ...
    @property
    def coordinators(self) -> list[str]: ...
    @property
    def token(self) -> bytes: ...
    @property
    def data_address(self) -> str: ...
    @property
    def metrics_address(self) -> str: ...
    @property
    def admin_address(self) -> str | None: ...
    @property
    def is_serving(self) -> bool: ...
    def stats(self) -> str: ...
    def adjust_strategy(self) -> str: ...
    def persist(self, path: _Path) -> str: ...
    def load(self, path: _Path) -> str: ...
    def stop(self, limit: float) -> None: ...


@final
class Predictor:
    """The coordinator's workload predictor, with a history of its own."""

    def __init__(self) -> None: ...
    @property
    def step_seconds(self) -> int: ...
    def update_pattern(self, at_seconds: int, asked: int, covered: int, new_bytes: int) -> bool: ...
    def forecast(self, steps: int) -> dict[str, dict[str, float]]: ...

def encode(name: str, layout: Layout, raw: object) -> bytes: ...
def decode(name: str, layout: Layout, stored: bytes, raw: object) -> None: ...
def stored_bytes(name: str, layout: Layout) -> int | None: ...
def replay(requests: Sequence[Sequence[bytes]], strategy: str, capacity: int) -> list[int]: ...
