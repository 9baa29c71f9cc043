"""What a webhook is told, by a server of this process."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli.notice import VARIABLE, Notice
from tests.conftest import ROOT
from tests.pipelines.command import run_command
from tests.pipelines.conftest import Search
from tests.tiny_search import LONG, places, tiny_search

SECRET = "T0/B0/very-secret"


class Webhook(HTTPServer):
    """Keeps what it is told; refuses the first so many."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.told: list[dict[str, Any]] = []
        self.refuses = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hooks/{SECRET}"


class Handler(BaseHTTPRequestHandler):
    server: Webhook

    def do_POST(self) -> None:
        assert self.path == f"/hooks/{SECRET}"
        assert self.headers["Content-Type"] == "application/json"
        self.server.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        refused = len(self.server.told) <= self.server.refuses
        self.send_response(503 if refused else 200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    server = Webhook()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv(VARIABLE, server.url)
    monkeypatch.setattr("pipelines.cli.notice._WAIT_S", 0.0)
    yield server
    server.shutdown()
    server.server_close()


def test_a_search_that_ended(webhook: Webhook, search: Search) -> None:
    outcome = search()
    [told] = webhook.told
    assert (told["command"], told["end"], told["message"]) == ("prune", "done", "")
    assert told["output_dir"] == str(outcome.folder)
    first, gone, folder = told["text"].splitlines()
    assert first.startswith("multipruner prune done after ")
    pair = outcome.summary["perplexity"]["heldout"]
    assert gone == (
        f"{outcome.summary['model']}: {100 * outcome.summary['ratio']:.1f} % of the parameters "
        f"gone, heldout perplexity {pair['dense']:.2f} to {pair['pruned']:.2f}"
    )
    assert folder == f"in {outcome.folder}"
    left = "".join(
        path.read_text(errors="replace") for path in outcome.folder.rglob("*") if path.is_file()
    )
    assert SECRET not in left + outcome.output, "neither saved nor logged"


def test_a_search_that_failed(webhook: Webhook, search: Search) -> None:
    """With what the person at the terminal reads, and no password in it."""
    url = "postgresql+psycopg://me:hush-hush@127.0.0.1:1/scores"
    outcome = search("store.url=" + url)
    assert outcome.status == 2
    [told] = webhook.told
    assert (told["end"], told["output_dir"]) == ("failed", None)
    assert told["message"] in outcome.output.replace("error: ", "")
    assert "store.url" in told["text"]
    assert "hush-hush" not in json.dumps(told)


def test_an_error_that_nobody_foresaw(webhook: Webhook) -> None:
    notice = Notice("sweep", ["http://me:hush-hush@host/x"])
    notice.send("failed", f"KeyError: http://me:hush-hush@host/x and {webhook.url}")
    assert webhook.told[0]["message"] == "KeyError: http://me:***@host/x and ***"


def test_a_search_that_is_stopped(
    webhook: Webhook, tmp_path: Path, checkpoint_folder: Path, token_file: Path
) -> None:
    words = tiny_search(checkpoint_folder, token_file, *LONG)
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.prune", *words, *places(tmp_path),
         f"output_dir={tmp_path}/run"],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    while not (tmp_path / "run" / "trajectory.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    [told] = webhook.told
    assert told["end"] == "stopped"
    assert "stopped by SIGTERM" in told["text"]
    assert "To go on: multipruner prune resume=true" in told["message"]


def test_it_is_tried_again(webhook: Webhook) -> None:
    webhook.refuses = 2
    Notice("prune").send("done", "")
    assert len(webhook.told) == 3
    webhook.told.clear()
    Notice("prune").send("stopped", "")
    assert len(webhook.told) == 1, "whoever stops a command does not wait for long"


@pytest.mark.parametrize("port", [None, 9])
def test_a_webhook_that_does_not_answer_is_a_warning(
    webhook: Webhook,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    port: int | None,
) -> None:
    webhook.refuses = 99
    if port is not None:
        monkeypatch.setenv(VARIABLE, f"http://127.0.0.1:{port}/hooks/{SECRET}")
    with caplog.at_level(logging.WARNING):
        Notice("prune").send("done", "")
    assert f"{VARIABLE}: 127.0.0.1 did not take the message: " in caplog.text
    assert ("HTTP status 503" if port is None else "Connection refused") in caplog.text
    assert SECRET not in caplog.text


def test_a_quick_command_tells_nobody(webhook: Webhook, tmp_path: Path) -> None:
    outcome = run_command("plan", "search.target_ratio=0.2", f"output_dir={tmp_path}")
    assert outcome.status == 0, outcome.output
    Notice("status").send("done", "")
    assert webhook.told == []


@pytest.mark.parametrize(
    "value", [f"hooks.example.com/{SECRET}", "ftp://a/b", "https://", "http://["]
)
def test_an_address_that_is_none(
    monkeypatch: pytest.MonkeyPatch, search: Search, value: str
) -> None:
    """Before anything starts, without repeating it."""
    monkeypatch.setenv(VARIABLE, value)
    outcome = search()
    assert outcome.status == 2
    assert outcome.errors == [
        f"error: {VARIABLE}: not the address of a web server; give one that begins with https:// "
        "or http://, or unset it"
    ]
    assert SECRET not in outcome.output
