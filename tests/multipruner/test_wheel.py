"""What `pip install` puts into an environment, and that it is enough."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.conftest import ROOT
from tests.documents import save_reader
from tests.wheel import INSTALLED, build_wheel, install

SCRIPT = """
import multipruner
run = multipruner.prune(
    "reader", target=0.25, text="text.txt", cluster={"num_evaluators": 2},
    calibration={"num_block_samples": 6, "num_width_samples": 4, "num_heldout_samples": 4,
                 "sequence_length": 64, "batch_size": 2},
)
assert multipruner.open(run.folder) == run
assert run.trajectory["ratio"].iloc[-1] >= 0.25
assert run.tokenizer.decode(run.model.generate(**run.tokenizer("a cat", return_tensors="pt"))[0])
report = run.evaluate(texts=["text.txt"], evaluation="perplexity", cluster="inline")
import json, pipelines.config.overrides, sys
modules = [each for name, each in sys.modules.items()
           if name.partition(".")[0] in ("multipruner", "pipelines", "pruning", "workers")]
print("RESULT", json.dumps({
    "files": sorted({each.__file__ for each in modules if each.__file__}),
    "conf": str(pipelines.config.overrides.CONF),
    "exported": str(run.export()),
    "perplexity": report["perplexity"]["text"],
    "pruned": run.at(0.1).text,
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.mark.slow
def test_five_names_are_installed_which_the_page_gives(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
    top = {name.partition("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == set(INSTALLED)
    assert {"multipruner/py.typed", "conf/prune.yaml", "pipelines/report/page.html.j2"} <= names
    page = (ROOT / "docs/reference/python_api.md").read_text().partition("### What is installed")[2]
    for name in INSTALLED:
        assert f"`{name}`" in page.partition("\n## ")[0]


@pytest.mark.slow
@pytest.mark.ray
def test_a_script_runs_from_what_is_installed(wheel: Path, tmp_path: Path) -> None:
    """No line of the script is guarded by `__name__`: evaluators do not import it."""
    site = tmp_path / "site"
    variables = install(wheel, site)
    work = tmp_path / "work"
    save_reader(work / "reader")
    (work / "text.txt").write_text("the cat sees the old red bird under a tree\n\n" * 200)
    (work / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=work,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.partition("RESULT ")[2].splitlines()[0])
    assert len(found["files"]) > 50
    assert [name for name in found["files"] if not Path(name).is_relative_to(site)] == []
    assert found["conf"] == str(site / "conf")
    assert found["perplexity"] > 1
    assert Path(found["exported"]).is_relative_to(work / "outputs")
