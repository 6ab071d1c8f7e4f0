"""Files that are written whole, and what is never replaced."""

import os
import socket
import stat

import pytest
from matplotlib.figure import Figure

from jaxdist import files, sharpness, topology
from jaxdist.training import metrics

KINDS = {"pipe": stat.S_ISFIFO, "socket": stat.S_ISSOCK, "folder": stat.S_ISDIR}


@pytest.fixture
def odd(tmp_path, monkeypatch):
    """A pipe, a socket and a folder, and a link to each."""
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
    os.mkdir("folder")
    for name in KINDS:
        (tmp_path / f"link_to_{name}").symlink_to(tmp_path / name)
    return tmp_path


WRITERS = {
    "text": lambda path: files.write_atomically(path, "new"),
    "json": lambda path: metrics.write_json(path, {}),
    "lines": metrics.MetricsWriter,
    "figure": lambda path: files.write_figure(path, Figure()),
    "topology": lambda path: topology.plot(topology.make("ring", 4), path),
    "slice": lambda path: sharpness.plot({"a": sharpness.Slice(([0.0, 1.0],), [1.0, 2.0])}, path),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_only_regular_files_are_replaced(writer, odd):
    """Whatever is written, and also where a link leads to something else."""
    for name, is_kind in KINDS.items():
        for path in (odd / name, odd / f"link_to_{name}"):
            with pytest.raises(OSError, match=f"(a folder|no regular file).*{path.name}"):
                WRITERS[writer](path)
            assert is_kind(path.stat().st_mode)
    assert len(list(odd.iterdir())) == 2 * len(KINDS)


@pytest.mark.parametrize("there", [True, False])
def test_a_link_to_a_file_stays(there, tmp_path):
    (tmp_path / "deep").mkdir()
    target, link = tmp_path / "deep" / "target", tmp_path / "link"
    if there:
        target.write_text("old")
    link.symlink_to(target)
    files.write_atomically(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert os.listdir(tmp_path / "deep") == ["target"]


def test_what_lies_where_the_new_file_is_made_is_not_written_through(tmp_path):
    other = tmp_path / "other"
    other.write_text("other")
    (tmp_path / ".a.tmp").symlink_to(other)
    files.write_atomically(tmp_path / "a", b"new")
    assert other.read_text() == "other"
    assert sorted(os.listdir(tmp_path)) == ["a", "other"]


@pytest.mark.parametrize(
    ("name", "begins"), [("a.pdf", b"%PDF"), ("a.png", b"\x89PNG"), ("a", b"\x89PNG")]
)
def test_the_ending_names_the_format(name, begins, tmp_path):
    files.write_figure(tmp_path / name, Figure())
    assert (tmp_path / name).read_bytes().startswith(begins)
