"""Nothing that a stranger sends or leaves is run: checkpoints, data, configurations."""

import ast
import contextlib
import functools
import json
import os
import pickle
import re
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import configs
from jaxdist import topology
from jaxdist.config import read_component
from jaxdist.data import npz, tfds
from jaxdist.data.tfds import _fit
from jaxdist.names import parse
from jaxdist.training import record, train
from jaxdist.training.checkpoint import Checkpoints, checksum
from tests.experiments.test_report import EVIL, lines_of, make, written
from tests.training.tiny_runs import tiny_run

ROOT = Path(__file__).parent.parent

# Code ---------------------------------------------------------------------------------------------

FORBIDDEN = {
    "pickle",
    "_pickle",
    "marshal",
    "shelve",
    "dill",
    "cloudpickle",
    "joblib",
    "jsonpickle",
}
CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "os.system", "os.popen"}
CALLS |= {"yaml.load", "yaml.unsafe_load", "yaml.full_load", "pandas.read_pickle", "pd.read_pickle"}


def dangers(code):
    """What in Python code may run what it reads."""
    found = []
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.Import(names=names):
                found += [name.name for name in names if name.name.split(".")[0] in FORBIDDEN]
            case ast.ImportFrom(module=str(module)):
                found += [module] if module.split(".")[0] in FORBIDDEN else []
            case ast.Call(func=function, keywords=keywords):
                called = ast.unparse(function)
                found += [called] if called in CALLS else []
                off = {"allow_pickle": False, "shell": False}
                found += [
                    word.arg
                    for word in keywords
                    if word.arg in off and ast.unparse(word.value) != str(off[word.arg])
                ]
    return found


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "def f():\n    from pickle import loads",
        "import marshal as m",
        "eval(x)",
        "np.load(f, allow_pickle=True)",
        "np.load(f, allow_pickle=flag)",
        "torch.load(f)",
        "subprocess.run(x, shell=True)",
    ],
)
def test_dangers_are_seen(code):
    assert len(dangers(code)) == 1


def test_no_code_runs_what_it_reads():
    files = [
        file for folder in ("jaxdist", "experiments") for file in (ROOT / folder).rglob("*.py")
    ]
    assert len(files) > 100
    found = {str(file.relative_to(ROOT)): dangers(file.read_text()) for file in files}
    assert {name: what for name, what in found.items() if what} == {}


# Checkpoints --------------------------------------------------------------------------------------


class Evil:
    """Unpickled, it makes a folder."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path):
    """What must not be made; that it would be is checked first."""
    folder = tmp_path / "made by a stranger"
    pickle.loads(pickle.dumps(Evil(folder)))
    folder.rmdir()
    yield folder
    assert not folder.exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The workdir of a run of one step, and its state."""
    folder = tmp_path_factory.mktemp("trained")
    train(of_one_step(), folder, progress=False)
    return folder, restored(folder)


@functools.cache
def of_one_step():
    return tiny_run(steps=1)


def restored(workdir):
    with Checkpoints(workdir / "checkpoints", of_one_step()) as checkpoints:
        state = checkpoints.restore()
    return jax.tree.map(np.asarray, state._replace(key=jax.random.key_data(state.key)))


def refused_or_same(workdir, state):
    """Whether the checkpoint is refused; if not, it must be the one that was saved."""
    try:
        found = restored(workdir)
    except ValueError:
        return True
    jax.tree.map(np.testing.assert_array_equal, found, state)
    return False


def files_of(workdir):
    step = workdir / "checkpoints" / "1"
    return {str(p.relative_to(step)): p for p in sorted(step.rglob("*")) if p.is_file()}


@pytest.mark.slow
def test_pickles_in_place_of_the_files(tmp_path, trained, marker):
    """All at once, and each alone, are refused or not looked at, and not run."""
    workdir, state = trained
    payload, refused = pickle.dumps(Evil(marker)), set()
    for name in (None, *files_of(workdir)):
        copy = tmp_path / "copy"
        shutil.copytree(workdir, copy)
        files = files_of(copy)
        for file in files.values() if name is None else [files[name]]:
            file.write_bytes(payload)
        refused |= {name} if refused_or_same(copy, state) else set()
        shutil.rmtree(copy)
    assert {None, "state/manifest.ocdbt", "state/_METADATA", "note/metadata"} <= refused


