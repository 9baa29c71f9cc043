"""docs/examples/pruning.ipynb: its cells run, and what is committed below them is whole."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.documents import save_reader
from tests.wheel import build_wheel, install

PATH = ROOT / "docs/examples/pruning.ipynb"
CELLS: list[dict[str, Any]] = json.loads(PATH.read_text())["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]
SILENT = {"parameters", "search", "evaluate", "export", "sweep"}
TINY = """
MODEL, TARGET = "reader", 0.1
CALIBRATION = {"num_block_samples": 2, "num_width_samples": 2, "num_heldout_samples": 2}
OPTIONS = {"search": "uniform", "cluster": "inline", "calibration": CALIBRATION}
"""


def shown(cell: dict[str, Any]) -> list[str]:
    """All text of the outputs of a cell."""
    found = []
    for output in cell["outputs"]:
        found += [output.get("text", ""), *output.get("data", {}).values()]
    return ["".join(each) for each in found]


def test_every_cell_has_run_once_and_in_order() -> None:
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    assert {cell["id"] for cell in CODE if not cell["outputs"]} == SILENT
    kinds = {output["output_type"] for cell in CODE for output in cell["outputs"]}
    assert kinds == {"execute_result", "stream"}
    [picture] = [cell for cell in CODE if any("image/png" in str(each) for each in cell["outputs"])]
    assert picture["id"] == "plot"


def test_it_is_small_and_says_nothing_of_the_machine_that_made_it() -> None:
    assert PATH.stat().st_size < 300_000
    for cell in CODE:
        for text in shown(cell):
            if not text.startswith("iVBOR"):  # the picture
                assert not re.search(r"(^|[\s\"'(=])(/|~/|[A-Z]:\\)\w", text), (cell["id"], text)
        assert not [each for each in cell["outputs"] if each.get("name") == "stderr"], cell["id"]
        assert not re.search(
            r"arning|rror", "".join(text for text in shown(cell) if not text.startswith("iVBOR"))
        ), cell["id"]


@pytest.mark.slow
def test_its_cells_run(tmp_path_factory: pytest.TempPathFactory) -> None:
    """From what `pip install` puts there, with a model and a text of seconds; each shows as much as
    the committed one.
    """
    import nbformat
    from nbclient import NotebookClient

    tmp_path, site = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("site")
    variables = install(build_wheel(tmp_path_factory.mktemp("wheel")), site)
    save_reader(tmp_path / "reader")
    book = nbformat.read(PATH, as_version=4)
    [parameters] = [cell for cell in book.cells if cell["id"] == "parameters"]
    parameters.source = (
        TINY + f"import multipruner\nassert multipruner.__file__.startswith({str(site)!r})\n"
    )
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(book, timeout=300, kernel_name="python3", resources=resources).execute(
        env=os.environ | variables
    )
    for before, cell in zip(CELLS, book.cells, strict=True):
        kinds = [each["output_type"] for each in before.get("outputs", [])]
        assert [each["output_type"] for each in cell.get("outputs", [])] == kinds, cell["id"]
    names = {"run", "sweep", "statistics.txt", "reader", "outputs"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert book.cells[-1]["outputs"][0]["data"]["text/plain"] == "True"
