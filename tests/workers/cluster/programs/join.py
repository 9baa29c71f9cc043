"""Joins the cluster at ADDRESS, an open one too if MODE is `open`, and says how it went."""

from __future__ import annotations

import json
import sys

from pruning.errors import InputError
from workers.cluster.ray_session import joined_ray

address, mode, timeout_s = sys.argv[1:]
try:
    with joined_ray(address, allow_open=mode == "open", timeout_s=float(timeout_s)):
        sys.stdout.write(json.dumps("joined") + "\n")
except InputError as error:
    sys.stdout.write(json.dumps(str(error)) + "\n")
