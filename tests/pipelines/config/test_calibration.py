"""Options of `calibration=mix`: every problem before anything is read."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_dir

from pipelines.config.calibration import CalibrationConfig, SourceConfig
from pipelines.config.overrides import CONF, option_names, override_problems, with_quoted_path
from pipelines.config.prune import PruneConfig
from pipelines.config.schemas import register
from pruning.calibration.spec import CalibrationSpec, MixtureSpec

PYDOC = SourceConfig("pydoc")
TEXT = SourceConfig("text", path="my.txt", share=2)


def calibration(
    *sources: SourceConfig, source: str = "mix", path: str | None = None
) -> CalibrationConfig:
    return CalibrationConfig(
        source,
        path,
        None,
        list(sources),
        num_block_samples=6,
        num_width_samples=6,
        num_heldout_samples=3,
        sequence_length=16,
        batch_size=2,
        seed=1,
    )


def test_a_mixture_has_shares_and_names() -> None:
    config = calibration(PYDOC, TEXT)
    assert config.problems() == []
    assert config.path_options == (
        "calibration.path",
        "calibration.sources.0.path",
        "calibration.sources.1.path",
    )
    spec = config.spec()
    assert isinstance(spec, MixtureSpec)
    assert str(spec) == "pydoc 0.3333, my 0.6667"
    numbers = {name: each.num_heldout_samples for name, each in spec.parts().items()}
    assert numbers == {"pydoc": 1, "my": 2}
    assert isinstance(calibration(source="pydoc").spec(), CalibrationSpec)


@pytest.mark.parametrize(
    ("config", "problems"),
    [
        (calibration(), ["calibration.sources: empty; give a list such as"]),
        (
            calibration(SourceConfig("mix"), SourceConfig(), SourceConfig("text")),
            [
                "calibration.sources.2.path: missing; source: text needs a file",
                "calibration.sources.0.source: 'mix': a mixture holds no other mixture, but its "
                "sources; one of pydoc, text",
                "calibration.sources.1.source: ''; one of pydoc, text",
            ],
        ),
        (
            calibration(SourceConfig("pydoc", path="a.txt", share=-1), path="b.txt"),
            [
                "calibration.path: b.txt, which has no effect with calibration=mix; give it to "
                "one of calibration.sources, as in calibration.sources.0.path=b.txt",
                "calibration.sources.0.path: a.txt, but source: pydoc reads no file",
                "calibration.sources.0.share: -1; above 0",
            ],
        ),
        (
            calibration(PYDOC, SourceConfig("text", path="a.txt", share=9)),
            ["calibration.num_heldout_samples: 3, of which calibration.sources.0 (pydoc, share 1)"],
        ),
        (
            calibration(PYDOC, TEXT, source="c4"),
            ["calibration.sources: 2 given, which have no effect with calibration=c4"],
        ),
        (calibration(source="text"), ["calibration.path: missing; calibration=text needs a file"]),
    ],
)
def test_bad_mixtures(config: CalibrationConfig, problems: list[str]) -> None:
    found = config.problems()
    assert len(found) == len(problems), found
    for problem, said in zip(found, problems, strict=True):
        assert said in problem


def test_a_mixture_on_the_command_line() -> None:
    register()
    sources = "calibration.sources=[{source: pydoc, share: 0.5}, {source: text, path: /a b/my.txt}]"
    words = ["calibration=mix", sources, "calibration.sources.1.share=1.5", "model.path=m"]
    with initialize_config_dir(str(CONF), version_base=None):
        raw = compose("prune", overrides=words)
        standard = PruneConfig.of(compose("prune", overrides=["calibration=mix", "model.path=m"]))
    config = PruneConfig.of(raw).calibration
    assert config.sources == [
        SourceConfig("pydoc", 0.5),
        SourceConfig("text", 1.5, path="/a b/my.txt"),
    ]
    assert {each.source for each in standard.calibration.sources} == {"alpaca", "c4"}
    assert "calibration.sources.1.share" in option_names(raw)


def test_what_is_no_source_is_explained() -> None:
    register()
    [said] = override_problems("prune", ["calibration=mix", "calibration.sources=[pydoc]"])
    assert said.endswith("it takes a list such as [{source: pydoc}, {source: text, path: my.txt}]")
    [said] = override_problems(
        "prune", ["calibration=mix", "calibration.sources=[{source: pydoc, shar: 1}]"]
    )
    assert "Key 'shar' not in 'SourceConfig'" in said


def test_the_path_of_a_source_may_hold_any_character() -> None:
    name = "calibration.sources.0.path"
    assert with_quoted_path(f"{name}=/in/a (b).txt") == f"{name}='/in/a (b).txt'"
    assert with_quoted_path("calibration.sources.0.name=(") == "calibration.sources.0.name=("
