"""kvhive behind LMCache: what any LMCache server of a fleet has stored is loaded by the others.

Two ways for `--l2-adapter`: `kvhive.lmcache.adapter` holds the adapter for `"type": "plugin"`, which knows how each object is laid out, and `KvHiveL2` here is the native connector for `"type": "native_plugin"`, which is told. The page `docs/integrate/lmcache.md` shows them at work.
"""

from kvhive.lmcache.native import KvHiveL2

__all__ = ["KvHiveL2"]
