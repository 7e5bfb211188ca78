"""kvhive inside vLLM: prefixes that any engine of a fleet has computed are loaded by the others.

`kvhive.vllm.connector` holds the connector that `--kv-transfer-config` names, `kvhive.vllm.tier` a tier behind vLLM's own offloading. The page `docs/integrate/vllm.md` shows it at work.
"""
