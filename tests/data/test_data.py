import gzip
import io
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from PIL import Image

from jaxdist.data import (
    DATASETS,
    SHARDS,
    ArraySource,
    Loader,
    Sampler,
    TokenSource,
    UniformSampler,
    digit_sequences,
    digits,
    idx,
    image_dataset,
    make_augment,
    normalize,
    npz,
    shards,
    text,
    tfds,
)


def labelled(labels):
    """A source with these labels, whose image i is filled with i."""
    labels = np.asarray(labels)
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None]
    return ArraySource(np.broadcast_to(images, (len(labels), 2, 3, 1)), labels)


def numbered(num):
    return labelled(np.arange(num) % 3)


# Sources ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"size": 28}, {"size": 32, "channels": 3}])
def test_digits_are_the_scikit_learn_images_in_a_fixed_split(options):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    dataset = digits(**options)
    size, channels = options.get("size", 8), options.get("channels", 1)
    assert dataset.input_shape == (size, size, channels)
    assert (len(dataset.train), len(dataset.test), dataset.num_classes) == (1437, 360, 10)
    counts = np.bincount(bunch.target)
    np.testing.assert_allclose(np.bincount(dataset.test.labels), counts / 5, atol=1)
    np.testing.assert_array_equal(
        np.bincount(dataset.train.labels) + np.bincount(dataset.test.labels), counts
    )
    x, y = dataset.train[np.arange(1437)]
    assert x.dtype == np.uint8
    assert y.dtype == np.int32
    if size == 8:
        merged = np.concatenate([x, dataset.test[np.arange(360)][0]])[..., 0]
        rescaled = np.rint(bunch.images * 255 / 16)
        assert sorted(map(bytes, merged)) == sorted(map(bytes, rescaled.astype(np.uint8)))
    pixels = x.astype(np.float64) / 255
    np.testing.assert_allclose(dataset.mean, pixels.mean((0, 1, 2)), rtol=1e-9)
    np.testing.assert_allclose(dataset.std, pixels.std((0, 1, 2)), rtol=1e-9)


