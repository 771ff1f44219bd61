"""Every reader of the merging room with a good file for it."""

from __future__ import annotations

import functools
import json

import torch
from container_cases import nemo
from safetensors.torch import save_file

from asrcl.merge.card import MergeRecord, Parent
from asrcl.merge.containers import open_checkpoint
from asrcl.merge.rules import load_rules
from asrcl.merge.vocabulary.tokens import read_tokens

STATE = {"encoder.weight": torch.arange(12.0).reshape(3, 4), "encoder.bias": torch.ones(3), "count": torch.tensor(4)}
PIECES = bytes.fromhex("0a0c0a053c756e6b3e15000000001802") + b"\x0a\x0a\x0a\x03abc\x15\x00\x00\x80\xbf" + b"\x12\x02\x18\x01"
RULES = """
method: ihr
knobs: {tau: 1.0, damping: 1e-1}
rest: 1/t
rules:
  - match: "encoder.layers.0-3.*"
    method: average
    knobs: {strength: 0.3}
  - match: ["*.embed*", "ctc.*"]
    method: keep
"""


def whole(path):
    with open_checkpoint(path) as checkpoint:
        for name in checkpoint.outlines:
            checkpoint.read(name)
            checkpoint.sample(name, 4)
        checkpoint.surroundings()
        return checkpoint.describe()


def saved(tmp, name, make):
    path = tmp / name
    make(path)
    return path.read_bytes()


def folder_file(name, weights="model.safetensors", **others):
    """Reads the folder that a file lies in, with good files beside it."""

    def read(path):
        folder = path.parent / f"{path.name}.folder"
        folder.mkdir(exist_ok=True)
        for other, content in {weights: STATE, **others}.items():
            save_file(content, folder / other) if isinstance(content, dict) and weights == other else (folder / other).write_text(
                json.dumps(content)
            )
        (folder / name).write_bytes(path.read_bytes())
        return whole(folder)

    return read


def readers(tmp):
    """(name, file name, good bytes, reader)."""
    config = {"model_type": "whisper", "d_model": 4, "heads": 2, "list": [1, {"a": "b"}]}
    adapter = {"peft_type": "LORA", "r": 3, "lora_alpha": 8, "alpha_pattern": {"q": 4}, "base_model_name_or_path": "x"}
    factors = {"base_model.model.q.lora_A.weight": torch.ones(3, 4), "base_model.model.q.lora_B.weight": torch.ones(5, 3)}
    index = {"metadata": {"total_size": 52}, "weight_map": {name: "model.safetensors" for name in STATE}}
    vocabulary = {"<pad>": 0, "a": 1, "b": 2}
    tokenizer = {"model": {"vocab": vocabulary}, "added_tokens": [{"content": "c", "id": 3}]}
    record = MergeRecord(method="ihr", parents=(Parent("old", "x", "00", "torch"),), knobs={"tau": 1.0}, notes=("n",))
    wrapped = {"model": STATE, "epoch": 3, "optimizer": {"state": {0: torch.ones(2)}}, "hparams": {"lr": 0.1}}
    before = functools.partial(torch.save, STATE, _use_new_zipfile_serialization=False)
    return [
        ("safetensors", "m.safetensors", saved(tmp, "a.safetensors", lambda p: save_file(STATE, p, {"format": "pt"})), whole),
        ("torch", "m.pt", saved(tmp, "a.pt", lambda p: torch.save(wrapped, p)), whole),
        ("torch before 1.6", "m.ckpt", saved(tmp, "b.pt", before), whole),
        ("nemo", "m.nemo", nemo(tmp, name="a.nemo").read_bytes(), whole),
        ("nemo, compressed", "z.nemo", nemo(tmp, mode="w:gz", name="b.nemo").read_bytes(), whole),
        ("index", "i.json", json.dumps(index).encode(), folder_file("model.safetensors.index.json")),
        ("configuration", "c.json", json.dumps(config).encode(), folder_file("config.json")),
        (
            "adapter configuration", "d.json", json.dumps(adapter).encode(),
            lambda path: _adapter(path, factors),
        ),
        ("rules", "r.yaml", RULES.encode(), load_rules),
        ("rules in JSON", "r.json", b'{"method": "ihr", "rules": [{"match": "*", "method": "keep"}]}', load_rules),
        ("pieces", "t.model", PIECES, read_tokens),
        ("vocabulary", "vocab.json", json.dumps(vocabulary).encode(), read_tokens),
        ("tokenizer", "tokenizer.json", json.dumps(tokenizer).encode(), read_tokens),
        ("token table", "tokens.txt", b"<blk> 0\na 1\nb 2\n", read_tokens),
        ("token lines", "plain.txt", b"<blk>\na\nb\n", read_tokens),
        ("pieces with scores", "t.vocab", b"<unk>\t0\na\t-1.5\n", read_tokens),
        ("ESPnet", "config.yaml", b"batch: 3\ntoken_list:\n- <blank>\n- no\n- '1'\n", read_tokens),
        ("record", "merge.json", json.dumps(record.as_json()).encode(), MergeRecord.load),
    ]  # fmt: skip


def _adapter(path, factors):
    folder = path.parent / "adapter"
    folder.mkdir(exist_ok=True)
    save_file(factors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_bytes(path.read_bytes())
    return whole(folder)
