"""A grid: its points, their names, and what is refused."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir

from pipelines.config.grid import as_grid, points_of, written
from pipelines.config.overrides import CONF
from pipelines.config.prune import PruneConfig
from pipelines.config.schemas import register
from pipelines.config.sweep import SweepConfig
from pipelines.sweep.resume import saved_grid, saved_overrides
from pruning.errors import InputError
from tests.pipelines.conftest import Cli
from tests.pipelines.sweep.conftest import Sweep

BLOCKS = "search.distribution=[1,0,0]"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "grid: empty"),
        (
            ("search.target_ratio=[0.1,7]",),
            (
                "search.target_ratio: 7; it is removed / all "
                "parameters, above 0 and below 1; did "
                "you mean 0.07? (point "
            ),
        ),
        (("search.target_ratio=[0.1,0.1]",), "has a value twice"),
        (
            ("search.target_rato=[0.1,0.2]",),
            ("search.target_rato: no such option; did you mean search.target_ratio?"),
        ),
        (
            ("grid={cluster.num_evaluators:[1,2]}",),
            ("cluster.num_evaluators cannot differ from point to point"),
        ),
        (("grid={search.target_ratio:0.1}",), "give a list of values"),
        (("search.target_ratio=[]",), "grid: search.target_ratio: []; give a list of values"),
        (("search=[null,1]",), "grid: search: [None, 1]; give names of files of conf/search"),
        (
            ("search.target_ratio=[0.1,0.2]", "cluster=[inline,local]"),
            ("grid: cluster cannot differ from point to point"),
        ),
        (
            ("calibration.path=['/a/${x}.txt','/b.txt']",),
            ("grid.calibration.path[0]: Interpolation key 'x' not found"),
        ),
        (("search.target_ratio=[0.1,0.2]", "resume=true"), "no sweep in "),
        (
            ("experiment=multipruner/nope", "search.target_ratio=[0.1,0.2]"),
            ("Could not find 'experiment/multipruner/nope'"),
        ),
        (
            ("-m", "search.target_ratio=0.1,0.2"),
            (
                "--multirun: several values are a list here, "
                "search.target_ratio=[0.1,0.2]; "
                "--multirun is for "
                "multipruner prune"
            ),
        ),
        (
            ("--multi",),
            ("--multirun: several values are a list here, search.target_ratio=[0.07,0.10]"),
        ),
        (
            ("search.target_ratio=0.1,0.2",),
            (
                "search.target_ratio=0.1,0.2: several values are a "
                "list here, "
                "search.target_ratio=[0.1,0.2]"
            ),
        ),
        (
            ("search=blockpruner", BLOCKS, "search.importance=[l1,activation]"),
            (
                "search.importance: l1, which has no effect with search.distribution=[1.0, 0.0, "
                "0.0]: no width changes; leave it out (point importance_l1)"
            ),
        ),
        (
            ("search.importance=l1", BLOCKS, "search.target_ratio=[0.1,0.2]"),
            "search.importance: l1, which has no effect",
        ),
        (("experiment=[demo,nope]",), "Could not find 'experiment/nope'"),
        (("search=[multipruner,shortgtp]", "search.target_ratio=0.1"), "shortgtp"),
        (
            ("search.target_ratio=[0.1,0.2]", "calibration.batch_size=0"),
            ("calibration.batch_size: 0; at least 1"),
        ),
    ],
)
def test_bad_grids_are_refused_before_anything_starts(
    run_sweep: Sweep, words: tuple[str, ...], message: str
) -> None:
    outcome = run_sweep(*words)
    assert outcome.status == 2, outcome.output
    assert any(message in line for line in outcome.errors), outcome.output
    assert not outcome.folder.exists()


def test_an_option_that_does_something_in_one_point_is_accepted(run_sweep: Sweep) -> None:
    words = ("search.distribution=[[1,0,0],[0,1,0]]", "search.target_ratio=0.1")
    outcome = run_sweep("search.importance=l1", *words)
    assert outcome.status == 0, outcome.output


def test_a_sweep_that_is_there_goes_on(run_sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (BLOCKS, "search.importance=[l1,none]", "search.target_ratio=0.1")
    with monkeypatch.context() as earlier:
        earlier.setattr(
            "pipelines.config.search.SearchConfig.problems_of_new", lambda *_: list[str]()
        )
        assert run_sweep(*words).status == 0
    assert run_sweep(*words).status == 0
    resumed = run_sweep("resume=true", bare=True)
    assert resumed.status == 0, resumed.output


def test_points_and_their_names() -> None:
    points = points_of(
        {
            "search": ["multipruner", "random"],
            "search.distribution": [[44, 52, 4], [1, 0, 0]],
            "calibration.path": ["/a b/c4.jsonl", None],
        }
    )
    assert len(points) == 8
    assert points[0].name == "multipruner_distribution_44-52-4_path_c4"
    assert points[1].name == "multipruner_distribution_44-52-4_path_None"
    assert points[0].overrides == [
        "search=multipruner",
        "search.distribution=[44,52,4]",
        "calibration.path='/a b/c4.jsonl'",
    ]
    assert points[1].overrides[2] == "calibration.path=null"
    assert [
        point.name
        for point in points_of({"model.path": ["meta-llama/Llama-3.1-8B", "/m/tiny.gguf"]})
    ] == ["path_Llama-3.1-8B", "path_tiny"]
    assert points_of({"calibration.path": ["C:\\it's ${a}"]})[0].overrides == [
        "calibration.path='C:\\it\\'s \\${a}'"
    ]
    alike = points_of({"calibration.path": ["/a/x.txt", "/b/x.txt"]})
    names = [point.name for point in alike]
    assert len(set(names)) == 2
    assert all(re.fullmatch("path_x_[0-9a-f]{6}", name) for name in names)
    more = points_of({"calibration.path": ["/c/x.txt", "/a/x.txt", "/b/x.txt"]})
    assert names == [point.name for point in more][1:], (
        "a longer list leaves the folders of the others alone"
    )
    with pytest.raises(InputError, match="empty"):
        points_of({})


def test_a_list_of_files_is_an_axis(
    cli: Cli, arguments: list[str], token_file: Path, tmp_path: Path
) -> None:
    """Without the option, which the points alone have, there is no calibration text."""
    shutil.copy(token_file, tmp_path / "mine.safetensors")
    replaced = ("calibration.path=", "search.target_ratio=", "search.distribution=")
    words = [word for word in arguments if not word.startswith(replaced)]
    words += ["search=uniform", "search.target_ratio=0.1"]
    words += [f"calibration.path=[mine.safetensors,{token_file}]"]
    for given in (words, ["resume=true"]):
        outcome = cli("sweep", *given)
        assert outcome.status == 0, outcome.output
    points = outcome.read("sweep.json")["points"]
    assert [(point["name"], point["status"]) for point in points] == [
        ("path_mine", "done"),
        ("path_tokens", "done"),
    ]
    assert cli("plan", *words).status == 0


def test_what_no_point_can_change_is_checked_before_the_points() -> None:
    """As a cluster is joined before them."""
    register()
    words = ["model.path=m", "calibration=text"]
    with initialize_config_dir(str(CONF), version_base=None):
        SweepConfig.of_grid(compose("sweep", overrides=words))
        for wrong in ("cluster.join_timeout_s=0", "max_perplexity_ratio=0.5"):
            raw = compose("sweep", overrides=[*words, wrong])
            with pytest.raises(InputError) as error:
                SweepConfig.of_grid(raw)
            (line,) = str(error.value).splitlines()  # not the text, which the points may have
            assert line.startswith(wrong.partition("=")[0])


def test_points_of_mixtures() -> None:
    """Read again, the words of a point give the same mappings."""
    mixtures = [
        [{"source": "text", "path": "/a b/it's.txt"}, {"source": "c4", "share": 0.5}],
        [{"source": "pydoc", "name": "docs", "share": 2}],
    ]
    points = points_of({"calibration.sources": mixtures})
    assert [point.name for point in points] == ["sources_it-s-1-c4-0.5", "sources_docs-2"]
    register()
    with initialize_config_dir(str(CONF), version_base=None):
        for point, mixture in zip(points, mixtures, strict=True):
            words = ["calibration=mix", *point.overrides]
            sources = compose("prune", overrides=words).calibration.sources
            for given, read in zip(mixture, sources, strict=True):
                assert {name: read[name] for name in given} == given
    word = f"calibration.sources=[{written(mixtures[0])},{written(mixtures[1])}]"
    assert as_grid([word]) == [f"++grid={{calibration.sources:{word.partition('=')[2]}}}"]
    assert as_grid([f"calibration.sources={written(mixtures[0])}"]) == [
        f"calibration.sources={written(mixtures[0])}"
    ]


def test_points_of_mistyped_mixtures_have_names_too() -> None:
    """What is wrong with them is said when each is composed."""
    grid = {
        "calibration.sources": [[{"path": 3}], [{"source": "c4", "share": "x"}], [{"share": None}]]
    }
    names = [point.name for point in points_of(grid)]
    assert names == ["sources_3-1", "sources_c4-x", "sources_None"]


def test_a_saved_grid_names_files_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my.txt").touch()
    monkeypatch.chdir(tmp_path)
    source = {"source": "text", "path": "my.txt"}
    absolute = str(tmp_path / "my.txt")
    assert saved_grid(
        {
            "calibration.sources": [[source, {"source": "pydoc"}]],
            "calibration.sources.0.path": ["my.txt", "none.txt"],
            "calibration.path": ["my.txt"],
            "search": ["my.txt"],
        }
    ) == {
        "calibration.sources": [[source | {"path": absolute}, {"source": "pydoc"}]],
        "calibration.sources.0.path": [absolute, "none.txt"],
        "calibration.path": [absolute],
        "search": ["my.txt"],
    }


def test_saved_words_name_files_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my.txt").touch()
    monkeypatch.chdir(tmp_path)
    given = [
        "calibration=mix",
        "calibration.sources=[{source: text, path: my.txt}, {source: c4, share: 3}]",
        "calibration.sources.1.path=my.txt",
        "model.path=m",
    ]
    register()
    with initialize_config_dir(str(CONF), version_base=None):
        job = SimpleNamespace(config=PruneConfig.of(compose("prune", overrides=given)))
        words = saved_overrides(given, job)  # type: ignore[arg-type]
        monkeypatch.chdir("/")
        again = PruneConfig.of(compose("prune", overrides=words)).calibration.sources
    assert [(each.source, each.path, each.share) for each in again] == [
        ("text", str(tmp_path / "my.txt"), 1.0),
        ("c4", str(tmp_path / "my.txt"), 3.0),
    ]


def test_flags_stay_behind_the_grid() -> None:
    assert as_grid(["search.target_ratio=[0.1,0.2]", "export=gguf", "--cfg", "job"]) == [
        "export=gguf",
        "++grid={search.target_ratio:[0.1,0.2]}",
        "--cfg",
        "job",
    ]
