"""Thousands of requests made from the app's own OpenAPI document: `python -m tests.trust.fuzz_api SCHEMATHESIS [COUNT]`. # S4.8

Schemathesis is a program of its own here (a client needs no torch): the first argument is where it lies. Exit code 1 if any
answer is a 5xx, has a status or a form that the document does not name, or is given to one who has no token.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.apps.test_api import TOKEN, Api
from tests.tracer.synthetic import make_trace

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "ignored_auth",
)


def main(program: str, count: str = "1000") -> int:
    """Serve two traces, fuzz, return the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        full = make_trace(Path(folder) / "run", steps=60, features=8, inputs=64, seal=False, nan_at=7)
        bare = Path(folder) / "bare"
        make_trace(bare, steps=3, features=4, inputs=6, weights=False, captures=False, seal=False, seed=1)
        api = Api(full.path, bare)
        where = f"http://127.0.0.1:{api.port}/debug/openapi.json"
        command = [
            str(Path(program).absolute()),
            "run",
            where,
            "-H",
            f"Authorization: Bearer {TOKEN}",
            "--checks",
            ",".join(CHECKS),
        ]
        done = subprocess.run([*command, "--max-examples", count, "--no-color"], cwd=folder, check=False)
        api.close()
        return done.returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