def test_digits_nearest_repeats_pixels_and_bilinear_matches_pillow():
    small, _ = digits().test[np.arange(20)]
    nearest, _ = digits(size=32, resize="nearest").test[np.arange(20)]
    np.testing.assert_array_equal(nearest, small.repeat(4, axis=1).repeat(4, axis=2))
    bilinear, _ = digits(size=28).test[np.arange(20)]
    for ours, image in zip(bilinear, small, strict=True):
        theirs = Image.fromarray(image[..., 0]).resize((28, 28), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(ours[..., 0].astype(int), np.asarray(theirs), atol=1)


def test_digit_sequences_predict_the_next_pixel():
    dataset = digit_sequences()
    x, y = dataset.train[np.arange(1437)]
    images, labels = digits().train[np.arange(1437)]
    values = np.rint(images.reshape(1437, 64) / 255 * 16)
    np.testing.assert_array_equal(x, values[:, :-1])
    np.testing.assert_array_equal(y, values[:, 1:])
    np.testing.assert_array_equal(dataset.train.labels, labels)
    assert x.dtype == y.dtype == np.int32
    assert dataset.input_shape == (63,)
    assert (dataset.num_classes, y.max(), dataset.mean, dataset.std) == (17, 16, (), ())
    assert (values[:, 0] == 0).all()  # why there is no start token


def test_text_predicts_every_byte_once(tmp_path):
    file = tmp_path / "text"
    data = bytes(range(256)) * 4
    file.write_bytes(data)
    dataset = text(path=str(file), length=10, test_fraction=0.25)
    for source, part in (dataset.train, data[:768]), (dataset.test, data[768:]):
        x, y = source[np.arange(len(source))]
        assert len(source) == (len(part) - 1) // 10
        assert bytes(x.ravel().tolist()) == part[: len(source) * 10]
        assert bytes(y.ravel().tolist()) == part[1 : len(source) * 10 + 1]
    assert dataset.input_shape == (10,)
    assert dataset.num_classes == 256
    with pytest.raises(ValueError, match="no labels"):
        _ = dataset.train.labels


IDX_NAMES = [
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
]
GOLDEN_IMAGE = bytes.fromhex("00000803 00000002 00000001 00000003 000102 fdfeff")
GOLDEN_LABEL = bytes.fromhex("00000801 00000002 07 02")


def write_idx(folder, *, dotted=False, zipped=False, **changed):
    """Four IDX files of two 1 x 3 images; `changed` replaces the bytes of some (None: no file)."""
    contents = [GOLDEN_IMAGE, GOLDEN_LABEL] * 2
    for stem, name, content in zip(
        ["train_images", "train_labels", "t10k_images", "t10k_labels"],
        IDX_NAMES,
        contents,
        strict=True,
    ):
        content = changed.get(stem, content)
        if content is None:
            continue
        name = name.replace("-idx", ".idx") if dotted else name
        if zipped:
            name, content = f"{name}.gz", gzip.compress(content)
        (folder / name).write_bytes(content)
    return str(folder)


@pytest.mark.parametrize("dotted", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_idx_reads_golden_bytes(tmp_path, dotted, zipped):
    dataset = idx(path=write_idx(tmp_path, dotted=dotted, zipped=zipped))
    x, y = dataset.test[np.array([1, 0])]
    np.testing.assert_array_equal(x[..., 0], [[[253, 254, 255]], [[0, 1, 2]]])
    np.testing.assert_array_equal(y, [2, 7])
    assert dataset.input_shape == (1, 3, 1)
    assert dataset.num_classes == 8
    np.testing.assert_allclose(dataset.mean, 127.5 / 255)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_labels": None}, "needed is one of train-labels-idx1-ubyte, "),
        ({"t10k_images": GOLDEN_IMAGE[:-1]}, r"t10k-images.*says \[2, 1, 3\] bytes, it holds 5"),
        ({"t10k_images": GOLDEN_IMAGE + b"x"}, "it holds 7"),
        ({"t10k_images": GOLDEN_IMAGE[:9]}, "is damaged|begins with"),
        ({"train_images": b""}, "begins with ''"),
        ({"train_images": GOLDEN_LABEL}, "begins with '00000801': allowed is IDX, '00000803'"),
        ({"train_labels": bytes.fromhex("00000801 00000003 010203")}, "one integer per image"),
        (
            {
                "train_images": bytes.fromhex("00000803 00000000 00000001 00000003"),
                "train_labels": bytes.fromhex("00000801 00000000"),
            },
            "from one example",
        ),
        (
            {"t10k_images": bytes.fromhex("00000803 00000002 00000003 00000001 000102 fdfeff")},
            "allowed is the training shape",
        ),
        ({"train_images": bytes.fromhex("00000803 ffffffff ffffffff 00000001 00")}, "is damaged"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_idx_rejects_bad_files_by_name(tmp_path, changed, message, zipped):
    path = write_idx(tmp_path, zipped=zipped, **changed)
    with pytest.raises(ValueError, match=message) as caught:
        idx(path=path)
    assert str(tmp_path) in str(caught.value)


def test_idx_rejects_bad_folders_and_truncated_gzip(tmp_path):
    with pytest.raises(ValueError, match="nowhere' is not a folder"):
        idx(path=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="holds nothing: needed is one of train-images"):
        idx(path=str(tmp_path))
    path = write_idx(tmp_path, zipped=True)
    file = tmp_path / "t10k-labels-idx1-ubyte.gz"
    whole = file.read_bytes()
    for damaged in (whole[:-10], b"not gzip", b""):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte\.gz (cannot|begins)"):
            idx(path=path)


def npz_arrays(**changed):
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(0, 256, (7, 4, 5, 3), dtype=np.uint8),
        "y_train": np.array([0, 1, 2, 3, 4, 1, 2])[:, None],
        "x_test": rng.integers(0, 256, (2, 4, 5, 3), dtype=np.uint8),
        "y_test": np.array([4, 0], np.uint8),
    }
    return arrays | changed


def test_npz_round_trip(tmp_path):
    arrays = npz_arrays()
    np.savez_compressed(tmp_path / "data.npz", **arrays)
    dataset = npz(path=str(tmp_path / "data.npz"))
    x, y = dataset.train[np.array([6, 2, 2])]
    np.testing.assert_array_equal(x, arrays["x_train"][[6, 2, 2]])
    np.testing.assert_array_equal(y, [2, 2, 2])
    np.testing.assert_array_equal(dataset.test.labels, [4, 0])
    assert (dataset.input_shape, dataset.num_classes) == ((4, 5, 3), 5)
    pixels = arrays["x_train"] / 255
    np.testing.assert_allclose(dataset.mean, pixels.mean((0, 1, 2)), rtol=1e-9)
    np.testing.assert_allclose(dataset.std, pixels.std((0, 1, 2)), rtol=1e-9)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"y_train": np.arange(6)}, r"labels are int64 \[6\] for 7 images"),
        ({"y_test": np.array([0.0, 1.0])}, "labels are float64"),
        ({"y_test": np.array([-1, 1])}, "labels hold -1"),
        ({"x_train": np.zeros((7, 4, 5, 3))}, "images are float64"),
        ({"x_train": np.zeros((7, 60), np.uint8)}, r"images are uint8 \[7, 60\]"),
        ({"x_test": np.zeros((2, 4, 5, 1), np.uint8)}, "allowed is the training shape"),
    ],
)
def test_npz_rejects_bad_arrays(tmp_path, changed, message):
    np.savez(tmp_path / "data.npz", **npz_arrays(**changed))
    with pytest.raises(ValueError, match=message):
        npz(path=str(tmp_path / "data.npz"))


