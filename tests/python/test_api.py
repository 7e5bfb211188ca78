"""The admin API against its own document: schemathesis draws requests from `/openapi.json`, right ones and wrong ones, and no
answer may be a server's fault or differ from what is documented. Run by `scripts/test api`."""

import json
import os
import subprocess
import sys
import tempfile
import unittest
import urllib.request

from cluster import Cluster

SCHEMATHESIS = os.path.join(os.path.dirname(sys.executable), "schemathesis")
# Requests of each operation in its second phase; the first one walks every parameter's bounds.
EXAMPLES = os.environ.get("KVHIVE_API_EXAMPLES", "25")
# What a schema cannot say (either tokens or hashes; a floor below the ceiling; 3.0 is no integer here) is refused with 400.
NOT_CHECKED = "positive_data_acceptance"


class Api(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        shape = ["--coordinators", "3", "--nodes", "2", "--devices", "1"]
        cls.cluster = Cluster(cls, *shape, "--device-memory", "16MiB", "--host-memory", "16MiB")

    def draw(self, *which):
        """Draws requests of the operations that are chosen, and fails with what schemathesis found."""
        with tempfile.TemporaryDirectory(prefix="kvhive-api-") as folder:
            document = os.path.join(folder, "openapi.json")
            head = {"Authorization": f"Bearer {self.cluster.token}"}
            request = urllib.request.Request(f"{self.cluster.admin[0]}/openapi.json", headers=head)
            with urllib.request.urlopen(request, timeout=20) as answer, open(document, "wb") as file:
                file.write(answer.read())
            command = [SCHEMATHESIS, "run", document, "--url", self.cluster.admin[0], *which]
            command += ["--header", f"Authorization: Bearer {self.cluster.token}"]
            command += ["--phases", "coverage,fuzzing", "--max-examples", EXAMPLES, "--exclude-checks", NOT_CHECKED]
            command += ["--request-timeout", "30", "--continue-on-failure", "--no-color", "--seed", "4"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertNotIn("Errored", done.stdout)

    def test_1_every_answer_is_as_documented(self):
        # The stream of events has no end; the group is changed by the test after this one.
        self.draw("--exclude-path-regex", "/v1/events/stream|/v1/raft/.+")
        self.assertEqual(len(json.loads(self.cluster.kvhive("status", "--json"))["nodes"]), 2)

    def test_2_so_is_every_answer_about_the_group_of_coordinators(self):
        self.draw("--include-path-regex", "/v1/raft/.+")
        # Whatever was asked for, a majority is left that leads.
        self.assertTrue(json.loads(self.cluster.kvhive("status", "--json"))["leader"])


if __name__ == "__main__":
    unittest.main(verbosity=2)
