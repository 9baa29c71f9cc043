"""A Python with torch and transformers and nothing of ours, started once: programs run in forks of
it.

Starting one and importing both takes seconds, most of what opening an exported folder takes. What a
fork has not imported it lacks as much as a new process does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SERVER = """
import json, os, runpy, sys, traceback
import torch, transformers.models.llama.modeling_llama, transformers.models.qwen2.modeling_qwen2
from transformers import AutoModelForCausalLM, dynamic_module_utils, generation

def run(request):
    for stream in ("stdout", "stderr"):
        getattr(sys, stream).flush()
        opened = os.open(request[stream], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, getattr(sys, stream).fileno())
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    # transformers read it when it was imported
    dynamic_module_utils.HF_MODULES_CACHE = request["env"]["HF_MODULES_CACHE"]
    sys.argv = request["program"]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as stop:
        return stop.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0

answers = os.fdopen(os.dup(1), "w")
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        status = run(json.loads(line))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    answers.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\\n")
    answers.flush()
"""


class StockPython:
    """`run` in place of `subprocess.run` for a command `python -I PROGRAM ...`.

    Args:
        scratch: a folder of its own.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._server: subprocess.Popen[str] | None = None

    def run(
        self, command: Sequence[str], *, env: Mapping[str, str], cwd: str | Path, **_: Any
    ) -> subprocess.CompletedProcess[str]:
        python, isolated, *program = command
        assert (python, isolated) == (sys.executable, "-I")
        files = {name: str(self._scratch / name) for name in ("stdout", "stderr")}
        request = {"program": program, "env": dict(env), "cwd": str(cwd)} | files
        server = self._started()
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        said = [Path(files[name]).read_text() for name in ("stdout", "stderr")]
        return subprocess.CompletedProcess(list(command), status, *said)

    def _started(self) -> subprocess.Popen[str]:
        if self._server is None:
            quiet = {"TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
            self._server = subprocess.Popen(
                [sys.executable, "-I", "-c", SERVER],
                env=os.environ | quiet | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
                cwd=self._scratch,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        return self._server

    def stop(self) -> None:
        if self._server is not None:
            self._server.communicate()
