"""From checkpoint to checkpoint: the numbers of `merge`, the old model's container, a card, nothing after an error."""

import json

import pytest
import torch
from merge_cases import floating, make_curvature, make_state
from safetensors.torch import load_file, save_file

from asrcl.curvature import Curvature
from asrcl.exceptions import InputError
from asrcl.merge import MergeSpec, merge, merge_files, methods, preview_files
from asrcl.merge.rules import parse_rules


@pytest.fixture
def folder(tmp_path):
    save_file(make_state(1), tmp_path / "old.safetensors")
    torch.save({"model": make_state(2), "epoch": 3}, tmp_path / "new.pt")
    make_curvature().save(tmp_path / "curvature.safetensors")
    return tmp_path


def spec(folder, method="ihr", **rest):
    return MergeSpec(method, curvature=[folder / "curvature.safetensors"], **rest)


def merged_by_files(folder, chosen, news=("new.pt",), out="merged.safetensors", **options):
    record = merge_files(folder / "old.safetensors", [folder / name for name in news], folder / out, chosen, **options)
    return load_file(folder / out), record


@pytest.mark.parametrize("method", sorted(methods()))
def test_files_are_merged_as_states_are(folder, method):
    save_file(make_state(0), folder / "base.safetensors")
    base, new_curvature = folder / "base.safetensors" if methods()[method].least > 1 else None, None
    chosen = spec(folder, method, base=base)
    if "new_blocks" in methods()[method].context:
        new_curvature = make_curvature(5)
        new_curvature.save(folder / "new_curvature.safetensors")
        chosen = spec(folder, method, new_curvature=[folder / "new_curvature.safetensors"])
    found, record = merged_by_files(folder, chosen)
    stored = Curvature.load(folder / "curvature.safetensors")
    if new_curvature is not None:
        new_curvature = Curvature.load(folder / "new_curvature.safetensors")
    wanted = merge(make_state(1), make_state(2), method, curvature=stored, new_curvature=new_curvature, base=base)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)
    assert record.method == method and sum(record.counts.values()) == len(wanted)


def test_the_card_says_what_was_done(folder):
    _, record = merged_by_files(folder, spec(folder, knobs={"tau": 0.5}, budget=1e-6), command="asrcl merge old new")
    card = (folder / "merged.safetensors.md").read_text()
    facts = json.loads((folder / "merged.safetensors.json").read_text())
    assert facts == json.loads(json.dumps(record.as_json()))
    assert "asrcl merge old new" in card and "old.safetensors" in card and str(folder) not in card
    old, found = make_state(1), load_file(folder / "merged.safetensors")
    delta = {name: (found[name] - tensor).double() for name, tensor in floating(old).items()}
    curvature = Curvature.load(folder / "curvature.safetensors")
    assert record.totals.predicted == pytest.approx(float(curvature.quadratic(delta)), rel=1e-4)
    assert record.totals.predicted == pytest.approx(1e-6, rel=1e-4) and 0 < record.budget.scale < 1


def test_a_preview_tells_what_the_merge_does(folder):
    previews, scale = preview_files(folder / "old.safetensors", [folder / "new.pt"], spec(folder))
    _, record = merged_by_files(folder, spec(folder))
    assert scale == 1.0 and [p.row.name for p in previews] == [layer.name for layer in record.layers]
    assert [p.effect and p.effect.predicted for p in previews] == [layer.predicted for layer in record.layers]
    unmeasured, _ = preview_files(folder / "old.safetensors", [folder / "new.pt"], spec(folder), measure=False)
    assert all(p.effect is None for p in unmeasured)


def test_the_container_of_the_old_model_is_kept(folder):
    merge_files(folder / "new.pt", [folder / "old.safetensors"], folder / "back.pt", MergeSpec("average"))
    whole = torch.load(folder / "back.pt", weights_only=True)
    assert whole["epoch"] == 3 and whole["model"].keys() == make_state(1).keys()
    plain = folder / "b.safetensors"
    merge_files(folder / "new.pt", [folder / "old.safetensors"], plain, MergeSpec("average"), container="safetensors")
    assert all(torch.equal(t, whole["model"][n]) for n, t in load_file(folder / "b.safetensors").items())


