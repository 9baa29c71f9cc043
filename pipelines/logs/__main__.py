"""Entry of `python -m pipelines.logs`."""

from __future__ import annotations

from pipelines.cli.signals import exit_on_signals

if __name__ == "__main__":
    with exit_on_signals():
        from pipelines.jobs.command import show_logs

        show_logs()
