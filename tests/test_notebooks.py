"""The notebooks: thin, committed without outputs, and running from the first cell to the last."""

import os
from pathlib import Path

import nbformat
import pytest
from ipykernel.kernelspec import make_ipkernel_cmd
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


class Kernel(AsyncKernelManager):
    """ipykernel in the Python that runs the tests, whatever kernels are installed."""

    kernel_spec = KernelSpec(argv=make_ipkernel_cmd(), language="python", display_name="tests")


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_all_notebooks_are_found():
    assert {path.stem[:2] for path in NOTEBOOKS} >= {"01", "02", "03", "04"}


@every_notebook
def test_a_notebook_is_thin_and_has_no_outputs(path):
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert len(notebook.cells) <= 15
    assert notebook.cells[0].cell_type == "markdown"
    for cell in code_cells(notebook):
        assert cell.outputs == []
        assert cell.execution_count is None


@pytest.mark.slow
@every_notebook
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    for folder in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(folder, str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    monkeypatch.delenv("MPLBACKEND", raising=False)  # plots are shown inline, as a reader sees them
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    client = NotebookClient(
        notebook,
        timeout=300,
        kernel_manager_class=Kernel,
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute()
    install, *rest = code_cells(notebook)
    assert "%pip install" in install.source
    assert install.outputs == []  # jaxdist is here: nothing was installed
    shown = [out for cell in rest for out in cell.outputs if "image/png" in out.get("data", {})]
    assert len(shown) == sum(cell.source.count("plt.show()") for cell in rest) > 0