def test_npz_rejects_bad_files(tmp_path):
    file = tmp_path / "data.npz"
    with pytest.raises(ValueError, match="is not a file"):
        npz(path=str(file))
    np.savez(file, x_train=np.zeros(1), other=np.zeros(1))
    with pytest.raises(ValueError, match=r"lacks \['y_train', 'x_test', 'y_test'\].*'other'"):
        npz(path=str(file))
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    np.savez(file, **npz_arrays())
    for damaged in (file.read_bytes()[:-30], b"", b"text", buffer.getvalue()):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"data\.npz' cannot be read as a \.npz archive"):
            npz(path=str(file))


def test_constant_channels_keep_their_scale():
    source = ArraySource(np.full((2, 4, 4, 1), 51, np.uint8), np.array([0, 1]))
    dataset = image_dataset(source, source, 2)
    assert dataset.mean == pytest.approx((0.2,))
    assert dataset.std == (1.0,)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digits", {"size": 7}, "size=7"),
        ("digits", {"channels": 2}, "channels=2"),
        ("digits", {"resize": "cubic"}, "resize='cubic'"),
        ("text", {"path": "/nowhere", "length": 0}, "length=0"),
        ("text", {"path": "/nowhere", "test_fraction": 1.0}, "test_fraction=1.0"),
        ("text", {"path": "/nowhere"}, "path='/nowhere' is not a file"),
        ("text", {"path": __file__, "length": 10**6}, "length=1000000 bytes in each part"),
        ("tfds", {"name": "mnist", "size": 0}, "size=0"),
        ("tfds", {"name": "mnist", "crop_fraction": 0.0}, "crop_fraction=0.0"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        DATASETS[name](**options)


# tensorflow-datasets ------------------------------------------------------------------------------


def png(i):
    """Image i as encoded bytes: (8 + i) x 16 in colour, red in the central 8 x 8, else 10 i."""
    pixels = np.full((8 + i, 16, 3), 10 * i, np.uint8)
    pixels[i // 2 : i // 2 + 8, 4:12] = [255, 0, 0]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with two sets that need no TensorFlow to prepare: arrays, and encoded images."""
    import tensorflow_datasets

    class JaxdistArrays(tensorflow_datasets.core.GeneratorBasedBuilder):
        VERSION = tensorflow_datasets.core.Version("1.0.0")
        image = tensorflow_datasets.features.Tensor(shape=(4, 5, 1), dtype=np.uint8)
        stored = staticmethod(lambda i: np.full((4, 5, 1), i, np.uint8))

        def _info(self):
            label = tensorflow_datasets.features.ClassLabel(num_classes=3)
            features = tensorflow_datasets.features.FeaturesDict(
                {"image": self.image, "label": label, "weight": np.float32}
            )
            return tensorflow_datasets.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager):
            return {"train": self._generate_examples(10), "test": self._generate_examples(4)}

        def _generate_examples(self, num):
            for i in range(num):
                yield i, {"image": self.stored(i), "label": i % 3, "weight": 0.5}

    class JaxdistEncoded(JaxdistArrays):
        image = tensorflow_datasets.features.Image(shape=(None, None, 3))
        stored = staticmethod(png)

    folder = tmp_path_factory.mktemp("tfds")
    for builder in JaxdistArrays, JaxdistEncoded:
        builder(data_dir=folder, file_format="array_record").download_and_prepare()
    return str(folder)


@pytest.mark.parametrize("in_memory", [True, False])
def test_tfds_arrays(prepared, in_memory):
    dataset = tfds(name="jaxdist_arrays", data_dir=prepared, in_memory=in_memory)
    x, y = dataset.train[np.arange(10)]
    assert (x.shape, x.dtype, y.dtype) == ((10, 4, 5, 1), np.uint8, np.int32)
    assert sorted(x[:, 0, 0, 0]) == list(range(10))
    np.testing.assert_array_equal(x, np.broadcast_to(x[:, :1, :1], x.shape))
    np.testing.assert_array_equal(y, x[:, 0, 0, 0] % 3)
    np.testing.assert_array_equal(dataset.train.labels, y)
    again, _ = dataset.train[np.array([7, 2])]
    np.testing.assert_array_equal(again, x[[7, 2]])
    assert (len(dataset.test), dataset.num_classes, dataset.input_shape) == (4, 3, (4, 5, 1))
    assert dataset.mean == pytest.approx((4.5 / 255,))


@pytest.mark.parametrize("in_memory", [True, False])
def test_tfds_encoded_images_of_several_shapes(prepared, in_memory):
    options = {"name": "jaxdist_encoded", "data_dir": prepared, "in_memory": in_memory}
    dataset = tfds(size=16, crop_fraction=1.0, train_split="train[:8]", **options)
    x, y = dataset.train[np.arange(8)]
    assert (x.shape, len(y)) == ((8, 16, 16, 3), 8)
    assert len({bytes(image) for image in x}) == 8
    side = 4
    test = tfds(size=side, crop_fraction=0.25, **options).test
    x, y = test[np.arange(4)]
    assert (x == [255, 0, 0]).all()  # the middle quarter of each image lies in its red square
    assert sorted(y) == [0, 0, 1, 2]


def test_tfds_decodes_large_jpegs_as_if_at_full_size():
    from jaxdist.data.tfds import _fit

    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((600, 400), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    fitted = _fit(buffer.getvalue(), channels=3, size=60, crop_fraction=0.8)
    expected = image.crop((140, 40, 460, 360)).resize((60, 60), Image.Resampling.BILINEAR)
    assert np.abs(fitted - np.asarray(expected, float)).mean() < 4
    assert _fit(buffer.getvalue(), channels=1, size=None, crop_fraction=1).shape == (400, 600, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "mnist"}, r"'mnist' is not prepared.*pip install.*download_and_prepare\(\)"),
        ({"name": "cifar11"}, "'cifar11' is no set.*did you mean 'cifar10"),
        ({"test_split": "tset"}, r"test_split='tset': allowed are the splits \['train', 'test'\]"),
        ({"image_key": "img"}, r"image_key='img': allowed are the features .*'image', 'label'"),
        ({"image_key": "weight"}, "image_key='weight' is .*allowed are uint8"),
        ({"label_key": "image"}, "label_key='image' is .*allowed are ClassLabel"),
        ({"name": "jaxdist_encoded"}, "size=None: allowed is .*; the images of jaxdist_encoded"),
    ],
)
def test_tfds_bad_options(prepared, options, message):
    with pytest.raises(ValueError, match=message):
        tfds(**{"name": "jaxdist_arrays", "data_dir": prepared} | options)