def test_pickles_beside_the_files(tmp_path, trained, marker):
    """What no save writes is not looked at, or makes Orbax refuse the checkpoint."""
    workdir, state = trained
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    for folder in [copy / "checkpoints", *(copy / "checkpoints" / "1").rglob("*/")]:
        for name in ("state.pkl", "checkpoint", "aggregate", "data.pickle", "treedef", "a.npy"):
            (folder / name).write_bytes(pickle.dumps(Evil(marker)))
        evil = np.array([Evil(marker)], object)
        np.savez(folder / "arrays.npz", evil)
        (folder / "__init__.py").write_text(f"import os; os.mkdir({str(marker)!r})")
    refused_or_same(copy, state)


CODE = "__import__('os').mkdir({!r})"


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        lambda note, code: [],
        lambda note, code: code,
        lambda note, code: {},
        lambda note, code: {"py/reduce": [{"py/type": "os.mkdir"}, [code]]},
        lambda note, code: note | {"config": code},
        lambda note, code: note | {"config": []},
        lambda note, code: note | {"digest": code},
        lambda note, code: note | {"workers": code},
        lambda note, code: note | {"workers": -1},
        lambda note, code: note | {"workers": 10**9},
        lambda note, code: note | {"workers": None},
        lambda note, code: note | {"told": code},
        lambda note, code: note | {"told": [1]},
    ],
)
def test_odd_notes(tmp_path, trained, marker, change):
    """What a checkpoint says of itself is compared, and refused where it is something else."""
    copy = tmp_path / "copy"
    shutil.copytree(trained[0], copy, ignore=shutil.ignore_patterns("summary.json"))
    file = files_of(copy)["note/metadata"]
    note = json.loads(file.read_text())
    del note["checksum"]
    changed = change(note, CODE.format(str(marker)))
    if isinstance(changed, dict):
        changed["checksum"] = checksum(changed)
    file.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=r"checkpoint"):
        train(tiny_run(steps=2), copy, progress=False)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("_CHECKPOINT_METADATA", r'"orbax[.\w]+"'),
        ("state/_METADATA", r'"jax.Array"'),
        ("state/_sharding", r"NamedSharding|AxisType.Auto"),
    ],
)
def test_odd_metadata(tmp_path, trained, marker, name, words):
    """Names of modules, classes and handlers in a checkpoint are not imported."""
    workdir, state = trained
    (tmp_path / "stranger.py").write_text(f"import os; os.mkdir({str(marker)!r})")
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    file = files_of(copy)[name]
    text, quoted = file.read_text(), '"' * words.startswith('"')
    file.write_text(re.sub(words, f"{quoted}stranger.Handler{quoted}", text))
    assert file.read_text().count("stranger.Handler") >= 2
    sys.path.insert(0, str(tmp_path))
    try:
        refused_or_same(copy, state)
    finally:
        sys.path.remove(str(tmp_path))
    assert "stranger" not in sys.modules


ODD = ["[]", '"steps"', "3", '{"config": 3}', '{"config": {}}', "not JSON"]


@pytest.mark.parametrize("text", ODD)
def test_odd_configuration_of_a_run(tmp_path, trained, text):
    copy = tmp_path / "copy"
    shutil.copytree(trained[0], copy)
    (copy / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"Nothing was changed|nothing was changed"):
        train(of_one_step(), copy, progress=False)


@pytest.mark.parametrize("text", ODD[:-1])
def test_odd_summary_of_a_run(tmp_path, text):
    """It is not taken for the end of the run."""
    (tmp_path / "summary.json").write_text(text)
    assert record.finished(tmp_path, of_one_step()) is None


# Names, configurations and data -------------------------------------------------------------------


