"""The .nemo archives, honest and hostile."""

import gzip
import io
import tarfile

import pytest
import torch
from container_cases import bits, content, directory, nemo, odd_state, rewrite

from asrcl.exceptions import InputError
from asrcl.merge.containers import load_state, open_checkpoint


def members(path):
    with tarfile.open(path) as archive:
        return [(m.name, m.type, archive.extractfile(m).read() if m.isfile() else None) for m in archive.getmembers()]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_archives_keep_members_order_and_compression(tmp_path, mode):
    source = nemo(tmp_path, mode)
    out = rewrite(source, tmp_path / "new" / "out.nemo", lambda name, t: t + 1 if t.is_floating_point() else t)
    before, after = members(source), members(out)
    assert [m[:2] for m in before] == [m[:2] for m in after] and len(before) == 5
    for old, new in zip(before, after, strict=True):
        assert (old == new) == (old[0] != "./model_weights.ckpt"), old[0]
    assert source.read_bytes()[:6] == out.read_bytes()[:6] or mode == "w:gz"
    assert (source.read_bytes()[:2] == b"\x1f\x8b") == (out.read_bytes()[:2] == b"\x1f\x8b") == (mode == "w:gz")
    expected = {name: bits(t + 1 if t.is_floating_point() else t) for name, t in odd_state().items()}
    assert dict(content(out)) == expected
    assert content(rewrite(source, tmp_path / "same.nemo")) == content(source)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["out.nemo"]


def test_an_archive_says_what_is_in_it_and_cleans_up(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    source = nemo(tmp_path)
    with open_checkpoint(source) as checkpoint:
        origin = checkpoint.describe()
        assert (origin.kind, origin.files) == ("nemo", (source,))
        assert origin.extras == ("./model_config.yaml", "./a1b2_tokenizer.model", "./a1b2_vocab.txt")
        kept = checkpoint.read("encoder.weight")
    assert not list((tmp_path / "scratch").iterdir())
    assert torch.equal(kept, odd_state()["encoder.weight"])
    load_state(source)
    with pytest.raises(InputError):
        open_checkpoint(nemo(tmp_path, members={"./model_weights.ckpt": b"abc"}, name="bad.nemo"))
    assert not list((tmp_path / "scratch").iterdir())


def hostile(path, entry):
    weights = io.BytesIO()
    torch.save(odd_state(), weights)
    with tarfile.open(path, "w") as archive:
        archive.addfile(directory("."))
        good = tarfile.TarInfo("model_weights.ckpt")
        good.size = len(weights.getvalue())
        archive.addfile(good, io.BytesIO(weights.getvalue()))
        archive.addfile(entry, io.BytesIO(b"x" * entry.size))
    return path


def member(name, kind=tarfile.REGTYPE, link=""):
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, link
    entry.size = 1 if kind == tarfile.REGTYPE else 0
    return entry


@pytest.mark.parametrize(
    "entry, message",
    [
        (member("../evil"), "leads out of the archive"),
        (member("a/../../evil"), "leads out of the archive"),
        (member("/etc/evil"), "leads out of the archive"),
        (member("..\\evil"), "leads out of the archive"),
        (member("C:\\evil"), "leads out of the archive"),
        (member("link", tarfile.SYMTYPE, "/etc/passwd"), "link or a device"),
        (member("link", tarfile.LNKTYPE, "model_weights.ckpt"), "link or a device"),
        (member("pipe", tarfile.FIFOTYPE), "link or a device"),
        (member("null", tarfile.CHRTYPE), "link or a device"),
        (member("./model_weights.ckpt"), r"holds 2 members model_weights\.ckpt"),
    ],
)
def test_hostile_archives_are_refused(tmp_path, entry, message):
    with pytest.raises(InputError, match=rf"bad\.nemo: .*{message}") as caught:
        open_checkpoint(hostile(tmp_path / "bad.nemo", entry))
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.nemo"]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("keep", [10, 700, 3000])
def test_truncated_archives_are_refused(tmp_path, mode, keep):
    path = nemo(tmp_path, mode)
    keep = min(keep, path.stat().st_size - 200)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"model\.nemo: .*(damaged|cannot be unpacked|holds 0 members)") as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "inside, message",
    [
        ({"./model_config.yaml": b"a"}, r"holds 0 members model_weights\.ckpt .*found \., \./model_config\.yaml"),
        ({"./model_weights.ckpt": b"abc"}, r"model_weights\.ckpt: (damaged|holds more)"),
    ],
)
def test_archives_without_a_readable_model_are_refused(tmp_path, inside, message):
    with pytest.raises(InputError, match=rf"model\.nemo: {message}"):
        open_checkpoint(nemo(tmp_path, members=inside))


def test_a_nemo_is_not_written_under_another_name(tmp_path):
    with pytest.raises(InputError, match=r"out\.pt: .*\.nemo, .*\.safetensors"):
        rewrite(nemo(tmp_path), tmp_path / "out.pt")


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_an_archive_cut_between_two_members_is_refused(tmp_path, mode):
    whole = nemo(tmp_path, "w", name="whole.nemo")
    with tarfile.open(whole) as archive:
        last = archive.getmembers()[-1].offset
    cut = whole.read_bytes()[:last]
    (tmp_path / "cut.nemo").write_bytes(gzip.compress(cut) if mode == "w:gz" else cut)
    with pytest.raises(InputError, match=r"cut\.nemo: damaged \.nemo archive \(it ends early\)"):
        open_checkpoint(tmp_path / "cut.nemo")
