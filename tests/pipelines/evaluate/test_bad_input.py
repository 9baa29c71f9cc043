"""What cannot be evaluated is refused before a model is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipelines.evaluate.conftest import Evaluate


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        ((), ["run, checkpoint, model.path: none is given"]),
        (("run=a", "model.path=b"), ["run, model.path: give one of them"]),
        (
            ("shape=a",),
            ["shape: given with no model.path; a shape file goes with model.path=MODEL"],
        ),
        (("shape=a", "run=b"), ["shape: given with run; a shape file goes with"]),
        (("shape=a", "model.path={reader}"), ["shape: cannot read a"]),
        (
            ("shape=a", "model.path={reader}", "importance=activation"),
            ["importance: 'activation'; with shape= one of l1, none"],
        ),
        (("model.path={reader}", "importance=l1"), ["importance: l1, which has no effect without"]),
        (
            ("model.path={reader}", "evaluation.tasks=[piqua]"),
            ["evaluation.tasks: lm-eval has no task 'piqua'; did you mean piqa"],
        ),
        (
            ("model.path={reader}", "evaluation.tasks=[piqa,sciq,boolq]"),
            [
                "no file for sciq in {data}: it takes sciq_test.jsonl or sciq.jsonl",
                "no file for boolq",
            ],
        ),
        (
            ("model.path={reader}", "evaluation.data_dir=nowhere"),
            ["evaluation.data_dir: no folder nowhere"],
        ),
        (
            ("model.path={reader}", "evaluation.data_dir={bad}", "evaluation.tasks=[piqa]"),
            ["the rows of piqa are not what the task needs", "baber/piqa"],
        ),
        (
            ("model.path={reader}", "evaluation.data_dir={torn}", "evaluation.tasks=[piqa]"),
            ["the file of piqa in {torn} cannot be read"],
        ),
        (
            ("model.path={reader}", "evaluation.limit=0", "evaluation.num_fewshot=-1"),
            ["num_fewshot: -1; at least 0", "evaluation.limit: 0; at least 1"],
        ),
        (
            ("model.path={reader}", "evaluation.texts=[missing.txt]", "evaluation.tasks=[piqua]"),
            ["missing.txt is neither wikitext2 nor a file", "piqua"],
        ),
        (
            ("model.path={reader}", "evaluation.texts=[{short}]"),
            ["short.txt is shorter than one window of 320 tokens"],
        ),
        (
            ("model.path={reader}", "evaluation.sequence_length=1000"),
            ["above this model's context of 320 tokens"],
        ),
        (
            ("model.path={reader}", "evaluation.cost_prompt_tokens=1000"),
            ["evaluation.cost_prompt_tokens, evaluation.cost_new_tokens: 1000 + 32"],
        ),
        (
            ("model.path={reader}", "evaluation.num_fewshot=2", "evaluation.tasks=[piqa]"),
            ["2 examples of piqa come from its train split; add piqa_train"],
        ),
        (("run={bad}",), ["has no run.json"]),
        (("checkpoint={reader}",), ["has no multipruner.json"]),
        (("model.path={reader}", "evaluation=none"), ["evaluation: nothing to measure"]),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, tuple) else "",
)
def test_bad_input(
    run: Evaluate,
    overrides: tuple[str, ...],
    messages: list[str],
    reader: Path,
    data_dir: Path,
    tmp_path: Path,
) -> None:
    """One message for each mistake, all at once, before a model is loaded."""
    places = {
        "reader": reader,
        "data": data_dir,
        "bad": tmp_path / "bad",
        "torn": tmp_path / "torn",
        "short": tmp_path / "short.txt",
    }
    places["bad"].mkdir()
    (places["bad"] / "piqa.jsonl").write_text('{"question": "why", "label": 0}\n')
    places["torn"].mkdir()
    (places["torn"] / "piqa.jsonl").write_text('{"goal": "why", "sol1"\n')
    places["short"].write_text("the cat")
    outcome = run(*(word.format(**places) for word in overrides))
    assert outcome.status == 2, outcome.output
    assert len(outcome.errors) == (1 if messages[-1] == "baber/piqa" else len(messages)), (
        outcome.output
    )
    for message in messages:
        assert message.format(**places) in "\n".join(outcome.errors), outcome.output


def test_without_the_hub(run: Evaluate, reader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach 'baber/piqa' on the Hub")

    monkeypatch.setattr("datasets.load_dataset", away)
    outcome = run(
        f"model.path={reader}",
        "evaluation.data_dir=null",
        "evaluation.tasks=[piqa]",
        "evaluation.texts=[wikitext2]",
    )
    assert outcome.status == 2
    assert (
        "evaluation.texts: dataset 'Salesforce/wikitext' is neither in the local cache"
        in outcome.errors[0]
    )
    assert (
        "evaluation.tasks: piqa needs the dataset baber/piqa, which is neither in the local cache"
        in outcome.errors[1]
    )
    assert "evaluation.data_dir=FOLDER" in outcome.errors[1]