def test_options_are_literals(marker):
    """A name with options is read, not run."""
    code = CODE.format(str(marker))
    table = {"torus": lambda num, *, rows=2: None}
    for text in (code, f"torus(rows={code})", f"torus(**{code})", f"torus(rows=[{code}])"):
        with pytest.raises(ValueError):
            parse(table, text, "topology")
        with pytest.raises(ValueError):
            read_component(f"shards={text}")
        with pytest.raises(ValueError):
            topology.make(text, 8)


def test_config_files_of_others(tmp_path, marker):
    """The config.json of a run is data, whatever stands in it."""
    code = CODE.format(str(marker))
    plain = configs.load("digits_mgrawa").plain()
    part = lambda name, **change: {name: plain[name] | change}
    for odd in [
        code,
        json.dumps([]),
        json.dumps({"config": code}),
        json.dumps({"config": {}}),
        json.dumps({"config": plain | {"rule": code}}),
        json.dumps({"config": plain | {code: 1}}),
        json.dumps({"config": plain | part("rule", factory=code)}),
        json.dumps({"config": plain | part("model", factory="os.system")}),
        json.dumps({"config": plain | part("model", **{code: 1})}),
        "[" * 100_000,
        "\udcff",
    ]:
        (tmp_path / "config.json").write_text(odd, errors="surrogateescape")
        with pytest.raises(ValueError, match=r"config|unknown|model"):
            configs.load(str(tmp_path / "config.json"))


def test_pickled_arrays(tmp_path, marker):
    """Archives of arrays hold numbers only."""
    evil = np.array([Evil(marker)], object)
    names = ("x_train", "y_train", "x_test", "y_test")
    np.savez(tmp_path / "data.npz", **dict.fromkeys(names, evil))
    (tmp_path / "raw.npz").write_bytes(pickle.dumps(Evil(marker)))
    for file in ("data.npz", "raw.npz"):
        with pytest.raises(ValueError, match="cannot be read as a"):
            npz(path=str(tmp_path / file))


def test_data_sets_that_bring_code(monkeypatch, tmp_path):
    """Sets of tensorflow-datasets' namespaces, whose code would be fetched, are refused."""
    import tensorflow_datasets

    def never(*_, **__):
        raise AssertionError("fetched")

    with monkeypatch.context() as patched:
        patched.setattr(tensorflow_datasets, "builder", never)
        for name in ("huggingface:a", "kaggle:a/b:1.0.0"):
            with pytest.raises(ValueError, match="come with code of theirs"):
                tfds(name=name)
    with pytest.raises(ValueError, match="not prepared"):
        tfds(name="mnist:3.0.1", data_dir=str(tmp_path))


def test_images_that_are_programs():
    """PostScript, for which Pillow would start an interpreter, is no image."""
    from PIL import UnidentifiedImageError

    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 2 2\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(UnidentifiedImageError):
        _fit(program, 3, None, 0.875)


# The report ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("evil", EVIL)
def test_reports_of_strangers(tmp_path, evil):
    """Words in the environment, in names and in values of metrics are text, or refused."""
    folder = make(tmp_path / "sweep" / f"a {evil}".replace("/", "|") / "seed_0", rule=evil)
    config = json.loads((folder / "config.json").read_text())
    config |= {"commit": evil, evil: evil}
    config["versions"] |= {evil: evil, "jax": [evil, {evil: evil}]}
    config["devices"] = {"kind": evil, "mesh": {evil: evil}}
    (folder / "config.json").write_text(json.dumps(config))
    page, text = written(tmp_path / "sweep", out=tmp_path / "page.html")  # and checks its tags
    assert not re.search(r"<script|<img src=x", text)
    assert page.row("commit") == [evil]
    assert page.row(f"versions.{evil}") == page.row("devices.kind") == [evil]
    for changed in ({"loss": [evil] * 3}, {"nonfinite_workers": [[evil]] * 3}):
        lines = [json.dumps(line) for line in lines_of(**changed)]
        (folder / "metrics.jsonl").write_text("\n".join(lines))
        with contextlib.suppress(SystemExit):
            _, text = written(tmp_path / "sweep", out=tmp_path / "page.html")
        assert not re.search(r"<script|<img src=x", text)
