"""How the process is started that makes a GPU's calls of NCCL: they may never return, and a process can be ended."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from kvhive import _native
from kvhive.errors import NodeSetupError

if TYPE_CHECKING:
    from kvhive._native import _Nccl

#: Loads the native module alone, from its file: neither the package nor whatever a site has imported takes time or memory there.
_PROGRAM = """
import sys
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("kvhive._native", sys.argv[1])
native = module_from_spec(spec)
spec.loader.exec_module(native)
native.serve_gpu_worker()
"""

#: Names NCCL's file to whoever is to load it.
_VARIABLE = "KVHIVE_NCCL"


#: Whether blocks go by NCCL, which encrypts nothing: where the cluster's channels are not encrypted, not at all, or also where they are.
Use = Literal["auto", "off", "unencrypted"]


def setup(use: Use, is_encrypted: bool, after_bytes: int, guest_bytes: int) -> _Nccl | None:
    """Returns what a node with a GPU is told of NCCL; None where it is to do without, or has nothing to start a process by."""
    if not is_on(use, is_encrypted):
        return None
    if not sys.executable:
        warnings.warn("sys.executable is empty: nothing goes by NCCL, blocks go over TCP", RuntimeWarning, stacklevel=3)
        return None
    library = brought()
    return {
        "program": sys.executable,
        "arguments": ["-S", "-P", "-c", _PROGRAM, _native.__file__],
        "environment": [(_VARIABLE, str(library))] if library is not None and _VARIABLE not in os.environ else [],
        "after_bytes": after_bytes,
        "guest_bytes": guest_bytes,
    }


def is_on(use: Use, is_encrypted: bool) -> bool:
    """Says whether blocks go by NCCL where there is some.

    :raises kvhive.NodeSetupError: when it is no word for that.
    """
    if use not in get_args(Use):
        raise NodeSetupError(f"nccl {use!r}: allowed is {', '.join(map(repr, get_args(Use)))}")
    return use == "unencrypted" or (use == "auto" and not is_encrypted)


def brought() -> Path | None:
    """Returns the file of NCCL that a package has brought, as those that torch needs do: no loader finds it by itself."""
    for folder in sys.path:
        file = Path(folder, "nvidia", "nccl", "lib", "libnccl.so.2")
        if file.is_file():
            return file
    return None
