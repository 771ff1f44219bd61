"""A merged model and what tells where it is from appear together or not at all; bombs and odd links are refused or left out."""

import errno
import gzip
import io
import os
import tarfile
import zipfile

import pytest
import torch
from container_cases import listing
from safetensors.torch import load_file, save_file

from asrcl.exceptions import InputError
from asrcl.merge import MergeSpec, merge_files
from asrcl.merge.card import MergeRecord
from asrcl.merge.containers import open_checkpoint

SPEC = MergeSpec("interpolate", {"strength": 0.5})


def models(folder, suffix="safetensors"):
    paths = [folder / f"{name}.{suffix}" for name in ("old", "new")]
    for path, value in zip(paths, (0.0, 1.0), strict=True):
        state = {"w": torch.full((1000,), value)}
        save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    return paths


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("step", ["card", "record", "flush", "rename"])
def test_a_full_disk_leaves_the_old_result_with_its_record(tmp_path, monkeypatch, suffix, step):
    old, new = models(tmp_path, suffix)
    out = tmp_path / f"m.{suffix}"
    merge_files(old, [new], out, SPEC)
    before = {path: (tmp_path / path).read_bytes() for path in listing(tmp_path)}

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = {
        "card": "asrcl.merge.files.card_text",
        "record": "asrcl.merge.files.json.dumps",
        "flush": "asrcl.merge.containers.staging.fsync_file",
        "rename": "asrcl.merge.containers.staging.publish_companions",
    }[step]
    monkeypatch.setattr(target, full)
    with pytest.raises(InputError, match=r"\(No space left on device\)") as caught:
        merge_files(new, [old], out, MergeSpec("interpolate", {"strength": 0.1}))
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert {path: (tmp_path / path).read_bytes() for path in listing(tmp_path)} == before
    merge_files(new, [old], out, MergeSpec("interpolate", {"strength": 0.1}))
    assert MergeRecord.load(f"{out}.json").knobs["strength"] == 0.1


@pytest.mark.parametrize("room", [0, 100, 900, 4000, 4200, 4700, 6000, 7500, 9000])
def test_any_size_of_disk(tmp_path, room):
    """Limits the size of a file in a process of its own, where a real disk would be full."""
    import subprocess
    import sys

    models(tmp_path)
    code = (
        "import resource, signal, sys\n"
        "from asrcl.merge import MergeSpec, merge_files\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))\n"
        "try: merge_files('old.safetensors', ['new.safetensors'], 'm.safetensors', MergeSpec('interpolate', {'strength': 0.5}))\n"
        "except Exception as error: print(type(error).__name__, error); sys.exit(3)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    names = set(listing(tmp_path)) - {"old.safetensors", "new.safetensors"}
    if done.returncode:
        assert done.stdout.startswith("InputError m.safetensors") and not names
    else:
        assert names == {"m.safetensors", "m.safetensors.json", "m.safetensors.md"}
        assert load_file(tmp_path / "m.safetensors")["w"].unique().tolist() == [0.5]


def test_links_to_other_folders_are_left_out_by_name(tmp_path):
    (tmp_path / "data/deep").mkdir(parents=True)
    (tmp_path / "data/deep/large.bin").write_bytes(b"x")
    for name, value in (("old", 0.0), ("new", 1.0)):
        (tmp_path / name).mkdir()
        save_file({"w": torch.full((2,), value)}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "data").symlink_to(tmp_path / "data")
    record = merge_files(tmp_path / "old", [tmp_path / "new"], tmp_path / "m", SPEC)
    assert listing(tmp_path / "m") == ["README.md", "merge.json", "model.safetensors"]
    assert record.notes == ("the folder data is a link to another place and is left out",)


def test_an_archive_that_unpacks_to_far_more_is_refused_at_once(tmp_path):
    path, size = tmp_path / "m.nemo", 1 << 40
    entry = tarfile.TarInfo("model_weights.ckpt")
    entry.size = size
    with gzip.open(path, "wb", compresslevel=9) as stream:
        stream.write(entry.tobuf())
        for _ in range(64):
            stream.write(bytes(1 << 20))
    with pytest.raises(InputError, match=r"unpacks .*100 times"):
        open_checkpoint(path)


def test_compressed_members_of_a_checkpoint_are_refused(tmp_path):
    plain, path = tmp_path / "plain.pt", tmp_path / "m.pt"
    torch.save({"w": torch.zeros(1 << 16)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    with pytest.raises(InputError, match=r"m\.pt: its member .* is compressed"):
        open_checkpoint(path)


def test_lists_that_hold_themselves_many_times_are_walked_once(tmp_path):
    inner = [0]
    for _ in range(60):
        inner = [inner, inner]
    buffer = io.BytesIO()
    torch.save({"model": {"w": torch.ones(2)}, "history": inner}, buffer)
    (tmp_path / "m.pt").write_bytes(buffer.getvalue())
    assert open_checkpoint(tmp_path / "m.pt").describe().notes == ()


def test_yaml_bombs_and_depths_are_refused(tmp_path):
    from asrcl.merge.rules import load_rules

    path = tmp_path / "r.yaml"
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    for text, why in (
        ("\n".join(lines), "more than 200,000 entries"),
        ("[" * 5000, "YAML"),
        ("a: " + "{b: " * 300 + "1" + "}" * 300, "levels|YAML"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=why):
            load_rules(path)
