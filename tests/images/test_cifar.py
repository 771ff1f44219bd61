"""CIFAR archives, and pickles that call something."""

import io
import os
import pickle
import tarfile

import numpy as np
import pytest
import torch
from image_files import cifar_files, labels, pixels, write_files

from asrcl.exceptions import InputError
from asrcl.images.data import load_images
from asrcl.images.sources.unpickle import load_plain

PLACES = {(10, False): "cifar-10-batches-py", (10, True): "cifar-10-batches-bin",
          (100, False): "cifar-100-python", (100, True): "cifar-100-binary"}  # fmt: skip


def loaded(folder, **options):
    return load_images({"kind": "cifar", **options}, str(folder))


@pytest.mark.parametrize("ending", ["", ".tar.gz"])
@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("version", [10, 100])
def test_both_sets_in_both_versions(tmp_path, version, binary, ending):
    name = PLACES[version, binary]
    name = name.replace("-batches-py", "-python").replace("-batches-bin", "-binary") + ending if ending else name
    write_files(tmp_path / name, cifar_files(version, binary))
    splits = loaded(tmp_path, version=version, dev=20 if version == 100 else 0.1)
    count = 20 if version == 10 else 100
    number = 5 if version == 10 else 1  # of the test set's file
    assert torch.equal(splits["test"].store.tensor, torch.from_numpy(pixels(count, 3072, seed=number)).view(-1, 3, 32, 32))
    assert splits["test"].labels.tolist() == labels(count, version).tolist()
    assert splits["train"].classes[7] == ("class7" if version == 10 else "fine7")
    assert len(splits["train"]) + len(splits["dev"]) == 100


