"""What an engine is asked and answers, and what of a request is checked before anything waits for it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict

from .config import KVCacheConfig
from .model import Model

#: Tokens of an answer where the request does not say.
_MAX_NEW_TOKENS = 16


class Request(TypedDict):
    """What an engine is asked."""

    #: The prompt.
    text: str
    #: Of requests that wait, those with more come first; 0 where nothing is said.
    priority: NotRequired[int]
    #: What conversation it is a turn of.
    session_id: NotRequired[str]
    #: Whose blocks it may use; only with ``multi_tenant``.
    tenant: NotRequired[str]
    #: Tokens of the answer at most.
    max_new_tokens: NotRequired[int]


class Answer(TypedDict):
    """What an engine answers."""

    #: The text that the model went on with.
    result: str
    #: Whether any block of the prompt was found.
    cache_hit: bool
    #: Milliseconds from the call to the answer.
    latency: float
    #: ``prompt_tokens``, ``cached_tokens``, ``computed_tokens``, ``generated_tokens``, ``waited_ms``, ``priority``, ``tenant``,
    #: ``session_id`` and the ``turn`` of it, and with ``enable_profiling`` milliseconds of each stage in ``profile``.
    metadata: dict[str, Any]


@dataclass
class Job:
    """A request that was looked at and waits, or is being served."""

    text: str
    priority: int
    session_id: str | None
    tenant: str | None
    wanted: int | None
    #: Its place among those that are as urgent.
    number: int
    asked_at: float = field(default_factory=time.perf_counter)
    #: Empty before the prompt was looked at.
    tokens: list[int] = field(default_factory=list)
    max_new_tokens: int = 0


def taken(request: Request, config: KVCacheConfig, number: int) -> Job:
    """Checks what of a request can be checked before its prompt was looked at.

    :raises ValueError: naming what is wrong, its value and what is allowed.
    """
    text, priority = request.get("text"), request.get("priority", 0)
    if not isinstance(text, str):
        raise ValueError(f"text is {text!r}: text is allowed")
    if isinstance(priority, bool) or not isinstance(priority, int) or abs(priority) >= 1 << 32:
        raise ValueError(f"priority is {priority!r}: a whole number is allowed")
    for name in ("session_id", "tenant"):
        if not isinstance(request.get(name), (str, type(None))) or request.get(name) == "":
            raise ValueError(f"{name} is {request.get(name)!r}: text is allowed")
    tenant = request.get("tenant")
    if tenant is not None and not config.multi_tenant:
        raise ValueError(f"tenant is {tenant!r}: an engine with multi_tenant=True knows tenants, this one has none")
    wanted = request.get("max_new_tokens")
    if wanted is not None and (isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1):
        raise ValueError(f"max_new_tokens is {wanted!r}: a whole number above 0 is allowed")
    return Job(text, priority, request.get("session_id"), tenant, wanted, number)


def tokenize(job: Job, model: Model, config: KVCacheConfig) -> None:
    """Looks at a prompt, once.

    :raises ValueError: when it is longer than a request may be.
    """
    if job.tokens:
        return
    tokens = model.tokenize(job.text)
    most = config.max_tokens - len(tokens)
    if most < 1:
        allowed = f"at most {config.max_tokens - 1} of max_tokens={config.max_tokens} are allowed"
        raise ValueError(f"text has {len(tokens)} tokens: {allowed}")
    if job.wanted is not None and job.wanted > most:
        allowed = f"1 to {most} are allowed, with {len(tokens)} tokens of text and max_tokens={config.max_tokens}"
        raise ValueError(f"max_new_tokens is {job.wanted!r}: {allowed}")
    job.tokens, job.max_new_tokens = tokens, job.wanted or min(_MAX_NEW_TOKENS, most)