# Shards and samplers ------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_shards_hold_every_example_once(data):
    workers = data.draw(st.integers(1, 9), "workers")
    minimum = data.draw(st.integers(1, 4), "minimum")
    num = data.draw(st.integers(workers * minimum, 120), "num")
    labels = np.array(data.draw(st.lists(st.integers(0, 4), min_size=num, max_size=num), "labels"))
    alpha = data.draw(st.floats(1e-3, 1e3), "alpha")
    seed = data.draw(st.integers(0, 2**40), "seed")
    source = labelled(labels)
    options = {"iid": {}, "dirichlet": {"alpha": alpha, "minimum": minimum}}
    for name, make in SHARDS.items():
        parts = make(source, workers, seed, **options[name])
        assert len(parts) == workers
        assert sorted(np.concatenate(parts)) == list(range(num))
        assert min(map(len, parts)) >= options[name].get("minimum", num // workers)
        again = make(source, workers, seed, **options[name])
        for part, same in zip(parts, again, strict=True):
            np.testing.assert_array_equal(part, same)
    assert max(map(len, shards.iid(source, workers, seed))) - num // workers <= 1


def test_dirichlet_skews_labels_more_for_smaller_alpha():
    labels = np.arange(4000) % 10
    share = []
    for alpha in (0.01, 1.0, 1e6):
        parts = shards.dirichlet(labelled(labels), 8, seed=3, alpha=alpha)
        share.append(np.mean([np.bincount(labels[part]).max() / len(part) for part in parts]))
    assert share[0] > 0.6 > share[1] > 0.2 > share[2]
    assert share[2] == pytest.approx(0.1, abs=0.02)
    one, other = (shards.dirichlet(labelled(labels), 8, seed) for seed in (3, 4))
    assert any(np.setxor1d(*pair).size for pair in zip(one, other, strict=True))


def test_dirichlet_of_a_vanishing_alpha_gives_each_worker_its_class():
    labels = np.repeat([0, 1], 10)
    for seed in range(10):
        parts = shards.dirichlet(labelled(labels), 2, seed, alpha=1e-9)
        assert sorted(labels[part].tolist() for part in parts) == [[0] * 10, [1] * 10]


@pytest.mark.parametrize(
    ("name", "arguments", "options", "message"),
    [
        ("iid", (0, 0), {}, "workers=0"),
        ("iid", (11, 0), {}, "workers=11 .*at most the 10"),
        ("iid", (2, -1), {}, "seed=-1"),
        ("dirichlet", (2, 0), {"alpha": 0.0}, "alpha=0.0"),
        ("dirichlet", (2, 0), {"alpha": float("nan")}, "alpha=nan"),
        ("dirichlet", (2, 0), {"minimum": 0}, "minimum=0"),
        ("dirichlet", (4, 0), {"minimum": 3}, "minimum=3 need 12"),
    ],
)
def test_shards_bad_arguments(name, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        SHARDS[name](numbered(10), *arguments, **options)


def test_dirichlet_needs_labels():
    with pytest.raises(ValueError, match="no labels"):
        shards.dirichlet(TokenSource(np.zeros((9, 3), np.uint8)), 2, seed=0)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_sampler_is_a_pure_function_of_seed_worker_and_step(data):
    sizes = data.draw(st.lists(st.integers(3, 20), min_size=1, max_size=4), "sizes")
    batch_size = data.draw(st.integers(1, 3), "batch_size")
    parts = np.split(np.arange(sum(sizes)) * 10, np.cumsum(sizes)[:-1])
    asked = [*itertools.product(range(len(sizes)), range(15))]
    in_order = Sampler(parts, batch_size, seed=7)
    expected = {ask: in_order.indices(*ask) for ask in asked}
    other = Sampler(parts, batch_size, seed=7)
    for ask in data.draw(st.permutations(asked), "order"):
        np.testing.assert_array_equal(other.indices(*ask), expected[ask])
    for worker, part in enumerate(parts):
        per_epoch = len(part) // batch_size
        for epoch in range(15 // per_epoch):
            steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
            drawn = np.concatenate([expected[worker, step] for step in steps])
            assert len({*drawn}) == len(drawn) == per_epoch * batch_size
            assert {*drawn} <= {*part}
    assert in_order.steps_per_epoch == sum(sizes) // (len(sizes) * batch_size)
    assert in_order.workers == len(sizes)


def test_sampler_streams_differ_between_epochs_workers_and_seeds():
    parts = [np.arange(100)] * 2
    drawn = {
        tuple(Sampler(parts, 100, seed).indices(worker, step))
        for seed, worker, step in itertools.product(range(2), range(2), range(3))
    }
    assert len(drawn) == 12
    assert all(sorted(epoch) == list(range(100)) for epoch in drawn)


def test_uniform_sampler_draws_from_the_whole_set():
    sampler = UniformSampler(50, workers=3, batch_size=10, seed=1)
    same = UniformSampler(50, workers=3, batch_size=10, seed=1)
    asked = [*itertools.product(range(3), range(40))]
    drawn = [sampler.indices(*ask) for ask in asked]
    assert len({tuple(batch) for batch in drawn}) == 120
    assert all(len({*batch}) == 10 for batch in drawn)
    counts = np.bincount(np.concatenate(drawn), minlength=50)
    assert len(counts) == 50
    assert counts.min() >= 8  # 24 expected of each example, deviation 4.4
    for ask, batch in reversed([*zip(asked, drawn, strict=True)]):
        np.testing.assert_array_equal(same.indices(*ask), batch)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sampler([], 1, 0), "shards is empty"),
        (lambda: Sampler([np.arange(4)], 0, 0), "batch_size=0"),
        (lambda: Sampler([np.arange(4)], 1, -3), "seed=-3"),
        (
            lambda: Sampler([np.arange(9), np.arange(5), np.arange(3)], 6, 0),
            "batch_size=6 exceeds the shard of worker 1, 5 examples: allowed are 1 to 3",
        ),
        (lambda: UniformSampler(4, 1, 5, 0), "batch_size=5: allowed are 1 to 4"),
        (lambda: UniformSampler(4, 0, 1, 0), "workers=0"),
        (lambda: UniformSampler(4, 1, 0, 0), "batch_size=0"),
    ],
)
def test_samplers_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Loader -------------------------------------------------------------------------------------------


