"""What an engine is asked and answers, and what of a request is checked before anything waits for it."""

from __future__ import annotations

from typing import Any, NotRequired, TypeAlias, TypedDict

from kvhive import MisuseError, WrongTypeError
from kvhive._native import EngineAnswer

from .config import KVCacheConfig

#: A checked request: text, priority, tokens of the answer at most, tenant, session.
Asked: TypeAlias = tuple[str, int, int | None, str | None, str | None]


#: The highest priority, and below zero the lowest.
_PRIORITY = (1 << 32) - 1


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


def text_of(name: str, value: object) -> str:
    """Returns what is text, and can be written as such.

    :raises kvhive.MisuseError: naming what is not, its value and what is allowed.
    """
    if not isinstance(value, str):
        raise WrongTypeError(f"{name} is {value!r}: text is allowed")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise MisuseError(f"{name} has {value[error.start]!r} at {error.start}: half of a character, whole ones are allowed") from None
    return value


def checked(request: Request, config: KVCacheConfig) -> Asked:
    """Checks what of a request can be checked before its prompt is looked at.

    :raises kvhive.MisuseError: naming what is wrong, its value and what is allowed.
    """
    if not isinstance(request, dict):
        raise WrongTypeError(f"a request is {request!r}: a dict is allowed, as in {{'text': 'Hello'}}")
    if unknown := sorted(map(str, request.keys() - Request.__annotations__.keys())):
        raise MisuseError(f"a request has {', '.join(unknown)}: allowed is {', '.join(Request.__annotations__)}")
    text, priority = request.get("text"), request.get("priority", 0)
    text = text_of("text", text)
    if isinstance(priority, bool) or not isinstance(priority, int) or abs(priority) > _PRIORITY:
        raise MisuseError(f"priority is {priority!r}: a whole number from {-_PRIORITY} to {_PRIORITY} is allowed")
    for name in ("session_id", "tenant"):
        given = request.get(name)
        if given is not None and not text_of(name, given):
            raise MisuseError(f"{name} is {given!r}: text is allowed")
    tenant = request.get("tenant")
    if tenant is not None and not config.multi_tenant:
        raise MisuseError(f"tenant is {tenant!r}: an engine with multi_tenant=True knows tenants, this one has none")
    wanted = request.get("max_new_tokens")
    if wanted is not None and (isinstance(wanted, bool) or not isinstance(wanted, int) or not 1 <= wanted < 1 << 32):
        raise MisuseError(f"max_new_tokens is {wanted!r}: a whole number above 0 is allowed")
    return text, priority, wanted, tenant, request.get("session_id")


def told(answer: EngineAnswer, asked: Asked, is_profiled: bool) -> Answer:
    """Says an answer as the engine's callers know it."""
    _, priority, _, tenant, session_id = asked
    metadata: dict[str, Any] = {
        "prompt_tokens": answer.prompt_tokens,
        "cached_tokens": answer.cached_tokens,
        "computed_tokens": answer.prompt_tokens - answer.cached_tokens,
        "generated_tokens": answer.generated_tokens,
        "waited_ms": answer.waited * 1e3,
        "priority": priority,
        "tenant": tenant,
        "session_id": session_id,
        "turn": answer.session_turn,
    }
    if is_profiled:
        metadata["profile"] = {stage: seconds * 1e3 for stage, seconds in answer.stages.items()}
    return {
        "result": answer.text,
        "cache_hit": answer.cached_tokens > 0,
        "latency": answer.took * 1e3,
        "metadata": metadata,
    }