@pytest.mark.parametrize("binary", [False, True])
def test_superclasses(tmp_path, binary):
    write_files(tmp_path / PLACES[100, binary], cifar_files(100, binary))
    splits = loaded(tmp_path, version=100, labels="coarse")
    assert splits["test"].labels.tolist() == (labels(100, 100) // 5).tolist() and splits["test"].classes[19] == "coarse19"


def test_classes_are_numbers_where_no_file_names_them(tmp_path):
    files = cifar_files(10, False)
    del files["batches.meta"]
    write_files(tmp_path / "mine", files)
    assert loaded(tmp_path, file="mine")["test"].classes == tuple("0123456789")


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_every_protocol(protocol):
    array = pixels(6, 5)
    content = {"data": array, "turned": np.asfortranarray(array), "whole": np.arange(4), "real": np.ones((2, 2), np.float32),
               b"list": [1, 2.5, None, True, "text", b"bytes", (1, 2)]}  # fmt: skip
    found = load_plain(pickle.dumps(content, protocol=protocol))
    for name in ("data", "turned", "whole", "real"):
        assert np.array_equal(found[name], content[name]) and found[name].dtype == content[name].dtype
    assert found[b"list"] == content[b"list"]


def test_what_python_2_wrote():
    """As CIFAR's own files are: texts are byte strings, and the array's module has its old name."""
    raw = bytes(range(6))
    content = (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05"
        b"(K\x01K\x02K\x03\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x06" + raw + b"tbU\x06labels]q\x08(K\x00K\x01eu."
    )
    found = load_plain(content)
    assert np.array_equal(found[b"data"], np.frombuffer(raw, np.uint8).reshape(2, 3)) and found[b"labels"] == [0, 1]
    assert np.array_equal(found[b"data"], pickle.loads(content, encoding="bytes")[b"data"])


class Calling:
    """Creates a file when a pickle of it is opened as pickles usually are."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function", [os.mkdir, os.system, io.open, eval, exec])
@pytest.mark.parametrize("place", ["data", "labels", "key", "archive"])
def test_a_pickle_that_calls_something_is_refused_before_it_does(tmp_path, function, place):
    evil = tmp_path / "evil"
    code = f"__import__('os').mkdir({str(evil)!r})"
    arguments = {os.mkdir: (str(evil),), os.system: (f"mkdir {evil}",), io.open: (str(evil), "w")}.get(function, (code,))
    payload = Calling(function, *arguments)
    pickle.loads(pickle.dumps(payload))
    assert evil.exists()  # what is refused below would have been done
    evil.unlink() if evil.is_file() else evil.rmdir()
    files = cifar_files(10, False)
    honest = pickle.loads(files["data_batch_2"])
    changed = {"data": {b"data": payload}, "labels": {b"labels": [payload]}, "key": {b"more": payload}}
    files["data_batch_2"] = pickle.dumps(payload if place == "archive" else honest | changed[place], protocol=2)
    ending = ".tar.gz" if place == "archive" else ""
    write_files(tmp_path / f"mine{ending}", files)
    with pytest.raises(InputError, match=r"data_batch_2.*names .*nothing in it was called") as caught:
        loaded(tmp_path, file=f"mine{ending}")
    assert not evil.exists() and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(np.array([object], dtype=object), protocol=2),
        pickle.dumps(np.dtype("u1"), protocol=2),
        pickle.dumps(np.array(["a", "b"]), protocol=2),
        pickle.dumps(np.arange(3, dtype=">i4"), protocol=2),
        pickle.dumps({1, 2}, protocol=4),
        b"cnumpy\nndarray\n.",
        b"cnumpy.core.multiarray\n_reconstruct\n(tR.",
        b"cnumpy\nndarray\n(tR.",
        b"cbuiltins\ngetattr\n(cnumpy\nndarray\nS'dumps'\ntR.",
    ],
    ids=["objects", "type", "texts", "big-endian", "set", "class", "unfilled", "marker", "getattr"],
)
def test_only_arrays_of_numbers_and_plain_containers(content):
    with pytest.raises(InputError):
        load_plain(content)


def test_a_shape_that_does_not_fit_its_bytes():
    honest = pickle.dumps(np.zeros((2, 3), np.uint8), protocol=2)
    assert honest.count(b"K\x02K\x03\x86") == 1
    with pytest.raises(InputError, match=r"\(9, 3\) with 6 bytes"):
        load_plain(honest.replace(b"K\x02K\x03\x86", b"K\x09K\x03\x86"))


def test_a_pickle_that_holds_itself(tmp_path):
    circle = []
    circle.append(circle)
    content = pickle.dumps({b"data": circle, b"labels": []}, protocol=2)
    write_files(tmp_path / "mine", cifar_files(10, False) | {"data_batch_1": content})
    with pytest.raises(InputError, match="data_batch_1"):
        loaded(tmp_path, file="mine")


@pytest.mark.parametrize(
    "change, fault",
    [
        ({b"data": np.zeros((20, 3071), np.uint8)}, r"data_batch_1.*3072"),
        ({b"data": np.zeros((20, 3072), np.int64)}, "data_batch_1.*bytes"),
        ({b"data": [1]}, "data_batch_1.*bytes"), ({b"labels": [0] * 19}, "data_batch_1: labels are not 20"),
        ({b"labels": ["a"] * 20}, "data_batch_1: labels"), ({b"labels": [0] * 19 + [10]}, "0 to 10, but there are 10"),
        ({b"labels": [-1] * 20}, "-1 to"),
    ],
)  # fmt: skip
def test_contents_that_are_not_cifar(tmp_path, change, fault):
    files = cifar_files(10, False)
    files["data_batch_1"] = pickle.dumps(pickle.loads(files["data_batch_1"]) | change, protocol=2)
    write_files(tmp_path / "mine", files)
    with pytest.raises(InputError, match=fault) as caught:
        loaded(tmp_path, file="mine")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage, fault",
    [
        (lambda files: files.pop("data_batch_3"), "holds no data_batch_3"),
        (lambda files: files.update(data_batch_3=files["data_batch_3"][:5000]), "data_batch_3"),
        (lambda files: files.update(data_batch_3=b""), "data_batch_3"),
        (lambda files: files.update({"batches.meta": pickle.dumps({b"label_names": [b"a"]})}), "batches.meta.*1 names"),
        (lambda files: files.update({"batches.meta": pickle.dumps({b"names": [b"a"]})}), "batches.meta"),
        (lambda files: files.update(data_batch_3=pickle.dumps([1], protocol=2)), "data_batch_3"),
    ],
)
def test_python_files_that_are_damaged(tmp_path, damage, fault):
    files = cifar_files(10, False)
    damage(files)
    write_files(tmp_path / "mine", files)
    with pytest.raises(InputError, match=fault) as caught:
        loaded(tmp_path, file="mine")
    assert "\n" not in str(caught.value)


def test_binary_files_that_are_damaged(tmp_path):
    files = cifar_files(10, True)
    files["data_batch_4.bin"] = files["data_batch_4.bin"][:-1]
    write_files(tmp_path / "mine", files)
    with pytest.raises(InputError, match=r"data_batch_4\.bin: 61459 bytes.*3073"):
        loaded(tmp_path, file="mine")


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_an_archive_that_is_cut_short(tmp_path, size):
    path = tmp_path / "cifar-10-python.tar.gz"
    write_files(path, cifar_files(10, False))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match=r"cifar-10-python\.tar\.gz") as caught:
        loaded(tmp_path)
    assert "\n" not in str(caught.value)


def test_links_and_paths_in_an_archive_lead_nowhere(tmp_path):
    (tmp_path / "secret").write_bytes(cifar_files(10, False)["test_batch"])
    path = tmp_path / "mine.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in cifar_files(10, False).items():
            member = tarfile.TarInfo(f"../{name}")
            if name == "test_batch":
                member.type, member.linkname = tarfile.SYMTYPE, str(tmp_path / "secret")
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    with pytest.raises(InputError, match="holds no test_batch"):
        loaded(tmp_path, file="mine.tar.gz")
    assert sorted(child.name for child in tmp_path.iterdir()) == ["mine.tar.gz", "secret"]


@pytest.mark.parametrize(
    "options, fault",
    [
        ({"version": 20}, "version=20"),
        ({"labels": "coarse"}, "version=10 with labels=coarse"),
        ({"version": 100, "labels": "all"}, "labels=all"),
        ({"version": "ten"}, "version=ten"),
    ],
)
def test_options_that_cifar_does_not_have(tmp_path, options, fault):
    with pytest.raises(InputError, match=fault):
        loaded(tmp_path, **options)


def test_another_version_than_what_is_there(tmp_path):
    write_files(tmp_path / "mine", cifar_files(100, False))
    with pytest.raises(InputError, match="holds no data_batch_1"):
        loaded(tmp_path, file="mine")
