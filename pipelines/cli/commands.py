"""The commands: what each does, in one line and in a few, and three examples of it."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from pipelines.config.overrides import as_override

PROGRAM = "multipruner"


@dataclass(frozen=True, slots=True)
class Command:
    """One command, as a person reads about it.

    Args:
        summary: one line.
        description: what it takes and what comes out.
        examples: the words behind the command's name, and what they do.
        usage: the words that it takes.
        flags: words without a value that it takes, and what they do.
    """

    name: str
    summary: str
    description: str
    examples: tuple[tuple[str, str], ...]
    usage: str = "[NAME=VALUE ...]"
    flags: tuple[tuple[str, str], ...] = ()


_ADDRESS = (
    "--address",
    "HOST:PORT of the cluster's dashboard, or its https URL [default RAY_API_SERVER_ADDRESS]",
)

COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        Command(
            "prune",
            "search what to remove from a model",
            "Removes residual blocks, then MLP channels, then attention heads from a pretrained "
            "model, at each step what raises the perplexity of a calibration text least, until "
            "search.target_ratio of all parameters is gone; with search=allocation the sizes of "
            "all blocks at once, for targets in other costs too. Writes the pruned shape and the "
            "whole path that led to it; evaluates and exports the pruned model on request. A "
            "search that was stopped goes on with resume=true output_dir=DIR.",
            (
                ("experiment=demo", "SmolLM2-135M to ratio 0.10, in minutes on a laptop"),
                (
                    "model.path=MODEL calibration=alpaca search.target_ratio=0.2 output_dir=DIR",
                    "a model of your own, on the text of the paper",
                ),
                (
                    "model.path=MODEL recovery=lora evaluation=full export=gguf output_dir=DIR",
                    "search, train what is left, measure it, and write it as a checkpoint",
                ),
            ),
        ),
        Command(
            "plan",
            "what a search or a sweep would take",
            "Steps, evaluations, FLOPs, memory and time of a search, from the configuration of the "
            "model alone: a folder with config.json is enough. The rate of an evaluator is "
            "measured for five seconds where none is given. Takes the options of prune, and lists "
            "of values as sweep does.",
            (
                ("model.path=MODEL search.target_ratio=0.22", "one search"),
                (
                    "model.path=MODEL search.target_ratio=[0.07,0.10,0.15]",
                    "a sweep, what its points share paid for once",
                ),
                (
                    "model.path=MODEL rate_of=outputs/earlier cluster.num_evaluators=8",
                    "hours on eight evaluators as fast as those of an earlier search",
                ),
            ),
        ),
        Command(
            "sweep",
            "many searches as one experiment",
            "Runs one search for every combination of values, on one pool of evaluators; what two "
            "points have in common is scored once. Any option of model, calibration and search "
            "that takes one value may be given a list, and so may the groups. The same command "
            "goes on with what is missing.",
            (
                (
                    "search.target_ratio=[0.07,0.10,0.15] output_dir=DIR",
                    "three targets; the shorter searches are parts of the longest",
                ),
                (
                    "search=[multipruner,blockpruner,shortgpt] output_dir=DIR",
                    "three methods at the same target",
                ),
                (
                    "experiment=sweep/smollm2 output_dir=DIR",
                    "the sweep behind a page of results",
                ),
            ),
        ),
        Command(
            "solve",
            "other shapes from the table that an allocation measured",
            "Solves the integer program of search=allocation again for other targets, from the "
            "folder of a run that has ended: parameters, FLOPs, KV-cache bytes or milliseconds, "
            "several at once, under constraints. Evaluates nothing and needs no GPU. Writes shapes "
            "that evaluate and export take, and what their KL is predicted to be, or extrapolated.",
            (
                ("run=DIR search.target_ratio=0.3 output_dir=SOLVED", "another ratio"),
                (
                    "run=DIR search.target_ratio=[0.1,0.15,0.2] output_dir=SOLVED",
                    "three ratios, a folder for each",
                ),
                (
                    "run=DIR search.target.parameters=0.2 search.target.kv_cache=0.1",
                    "two costs at once",
                ),
            ),
        ),
        Command(
            "latency",
            "how long each block takes at each size, on this device",
            "Times the attentions and the MLPs of a model at several sizes, in the prefill and in "
            "the decoding, on one evaluator that does nothing else. Writes a table with which "
            "solve reaches a target in time, and a picture that shows which widths are no faster "
            "than wider ones.",
            (
                ("model.path=MODEL output_dir=DIR", "a batch of one, in steps of about an eighth"),
                (
                    "model.path=MODEL batch_size=8 prompt_tokens=2048 width_step=256",
                    "another load, in finer steps",
                ),
                (
                    "model.path=MODEL widths=[4096,5000,5056,5120]",
                    "widths that are no multiples of 64 or 128, beside some that are",
                ),
            ),
        ),
        Command(
            "recover",
            "a short training that gives back what pruning took",
            "Trains low-rank adapters on the pruned model of a search that has ended, or of a "
            "shape file, with recovery=full its matrices, by default to say what the dense model "
            "says, and stops when held-out text gains nothing any more. The folder that it writes "
            "is taken by evaluate and export as that of a search is. With plan=true it says what "
            "that would take. A recovery that was stopped goes on when the same command is given "
            "again.",
            (
                ("run=DIR", "on more of the text that the search saw, in DIR/recovery"),
                (
                    "run=DIR calibration=alpaca recovery.steps=1000 output_dir=RECOVERED",
                    "on another text, for longer",
                ),
                (
                    "shape=SOLVED/shape.json model.path=MODEL calibration=mix output_dir=RECOVERED",
                    "a shape of solve, or of your own",
                ),
            ),
        ),
        Command(
            "evaluate",
            "benchmarks, perplexity and cost of a model",
            "Measures a pruned model beside its dense one: lm-eval's tasks, token perplexity, and "
            "what the model costs in memory and time. Writes evaluation.json and evaluation.csv. "
            "An evaluation that was stopped goes on when the same command is given again.",
            (
                ("run=DIR", "the shape that a search came to, on the papers' zero-shot tasks"),
                (
                    "run=DIR evaluation=full",
                    "the same, and token perplexity of WikiText-2",
                ),
                (
                    "checkpoint=EXPORTED evaluation.tasks=[piqa] evaluation.limit=100",
                    "an exported folder, on part of one task",
                ),
            ),
        ),
        Command(
            "export",
            "write a pruned model as a checkpoint",
            "Writes the result of a search in a format that other software opens, and checks in a "
            "fresh process that it computes the same as the search's own model.",
            (
                ("run=DIR", "for transformers, in the run's folder"),
                ("run=DIR format=gguf output_dir=FILES", "for llama.cpp"),
                (
                    "shape=shape.json model.path=MODEL importance=l1 output_dir=FILES",
                    "a shape without its run",
                ),
            ),
        ),
        Command(
            "report",
            "compare searches on one page",
            "Writes report.html, which opens from disk without a network: which run is the best "
            "and why, then curves, what remains of every layer, near-ties, how far the searches "
            "agree. Reads the folders of searches and sweeps only; needs neither model nor GPU.",
            (
                ("outputs/first outputs/second --open", "two searches, shown in the browser"),
                ("outputs/my-sweep output_dir=DIR", "all points of a sweep"),
                (
                    "outputs/first outputs/second log_to_mlflow=false output_dir=DIR",
                    "without adding the page to the runs in MLflow",
                ),
            ),
            usage="RUN ... [--open] [NAME=VALUE ...]",
        ),
        Command(
            "reproduce",
            "compare with published results",
            "Compares what an experiment expects with what comes out here, and says of each figure "
            "whether it is within its tolerance. Exit status 1: one is not. Takes the options of "
            "prune, too.",
            (
                (
                    "experiment=multipruner/llama2_7b_22",
                    "counts: seconds, without weights or network",
                ),
                (
                    "experiment=multipruner/llama2_7b_22 mode=shape model.path=MODEL",
                    "the published shape, measured on the real model",
                ),
                (
                    "record=DIR record_as=mine/first",
                    "make an experiment of a search of your own",
                ),
            ),
        ),
        Command(
            "status",
            "how far a search or a recovery is",
            "Shows how far a search or a recovery is, what evaluators are doing, and what went "
            "wrong so far. Reads files in the run's folder only, so it works from any machine that "
            "sees them.",
            (
                ("outputs/my-search", "once"),
                ("outputs/my-search --watch", "until the search ends"),
                ("outputs/my-search --json", "for a program"),
            ),
            usage="OUTPUT_DIR [--watch] [--json]",
            flags=(
                ("--watch", "show it until the search ends"),
                ("--json", "print it for a program"),
            ),
        ),
        Command(
            "submit",
            "run a command as a job of a Ray cluster",
            "Takes prune, sweep, solve, latency, recover, evaluate or export with their options, "
            "says what will run (the plan of a search: evaluations, memory, hours where "
            "tflops_per_evaluator or rate_of is given), asks, and starts it as a job on the "
            "cluster, with cluster=ray unless the options say otherwise. The code and the "
            "environment are the cluster's. A job that dies goes on when the same command is "
            "given again.",
            (
                (
                    "--address HEAD:8265 prune experiment=demo store=postgresql "
                    "output_dir=/nfs/demo",
                    "a search; results and scores outlive the cluster",
                ),
                (
                    "--address HEAD:8265 --yes evaluate run=/nfs/demo store=postgresql",
                    "the measurement of its result, without being asked",
                ),
                (
                    "prune model.path=MODEL tflops_per_evaluator=150 store=postgresql "
                    "output_dir=DIR",
                    "hours in the plan; the address is in RAY_API_SERVER_ADDRESS",
                ),
            ),
            usage="[--address HOST:PORT] [--yes] COMMAND [NAME=VALUE ...]",
            flags=(_ADDRESS, ("--yes", "submit without asking")),
        ),
        Command(
            "jobs",
            "jobs that were submitted to a Ray cluster",
            "Lists what multipruner submit started on a cluster, with its state and its folder.",
            (
                ("--address HEAD:8265", "those of this cluster"),
                ("--address https://ray.example.org", "behind a proxy with TLS"),
                ("", "the address is in RAY_API_SERVER_ADDRESS"),
            ),
            usage="[--address HOST:PORT]",
            flags=(_ADDRESS,),
        ),
        Command(
            "logs",
            "what a submitted job wrote",
            "Prints the log of a job's driver, all that there is or until it ends. With --follow "
            "the exit status is 1 for a job that failed or was stopped.",
            (
                ("NAME-prune-1 --address HEAD:8265", "all that there is"),
                ("NAME-prune-1 --address HEAD:8265 --follow", "until it ends"),
                ("NAME-prune-1", "the address is in RAY_API_SERVER_ADDRESS"),
            ),
            usage="JOB [--follow] [--address HOST:PORT]",
            flags=(("--follow", "go on until the job ends"), _ADDRESS),
        ),
        Command(
            "stop",
            "end a submitted job",
            "Sends SIGTERM to a job's driver, which has half a minute to close its evaluators. "
            "What it computed is kept, and the printed command goes on with it.",
            (
                ("NAME-prune-1 --address HEAD:8265", "one job"),
                ("NAME-prune-1 --address https://ray.example.org", "behind a proxy with TLS"),
                ("NAME-prune-1", "the address is in RAY_API_SERVER_ADDRESS"),
            ),
            usage="JOB [--address HOST:PORT]",
            flags=(_ADDRESS,),
        ),
    )
}


def command_line(command: str, *words: str) -> str:
    """What to type to run a command, for messages; a shell takes it as it is."""
    return shlex.join([PROGRAM, command, *words])


def not_on_path() -> str:
    """Where the commands are that a message names, for a shell that does not find them; "" if it
    does.
    """
    folder = Path(sys.executable).parent
    if shutil.which(PROGRAM) is not None or not (folder / PROGRAM).exists():
        return ""
    activate = os.path.relpath(folder / "activate")
    if (folder / "activate").exists():
        return f"first, for this shell to find the commands: . {shlex.quote(activate)}"
    return f"the commands are in {folder}"


def resuming(command: str, folder: object) -> str:
    """What to type to go on with the search or sweep in a folder."""
    return command_line(command, "resume=true", as_override("output_dir", folder))