class Counting:
    """A source that counts how often each example is read."""

    def __init__(self, source):
        self.source = source
        self.reads = np.zeros(len(source), int)

    def __len__(self):
        return len(self.source)

    def __getitem__(self, indices):
        np.add.at(self.reads, indices, 1)
        return self.source[indices]


LAYOUTS = [
    ({"worker": 1}, P("worker")),
    ({"worker": 4}, P("worker")),
    ({"worker": 8}, P("worker")),
    ({"worker": 4, "fsdp": 2}, P("worker")),
    ({"worker": 4, "fsdp": 2}, P("worker", "fsdp")),
    ({"worker": 2}, P()),
]


def on_mesh(axes, spec):
    num = int(np.prod([*axes.values()]))
    types = (AxisType.Auto,) * len(axes)
    mesh = jax.make_mesh((*axes.values(),), (*axes,), axis_types=types, devices=jax.devices()[:num])
    return NamedSharding(mesh, spec)


@pytest.mark.parametrize(("axes", "spec"), LAYOUTS, ids=str)
def test_loader_equals_numpy_in_every_layout(axes, spec):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (90, 2, 3, 1), dtype=np.uint8)
    labels = rng.integers(0, 5, 90)
    source = Counting(ArraySource(images, labels))
    sampler = Sampler(shards.iid(source, 8, seed=0), 4, seed=0)
    sharding = on_mesh(axes, spec)
    loader = Loader(source, sampler, sharding)
    source.reads[:] = 0
    for step in (5, 0):
        chosen = np.array([sampler.indices(worker, step) for worker in range(8)])
        x, y = loader(step)
        assert x.sharding.is_equivalent_to(sharding, x.ndim)
        assert (x.dtype, y.dtype) == (np.uint8, np.int32)
        np.testing.assert_array_equal(x, images[chosen])
        np.testing.assert_array_equal(y, labels[chosen])
    expected = np.zeros(90, int)
    for step in (5, 0):
        for worker in range(8):
            expected[sampler.indices(worker, step)] += 1
    np.testing.assert_array_equal(source.reads, expected)