def test_several_models_and_a_base(folder):
    save_file(make_state(3), folder / "third.safetensors")
    found, _ = merged_by_files(folder, MergeSpec("average"), news=("new.pt", "third.safetensors"))
    wanted = merge(make_state(1), [make_state(2), make_state(3)], "average")
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    save_file(make_state(0), folder / "base.safetensors")
    found, record = merged_by_files(folder, MergeSpec("opcm", base=folder / "base.safetensors"))
    wanted = merge(make_state(1), make_state(2), "opcm", base=make_state(0))
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert [parent.role for parent in record.parents] == ["old", "new", "base"]


def test_rules(folder):
    entries = [{"match": "enc*", "method": "keep"}, {"match": "pack*", "knobs": {"tau": 0.0}}]
    rules = parse_rules({"rules": entries, "method": "ihr"})
    found, _ = merged_by_files(folder, spec(folder, rules=rules))
    old = make_state(1)
    assert torch.equal(found["encoder.weight"], old["encoder.weight"]) and torch.equal(found["packed"][:2], old["packed"][:2])
    with pytest.raises(InputError, match=r"no tensor .*rule 'encodr\*'"):
        merged_by_files(folder, spec(folder, rules=parse_rules({"rules": [{"match": "encodr*", "method": "keep"}]})))


@pytest.mark.parametrize("policy", ["keep-old", "backbone-only", "union"])
def test_vocabularies(folder, policy):
    def state(seed, tokens):
        torch.manual_seed(seed)
        shapes = {"body.weight": (3, 4), "embed.weight": (len(tokens), 4), "out.bias": (len(tokens),)}
        return {name: torch.randn(shape) for name, shape in shapes.items()}

    tokens = ["<blank>", "a", "b", "c"], ["<blank>", "b", "d", "a", "e"]
    for name, (seed, words) in {"old": (1, tokens[0]), "new": (2, tokens[1])}.items():
        (folder / name).mkdir()
        save_file(state(seed, words), folder / name / "m.safetensors")
        (folder / name / "tokens.txt").write_text("".join(f"{token} {n}\n" for n, token in enumerate(words)))
    paths = [folder / name / "m.safetensors" for name in ("old", "new")]
    with pytest.raises(InputError, match="2 tensor"):
        merge_files(paths[0], paths[1:], folder / "x.safetensors", MergeSpec("average"))
    lists = (folder / "old" / "tokens.txt", folder / "new" / "tokens.txt")
    chosen = MergeSpec("average", vocabulary=policy, tokens=lists)
    (folder / "out").mkdir()
    record = merge_files(paths[0], paths[1:], folder / "out" / "m.safetensors", chosen)
    found, old, new = load_file(folder / "out" / "m.safetensors"), state(1, tokens[0]), state(2, tokens[1])
    torch.testing.assert_close(found["body.weight"], (old["body.weight"] + new["body.weight"]) / 2)
    if policy != "union":
        assert torch.equal(found["embed.weight"], old["embed.weight"]) and record.counts["keep"] == 2
        return
    rows = found["out.bias"]
    assert rows[3] == old["out.bias"][3] and rows[4] == new["out.bias"][2] and rows[5] == new["out.bias"][4]
    torch.testing.assert_close(rows[1], (old["out.bias"][1] + new["out.bias"][3]) / 2)
    assert [line.split()[0] for line in (folder / "out" / "tokens.txt").read_text().splitlines()] == [*tokens[0], "d", "e"]


def broken(state):
    state["gain"] = torch.tensor(float("nan"))
    return state


def test_nothing_is_left_after_an_error(folder):
    save_file(broken(make_state(2)), folder / "nan.safetensors")
    before = sorted(path.name for path in folder.iterdir())
    for news, chosen, message in (
        (["nan.safetensors"], spec(folder), "gain of the new model holds NaN"),
        (["new.pt"], spec(folder, knobs={"damping": -1.0}), "damping must be"),
        (["new.pt"], MergeSpec("average", rest=0.5), "treats every tensor"),
        (["gone.pt"], spec(folder), "no such file"),
        ([], spec(folder), "no new model"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            merged_by_files(folder, chosen, news=news)
        assert "\n" not in str(caught.value)
    assert sorted(path.name for path in folder.iterdir()) == before
