"""What a caller may do differently about a call that failed, one class for each. All are `KvHiveError`s, and where Python has a
class for the same thing they are that too. A block that is not there is no error: it is in the call's report."""

import builtins


class KvHiveError(Exception):
    """Any failure of a call as a whole."""


class MisuseError(KvHiveError, ValueError):
    """The arguments do not fit together; the message says which and what is allowed."""


class WrongTypeError(MisuseError, TypeError):
    """An argument of a type that is not allowed."""


class OutOfRangeError(MisuseError, OverflowError):
    """A number that is not allowed."""


class BadBufferError(KvHiveError, builtins.BufferError):
    """Memory that cannot be used so: read-only, not contiguous, of the wrong size, on another device, or no memory at all."""


class BufferInUseError(BadBufferError):
    """Another call of this process uses the memory: wait until it is done."""


class GpuError(KvHiveError):
    """A GPU, or its driver, did not copy what a call brought or took; the message has the driver's own words."""


class UnreachableError(KvHiveError, ConnectionError):
    """Nobody answered in time. For a serving engine this is a miss: compute, and go on."""


class RefusedError(KvHiveError):
    """The cluster refused, for a reason that a repeat does not change."""


class UnauthorizedError(RefusedError, PermissionError):
    """The token is wrong, or may not do this."""


class UnknownTenantError(RefusedError, LookupError):
    """The cluster has no such tenant."""


class BusyError(KvHiveError):
    """Too much is under way: repeat later."""


class TlsError(KvHiveError):
    """Certificates that cannot be used, or that the other end does not accept."""


class ClosedError(KvHiveError, RuntimeError):
    """The client, node or engine was closed, or belongs to the process that this one was forked from."""


class NodeError(KvHiveError):
    """An embedded node did not start, or has ended by itself."""


class NodeSetupError(NodeError, ValueError):
    """An embedded node's setup makes no sense; the message says what is allowed."""


class PersistError(NodeError, OSError):
    """A snapshot cannot be written or read."""