def test_loader_of_tokens_and_of_probe_batches():
    train = digit_sequences().train
    sampler = UniformSampler(len(train), workers=8, batch_size=2, seed=0)
    x, y = Loader(train, sampler, on_mesh({"worker": 8}, P("worker")))(3)
    assert x.shape == y.shape == (8, 2, 63)
    np.testing.assert_array_equal(x[:, :, 1:], y[:, :, :-1])
    np.testing.assert_array_equal(x[5], train[sampler.indices(5, 3)][0])


def test_loader_rejects_a_sharding_that_does_not_divide_the_batch():
    source = numbered(30)
    sampler = Sampler(shards.iid(source, 6, seed=0), 3, seed=0)
    for axes, spec in [({"worker": 4}, P("worker")), ({"w": 2, "fsdp": 2}, P("w", "fsdp"))]:
        with pytest.raises(ValueError, match=r"allowed are those that divide \[W, B\] = \[6, 3\]"):
            Loader(source, sampler, on_mesh(axes, spec))


# Augmentation -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize(
    "options",
    [{"crop": 2}, {"flip": True}, {"cutout": 3}, {"crop": 3, "flip": True, "cutout": 4}],
    ids=str,
)
def test_augment_equals_numpy_with_the_same_draws(dtype, options):
    batch, height, width, _ = shape = 16, 7, 9, 2
    x = np.random.default_rng(0).integers(1, 256, shape).astype(dtype)
    key = jax.random.key(5)
    ours = jax.jit(make_augment(**options))(x, key)
    assert ours.dtype == dtype

    crop, cutout = options.get("crop", 0), options.get("cutout", 0)
    crop_key, flip_key, cutout_key = jax.random.split(key, 3)
    offsets = np.array(jax.random.randint(crop_key, (batch, 2), 0, 2 * crop + 1))
    flips = np.array(jax.random.bernoulli(flip_key, shape=(batch, 1, 1, 1))).ravel()
    centers = np.array(jax.random.randint(cutout_key, (batch, 2), 0, jnp.array([[height, width]])))
    expected = np.zeros(shape, dtype)
    for b, row, column, c in np.ndindex(*shape):
        source_column = width - 1 - column if flips[b] and options.get("flip") else column
        i, j = row + offsets[b, 0] - crop, source_column + offsets[b, 1] - crop
        top, left = centers[b] - cutout // 2
        hidden = top <= row < top + cutout and left <= column < left + cutout
        if 0 <= i < height and 0 <= j < width and not hidden:
            expected[b, row, column, c] = x[b, i, j, c]
    np.testing.assert_array_equal(ours, expected)


