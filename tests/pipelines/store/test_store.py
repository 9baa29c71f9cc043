"""The store in an SQLite file: bits, keys, several processes. PostgreSQL: test_postgres.py, what
happens when file, lock or disk fail: test_store_faults.py.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sql
from filelock import FileLock

from pipelines.store.scores import ScoreStore
from pruning.errors import InputError
from pruning.scoring.arithmetic import Arithmetic
from pruning.scoring.score import BatchScore
from tests.pipelines.store.contexts import ANSWERS, ARITHMETIC, CONTEXT


def test_keys_of_stores_that_exist() -> None:
    """Stores outlive versions: what was stored under these keys must be found again."""
    arithmetic = Arithmetic(
        device="cpu AVX2",
        num_threads=1,
        processor="model name P",
        torch="2.13.0+cpu",
        transformers="5.23.0",
        scoring="1, 128 tokens",
        attention="sdpa",
        precision="highest",
    )
    context = replace(CONTEXT, batch_size=4, arithmetic=arithmetic)
    assert context.digest == "76d2ddf07d7a4aa17360b88aadceba4a"
    answers = replace(ANSWERS, arithmetic=arithmetic)
    assert answers.digest == "997453fd337784cba1bf3a3c88617167"


def test_what_earlier_versions_stored_stays_and_is_not_mixed_in(tmp_path: Path) -> None:
    """Their keys held neither versions nor the processor."""
    path, earlier = tmp_path / "scores.db", "70d73734ffda0ea4b333ed54d1071a42"
    with ScoreStore(f"sqlite:///{path}"):
        pass
    described = {
        "model": "m",
        "tokens": "t",
        "order": "o",
        "dtype": "float32",
        "device": "cpu",
        "batch_size": 4,
        "num_threads": 1,
    }
    text = json.dumps(described, sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest()[:32] == earlier
    row = (earlier, "a", 0, "[1.0]", 3)
    with sqlite3.connect(path) as file:
        file.execute("insert into contexts values (?, ?)", (earlier, text))
        file.execute("insert into scores values (?, ?, ?, ?, ?)", row)
    new = BatchScore((2.0,), 3)
    with ScoreStore(f"sqlite:///{path}") as store:
        context = replace(CONTEXT, batch_size=4)
        assert store.lookup(context, ["a"]) == {}
        store.add(context, {("a", 0): new})
        assert store.lookup(context, ["a"]) == {("a", 0): new}
    with sqlite3.connect(path) as file:
        query = "select * from scores where context = ?"
        [kept] = file.execute(query, (earlier,)).fetchall()
    assert kept == row


def test_a_context_is_described_in_the_store(tmp_path: Path) -> None:
    with ScoreStore(f"sqlite:///{tmp_path}/scores.db") as store:
        store.add(CONTEXT, {("a", 0): BatchScore((1.0,), 3)})
    with sqlite3.connect(tmp_path / "scores.db") as file:
        [(digest, text)] = file.execute("select * from contexts").fetchall()
    assert digest == CONTEXT.digest
    assert json.loads(text)["arithmetic"] == ARITHMETIC.to_json()


def test_scores_come_back_to_the_last_bit(tmp_path: Path) -> None:
    scores = {
        ("a", 0): BatchScore((math.pi * 1e3, 1 / 3, 5e-324, 1.7976931348623157e308), 31),
        ("a", 1): BatchScore((0.1 + 0.2,), 31),
    }
    url = f"sqlite:///{tmp_path}/deep/folder/scores.db"
    with ScoreStore(url) as store:
        store.add(CONTEXT, scores)
    with ScoreStore(url) as store:
        assert store.lookup(CONTEXT, ["a", "b"]) == scores


def test_scores_that_are_not_finite(tmp_path: Path) -> None:
    with ScoreStore(f"sqlite:///{tmp_path}/scores.db") as store:
        store.add(CONTEXT, {("a", 0): BatchScore((math.nan, math.inf), 3)})
        found = store.lookup(CONTEXT, ["a"])["a", 0].nll
    assert math.isnan(found[0])
    assert found[1] == math.inf


@pytest.mark.parametrize(
    "change",
    [
        {"model": "x"},
        {"tokens": "x"},
        {"order": "x"},
        {"dtype": "x"},
        {"batch_size": 3},
        {"kind": "kl"},
        {"halved": True},
        {"arithmetic": replace(ARITHMETIC, device="x")},
        {"arithmetic": replace(ARITHMETIC, num_threads=2)},
        {"arithmetic": replace(ARITHMETIC, variables="MKL_CBWR=COMPATIBLE")},
    ],
)
def test_nothing_is_shared_between_contexts(tmp_path: Path, change: dict[str, object]) -> None:
    with ScoreStore(f"sqlite:///{tmp_path}/scores.db") as store:
        store.add(CONTEXT, {("a", 0): BatchScore((1.0,), 3)})
        assert store.lookup(replace(CONTEXT, **change), ["a"]) == {}  # type: ignore[arg-type]


def test_of_several_contexts_the_first_that_has_a_score_counts(tmp_path: Path) -> None:
    halved = replace(CONTEXT, halved=True)
    whole_score, halved_score = BatchScore((1.0,), 3), BatchScore((2.0,), 3)
    with ScoreStore(f"sqlite:///{tmp_path}/scores.db") as store:
        store.add(CONTEXT, {("a", 0): whole_score, ("b", 0): whole_score})
        store.add(halved, {("a", 0): halved_score, ("c", 0): halved_score})
        for contexts, first in (
            ([CONTEXT, halved], (whole_score, CONTEXT)),
            ([halved, CONTEXT], (halved_score, halved)),
        ):
            assert store.lookup_first(contexts, ["a", "b", "c"]) == {
                ("a", 0): first,
                ("b", 0): (whole_score, CONTEXT),
                ("c", 0): (halved_score, halved),
            }


def test_answers_are_those_of_their_context(tmp_path: Path) -> None:
    other = replace(ANSWERS, max_length=32)
    with ScoreStore(f"sqlite:///{tmp_path}/scores.db") as store:
        store.add_answers(ANSWERS, {"t": [[-1.5, True]], "u": ["text"]})
        store.add_answers(other, {"t": [[-2.5, False]]})
        store.add_answers(other, {"t": [[0.0, True]]})
        assert store.lookup_answers(ANSWERS, ["t", "u"]) == {"t": [[-1.5, True]], "u": ["text"]}
        assert store.lookup_answers(other, ["t", "u", "v"]) == {"t": [[-2.5, False]]}


def test_a_score_is_never_replaced(tmp_path: Path) -> None:
    with ScoreStore(f"sqlite:///{tmp_path}/scores.db") as store:
        store.add(CONTEXT, {("a", 0): BatchScore((1.0,), 3)})
        store.add(CONTEXT, {("a", 0): BatchScore((2.0,), 3), ("b", 0): BatchScore((3.0,), 3)})
        assert store.lookup(CONTEXT, ["a", "b"]) == {
            ("a", 0): BatchScore((1.0,), 3),
            ("b", 0): BatchScore((3.0,), 3),
        }


def test_thousands_of_shapes(tmp_path: Path) -> None:
    scores = {
        (f"shape{number}", batch): BatchScore((number / 7,), 3)
        for number in range(3000)
        for batch in range(2)
    }
    with ScoreStore(f"sqlite:///{tmp_path}/scores.db") as store:
        store.add(CONTEXT, scores)
        assert store.lookup(CONTEXT, (f"shape{number}" for number in range(40_000))) == scores
        assert store.lookup(CONTEXT, []) == {}
        assert len(store.lookup(CONTEXT, ["shape1"] * 2000)) == 2


def test_no_scores_are_no_write(tmp_path: Path) -> None:
    with ScoreStore(f"sqlite:///{tmp_path}/scores.db") as store:
        store.add(CONTEXT, {})
        assert store.lookup(CONTEXT, ["a"]) == {}


def write(url: str, worker: int) -> None:
    """Half of the writers go backwards, so that two of them meet in the same keys."""
    with ScoreStore(url) as store:
        for number in range(50) if worker % 2 else reversed(range(50)):
            shared = {
                (f"shape{number + step}", batch): BatchScore((number + step + batch / 7,), 3)
                for step in range(5)
                for batch in range(3)
            }
            store.add(
                CONTEXT,
                dict(sorted(shared.items(), reverse=bool(worker % 2)))
                | {(f"own{worker}", number): BatchScore((1.0,), 3)},
            )


def write_at_once(url: str, num_writers: int = 4) -> None:
    """Creates a store from several processes at once; all write, then each key has its score."""
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write, args=(url, worker)) for worker in range(num_writers)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * num_writers
    with ScoreStore(url) as store:
        found = store.lookup(
            CONTEXT,
            [
                *(f"shape{number}" for number in range(54)),
                *(f"own{worker}" for worker in range(num_writers)),
            ],
        )
    expected = {
        (f"shape{number}", batch): BatchScore((number + batch / 7,), 3)
        for number in range(54)
        for batch in range(3)
    }
    assert found == expected | {
        (f"own{worker}", number): BatchScore((1.0,), 3)
        for worker in range(num_writers)
        for number in range(50)
    }


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    write_at_once(f"sqlite:///{tmp_path}/scores.db")


def test_a_context_is_described_once(tmp_path: Path) -> None:
    statements: list[str] = []
    with ScoreStore(f"sqlite:///{tmp_path}/scores.db") as store:
        sql.event.listen(
            sql.Engine, "before_cursor_execute", note := lambda *event: statements.append(event[2])
        )
        try:
            for number in range(5):
                for context in (CONTEXT, replace(CONTEXT, tokens="other")):
                    store.add(context, {("a", number): BatchScore((1.0,), 3)})
        finally:
            sql.event.remove(sql.Engine, "before_cursor_execute", note)
    assert sum("INSERT INTO contexts" in statement for statement in statements) == 2
    assert sum("INSERT INTO scores" in statement for statement in statements) == 10
    with sqlite3.connect(tmp_path / "scores.db") as file:
        assert file.execute("select count(*) from contexts").fetchone() == (2,)


def test_a_commit_does_not_wait_for_the_disk(tmp_path: Path) -> None:
    with (
        ScoreStore(f"sqlite:///{tmp_path}/scores.db") as store,
        store._database._engine.connect() as connection,
    ):
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 1


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+nodriver://me:secret@127.0.0.1:1/db",
        "postgresql://me:secret@h:port/db",
        "postgresql:/me:secret@h/db",
    ],
)
def test_a_password_is_not_in_the_error(url: str) -> None:
    with pytest.raises(InputError, match=r"^store\.url: ") as caught:
        ScoreStore(url)
    assert "secret" not in str(caught.value)


def test_a_store_of_another_version_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "future.db") as file:
        file.execute("create table schema_version (version integer primary key)")
        file.execute("insert into schema_version values (99)")
    with pytest.raises(InputError, match="has schema version 99, this program writes 1"):
        ScoreStore(f"sqlite:///{tmp_path}/future.db")
    with sqlite3.connect(tmp_path / "future.db") as file:
        assert file.execute("select name from sqlite_master").fetchall() == [("schema_version",)]
        assert file.execute("select version from schema_version").fetchall() == [(99,)]


def test_a_store_made_before_the_key_was_reordered(tmp_path: Path) -> None:
    """Same columns and same key, in another order: nothing to convert."""
    url = f"sqlite:///{tmp_path}/scores.db"
    with ScoreStore(url) as store:
        store.add(CONTEXT, {("a", 0): BatchScore((1.0,), 3)})
    with sqlite3.connect(tmp_path / "scores.db") as file:
        file.execute("alter table scores rename to newer")
        columns = (
            "context varchar(32), shape varchar(32), batch integer, nll text not null, "
            "num_tokens integer not null"
        )
        file.execute(f"create table scores ({columns}, primary key (context, shape, batch))")
        file.execute("insert into scores select context, shape, batch, nll, num_tokens from newer")
        file.execute("drop table newer")
    with ScoreStore(url) as store:
        store.add(CONTEXT, {("a", 0): BatchScore((2.0,), 3), ("b", 0): BatchScore((3.0,), 3)})
        assert store.lookup(CONTEXT, ["a", "b"]) == {
            ("a", 0): BatchScore((1.0,), 3),
            ("b", 0): BatchScore((3.0,), 3),
        }


def test_processes_that_open_and_do_not_finish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.store.scores.CREATION_TIMEOUT_S", 0.2)
    with (
        FileLock(f"{tmp_path}/scores.db.lock"),
        pytest.raises(InputError, match="could not be acquired.*; other processes are opening it"),
    ):
        ScoreStore(f"sqlite:///{tmp_path}/scores.db")


def test_a_store_in_memory() -> None:
    with ScoreStore("sqlite://") as store:
        store.add(CONTEXT, {("a", 0): BatchScore((1.0,), 3)})
        assert store.lookup(CONTEXT, ["a"]) == {("a", 0): BatchScore((1.0,), 3)}
