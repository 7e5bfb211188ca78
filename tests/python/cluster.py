"""A cluster of real processes on loopback, which ends with the test that began it."""

import json
import os
import subprocess
import tempfile

KVHIVE = os.environ["KVHIVE_BIN"]


def kvhive(folder, *words):
    done = subprocess.run([KVHIVE, *words, "--dir", folder], capture_output=True, text=True, timeout=240)
    if done.returncode != 0:
        raise AssertionError(f"kvhive {' '.join(words)}: {done.stderr}")
    return done.stdout


class Cluster:
    """Started for a whole `unittest.TestCase`: where it is, where its admin APIs are, and the token that opens them."""

    def __init__(self, case, *options):
        self.folder = tempfile.mkdtemp(prefix="kvhive-python-")
        case.addClassCleanup(subprocess.run, ["rm", "-rf", self.folder], check=True)
        case.addClassCleanup(subprocess.run, [KVHIVE, "down", "--dir", self.folder], capture_output=True)
        self.kvhive("up", "--detach", *options)
        with open(os.path.join(self.folder, "running.json"), encoding="utf-8") as running:
            self.admin = json.load(running)["admin_urls"]
        with open(os.path.join(self.folder, "token"), encoding="utf-8") as token:
            self.token = token.read().strip()

    def kvhive(self, *words):
        return kvhive(self.folder, *words)