def test_augment_draws_uniformly_and_for_each_example():
    x = jnp.zeros((2000, 5, 5, 1), jnp.uint8).at[:, 2, 2].set(1)
    cropped = np.asarray(make_augment(crop=1)(x, jax.random.key(0)))
    where = cropped.sum(0)[..., 0]
    assert where.sum() == 2000
    assert where[1:4, 1:4].min() > 150  # 222 expected, deviation 14
    x = jnp.zeros((2000, 5, 5, 1), jnp.uint8).at[:, :, 0].set(1)
    flipped = np.asarray(make_augment(flip=True)(x, jax.random.key(0)))
    assert 0.45 < flipped[:, 0, 4].mean() < 0.55
    holes = 1 - np.asarray(make_augment(cutout=2)(jnp.ones((2000, 5, 5, 1)), jax.random.key(0)))
    assert set(holes.sum((1, 2, 3))) == {1, 2, 4}  # whole, or clipped at one or two borders
    other = make_augment(crop=1)(x, jax.random.key(1))
    assert (other != make_augment(crop=1)(x, jax.random.key(0))).any()


def test_augment_with_nothing_to_do_and_bad_arguments():
    x = np.ones((2, 3, 3, 1), np.uint8)
    np.testing.assert_array_equal(make_augment()(x, jax.random.key(0)), x)
    for name in ("crop", "cutout"):
        with pytest.raises(ValueError, match=f"{name}=-1: allowed are integers from 0"):
            make_augment(**{name: -1})


def test_normalize_brings_the_training_pixels_to_mean_zero_and_deviation_one():
    dataset = digits(channels=3)
    x, _ = dataset.train[np.arange(len(dataset.train))]
    z = np.asarray(jax.jit(lambda x: normalize(x, dataset.mean, dataset.std))(x), np.float64)
    np.testing.assert_allclose(z.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(z.std((0, 1, 2)), 1, atol=1e-5)
    expected = (x / 255 - np.array(dataset.mean)) / np.array(dataset.std)
    np.testing.assert_allclose(z, expected, atol=1e-5)
    stacked = normalize(jnp.asarray(x[:4]).reshape(2, 2, 8, 8, 3), dataset.mean, dataset.std)
    np.testing.assert_allclose(stacked.reshape(4, 8, 8, 3), expected[:4], atol=1e-5)
    tokens = jnp.arange(3)
    assert normalize(tokens, (), ()) is tokens
