"""Models of different vocabularies or shapes: each policy, and that every row comes from the right model."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from merge_cases import kron

from asrcl.curvature import BlockKey, Curvature
from asrcl.exceptions import InputError
from asrcl.merge import merge
from asrcl.merge.sources import StateSource
from asrcl.merge.vocabulary import FittedSource, TokenUnion, align
from asrcl.merge.vocabulary.tokens import TokenList

WIDTH = 3
OLD_TOKENS = ("<blank>", "<unk>", "a", "b", "c", "<sos/eos>")
NEW_TOKENS = ("<blank>", "<unk>", "c", "x", "a", "y", "z", "<sos/eos>")


def make_model(tokens, model, trailing=0, width=WIDTH):
    """Every value of a row tells model and place: 100 model + place."""
    rows = 100.0 * model + torch.arange(len(tokens) + trailing, dtype=torch.float32)
    return {
        "decoder.embed.weight": rows[:, None].repeat(1, width),
        "encoder.layer.weight": torch.full((4, width), float(model)),
        "ctc.weight": rows[:, None, None].repeat(1, width, 1),
        "ctc.bias": rows.clone(),
        "turned.weight": rows.repeat(width, 1),
    }


VOCABULARY = ["decoder.embed.weight", "ctc.weight", "ctc.bias", "turned.weight"]


def outlines(model):
    return {name: tuple(tensor.shape) for name, tensor in model.items()}


def rows_of(name, tensor):
    rows = tensor.T if name == "turned.weight" else tensor
    return rows.reshape(len(rows), -1)[:, 0]


letters = st.lists(st.sampled_from("abcdefghijklmnop"), min_size=1, max_size=9, unique=True)


@st.composite
def vocabularies(draw):
    """Two lists of tokens that share some letters, with special tokens anywhere."""
    shared = draw(letters)
    lists = []
    for own in ("qrs", "tuv"):
        more = draw(st.lists(st.sampled_from(own), unique=True))
        lists.append(draw(st.permutations([*shared, *more, "<blank>", "<unk>"])))
    return tuple(lists[0]), tuple(lists[1])


@given(vocabularies(), st.integers(0, 2))
def test_union_takes_every_row_from_the_right_model(lists, trailing):
    old_tokens, new_tokens = lists
    old, new = make_model(old_tokens, 1, trailing, width=30), make_model(new_tokens, 2, trailing, width=30)
    alignment = align(outlines(old), outlines(new), "union", lists, trailing=trailing, tensors=VOCABULARY)
    if old_tokens == new_tokens:
        assert {plan.action for plan in alignment.plans.values()} == {"merge"}
        return
    merged_tokens = alignment.tokens.tokens
    assert merged_tokens[: len(old_tokens)] == old_tokens and set(merged_tokens) == {*old_tokens, *new_tokens}
    for name in VOCABULARY:
        first, second = alignment.pair(name, old[name], new[name])
        assert first.shape == second.shape == alignment.shapes[name]
        first, second = rows_of(name, first), rows_of(name, second)
        for place, token in enumerate(merged_tokens):
            from_old = 100 + old_tokens.index(token) if token in old_tokens else None
            from_new = 200 + new_tokens.index(token) if token in new_tokens else None
            assert first[place] == (from_new if from_old is None else from_old)
            assert second[place] == (from_old if from_new is None else from_new)
        for n in range(trailing):
            assert first[len(merged_tokens) + n] == 100 + len(old_tokens) + n
            assert second[len(merged_tokens) + n] == 200 + len(new_tokens) + n


def test_union_says_what_it_does():
    old, new = make_model(OLD_TOKENS, 1), make_model(NEW_TOKENS, 2)
    alignment = align(outlines(old), outlines(new), "union", (OLD_TOKENS, NEW_TOKENS))
    assert alignment.tokens.tokens == (*OLD_TOKENS, "x", "y", "z")
    assert alignment.shapes == {n: tuple(9 if a == 6 else a for a in shape) for n, shape in outlines(old).items()}
    assert alignment.why("ctc.bias") == "5 tokens of both, 1 only old, 3 only new" and alignment.why("encoder.layer.weight") == ""
    assert alignment.notes[0] == "9 tokens: 5 in both models, 1 only in the old, 3 only new (x, y, z)"
    assert any("must say 9 outputs" in note for note in alignment.notes)
    with pytest.raises(TypeError):
        alignment.plans["ctc.bias"] = None
    with pytest.raises(AttributeError):
        alignment.policy = "error"


def test_merging_in_the_old_shape_keeps_curvature_and_appends_the_new_rows():
    torch.manual_seed(0)
    old = {n: torch.randn_like(t) for n, t in make_model(OLD_TOKENS, 1).items()}
    new = {n: torch.randn_like(t) for n, t in make_model(NEW_TOKENS, 2).items()}
    alignment = align(outlines(old), outlines(new), "union", (OLD_TOKENS, NEW_TOKENS))
    fitted = FittedSource(alignment, StateSource(old), StateSource(new))
    assert {n: tuple(o.shape) for n, o in fitted.outlines.items()} == outlines(old)
    curvature = Curvature({BlockKey("decoder.embed.weight", 0, 6): kron(6, WIDTH)})
    merged = merge(old, {name: fitted.read(name) for name in old}, "ihr", curvature=curvature)
    whole = {name: alignment.extended(name, tensor, new[name]) for name, tensor in merged.items()}
    assert outlines(whole) == alignment.shapes
    embed = whole["decoder.embed.weight"]
    assert torch.equal(embed[6:], new["decoder.embed.weight"][[3, 5, 6]])
    assert not torch.equal(embed[:6], old["decoder.embed.weight"])
    bias = whole["ctc.bias"]
    assert torch.equal(bias[3], old["ctc.bias"][3])  # "b" is the old model's alone
    assert torch.allclose(bias[2], (old["ctc.bias"][2] + new["ctc.bias"][4]) / 2)  # "a" is in both


def test_identical_models_come_back_to_the_bit_through_a_union():
    old = make_model(OLD_TOKENS, 1)
    alignment = align(outlines(old), outlines(old), "union", (OLD_TOKENS, OLD_TOKENS))
    for name, tensor in old.items():
        first, second = alignment.pair(name, tensor, tensor)
        assert torch.equal(first, tensor) and torch.equal(second, tensor)


def test_mixed_precision_rounds_new_rows_alike_on_both_sides():
    old, new = torch.zeros(6, WIDTH, dtype=torch.bfloat16), torch.full((8, WIDTH), 1 / 3)
    alignment = align({"embed": old}, {"embed": new}, "union", (OLD_TOKENS, NEW_TOKENS))
    first, second = alignment.pair("embed", old, new)
    assert first.dtype == torch.bfloat16 and second.dtype == torch.float32
    assert torch.equal(first[6:].float(), second[6:]) and second[0, 0] == new[0, 0]


def test_special_tokens_stay_in_their_place_under_the_old_name():
    union = TokenUnion.of(TokenList(("<blank>", "a", "<sos>")), TokenList(("<s>", "<pad>", "a", "<blk>", "b")))
    assert union.tokens == ("<blank>", "a", "<sos>", "<pad>", "b")
    assert dict(zip(union.old_index, union.new_index, strict=True)) == {0: 3, 1: 2, 2: 0}
    assert set(union.renamed) == {("<blk>", "<blank>"), ("<s>", "<sos>")}


def test_error_lists_what_differs_in_a_table():
    old = {f"layers.{n}.weight": (4, n + 1) for n in range(15)} | {"same": (3,), "gone": (2,)}
    new = {f"layers.{n}.weight": (5, n + 1) for n in range(15)} | {"same": (3,), "more": (1, 2)}
    with pytest.raises(InputError) as error:
        align(old, new)
    lines = str(error.value).splitlines()
    assert "17 tensor(s) differ" in lines[0] and lines[1].split() == ["tensor", "old", "new"]
    assert lines[2].split() == ["layers.0.weight", "[4,", "1]", "[5,", "1]"]
    assert len(lines) == 2 + 12 + 1 and lines[-1].strip() == "and 5 more"
    with pytest.raises(InputError, match=r"more +missing +\[1, 2\]"):
        align({"same": (3,)}, {"same": (3,), "more": (1, 2)})
    with pytest.raises(InputError, match=r"vocabulary: .*backbone-only or union"):
        align(outlines(make_model(OLD_TOKENS, 1)), outlines(make_model(NEW_TOKENS, 1)))


def test_models_alike_need_no_policy():
    model = make_model(OLD_TOKENS, 1)
    alignment = align(model, model)
    assert all(alignment.pair(name, tensor, tensor)[1] is tensor for name, tensor in model.items())
    assert alignment.notes == () and alignment.shapes == outlines(model)


def test_other_kinds_of_numbers_differ_too():
    old, new = {"w": torch.zeros(3)}, {"w": torch.zeros(3, dtype=torch.int8)}
    with pytest.raises(InputError, match=r"w +\[3\] float32 +\[3\] int8"):
        align(old, new)
    assert align(old, new, "keep-old").plans["w"].action == "keep"


def test_keep_old_leaves_alone_what_differs():
    old = {"a": torch.ones(2), "b": torch.ones(3), "only_old": torch.ones(1)}
    new = {"a": torch.zeros(2), "b": torch.zeros(4), "only_new": torch.zeros(1)}
    alignment = align(old, new, "keep-old")
    actions = {"a": "merge", "b": "keep", "only_old": "keep", "only_new": "drop"}
    assert {n: f.action for n, f in alignment.plans.items()} == actions
    assert list(alignment.shapes) == ["a", "b", "only_old"]
    for name, other in (("b", new["b"]), ("only_old", None)):
        assert all(view is old[name] for view in alignment.pair(name, old[name], other))
    assert alignment.pair("a", old["a"], new["a"]) == (old["a"], new["a"])
    assert alignment.notes == ("kept from the old model: b, only_old", "dropped, for only the new model has them: only_new")
    with pytest.raises(InputError, match="no place"):
        alignment.pair("only_new", None, new["only_new"])
    assert torch.equal(FittedSource(alignment, StateSource(old), StateSource(new)).read("only_old"), old["only_old"])


def test_backbone_only_keeps_the_vocabulary_and_nothing_else():
    old, new = make_model(OLD_TOKENS, 1), make_model(NEW_TOKENS, 2)
    for tokens in (None, (OLD_TOKENS, NEW_TOKENS)):
        alignment = align(outlines(old), outlines(new), "backbone-only", tokens)
        assert {n for n, f in alignment.plans.items() if f.action == "keep"} == set(VOCABULARY)
        assert alignment.plans["encoder.layer.weight"].action == "merge"
    wider = outlines(new) | {"encoder.layer.weight": (7, WIDTH)}
    with pytest.raises(InputError, match="1 tensor") as error:
        align(outlines(old), wider, "backbone-only", (OLD_TOKENS, NEW_TOKENS))
    assert "encoder.layer.weight" in str(error.value) and "ctc.bias" not in str(error.value)


def test_backbone_only_does_not_take_a_wider_layer_for_a_vocabulary():
    def with_inner(size):
        inner = {f"layers.{n}.linear1.weight": (size, 8) for n in range(3)}
        return inner | {f"layers.{n}.linear2.weight": (8, size) for n in range(3)}

    with pytest.raises(InputError, match="6 tensor"):
        align(with_inner(16), with_inner(32), "backbone-only")
    both = [{"embed.weight": (size, 8), "positions.weight": (size, 8)} for size in (6, 8)]
    with pytest.raises(InputError, match="2 tensor"):
        align(*both, "backbone-only")
    position = {"decoder.embed_positions.weight": (448, 8)}, {"decoder.embed_positions.weight": (224, 8)}
    with pytest.raises(InputError, match="embed_positions"):
        align(*position, "backbone-only")


def test_backbone_only_allows_an_output_that_one_model_ties():
    old = {"embed_tokens.weight": (6, 4), "w": (4, 4)}
    new = {"embed_tokens.weight": (8, 4), "w": (4, 4), "lm_head.weight": (8, 4)}
    assert align(old, new, "backbone-only").plans["lm_head.weight"].action == "drop"
    with pytest.raises(InputError, match="q"):
        align(old, {**new, "q": (8, 4)}, "backbone-only")
    with pytest.raises(InputError, match="lm_head"):
        align(old, new, "union", (OLD_TOKENS, NEW_TOKENS))


def test_vocabularies_of_one_size_are_told_apart_by_their_tokens():
    other = ("<blank>", "<unk>", "c", "a", "d", "<sos/eos>")
    old, new = make_model(OLD_TOKENS, 1), make_model(other, 2)
    with pytest.raises(InputError, match=r"different tokens: number 2 is 'a' and 'c'"):
        align(outlines(old), outlines(new), "error", (OLD_TOKENS, other), tensors=VOCABULARY)
    with pytest.raises(InputError, match=r"6 tokens, .*turned\.weight"):
        align(outlines(old), outlines(new), "union", (OLD_TOKENS, other))
    alignment = align(outlines(old), outlines(new), "backbone-only", (OLD_TOKENS, other), tensors=VOCABULARY)
    assert alignment.plans["ctc.bias"].action == "keep" and alignment.why("ctc.bias") == "other tokens"
    with pytest.raises(InputError, match=r"several axes of \[6, 6\]"):
        align({"embed": (6, 6)}, {"embed": (6, 6)}, "union", (OLD_TOKENS, other))


def test_outputs_behind_the_tokens_are_told():
    old, new = outlines(make_model(OLD_TOKENS, 1, 1)), outlines(make_model(NEW_TOKENS, 2, 1))
    with pytest.raises(InputError, match=r"6 tokens, .*old model .*\(seen: 1, 3, 4, 7\).*trailing=1"):
        align(old, new, "union", (OLD_TOKENS, NEW_TOKENS))
    mixed = {"embed": (6, 3), "joint": (11, 3)}, {"embed": (8, 3), "joint": (13, 3)}
    fates = align(*mixed, "union", (OLD_TOKENS, NEW_TOKENS), trailing=(0, 5)).plans
    assert (fates["embed"].trailing, fates["joint"].trailing, fates["joint"].shape) == (0, 5, (14, 3))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (None, "tokens of both models"),
        (((*OLD_TOKENS, "q", "r"), NEW_TOKENS), r"8 tokens, .*old model .* \(seen: 3, 4, 6\)"),
        ((OLD_TOKENS, ("a", "b", "c", "a")), r"1 token\(s\) come twice: 'a'"),
        ((OLD_TOKENS, ("<blank>", *"defghi", "<unk>")), "share no token"),
        ((OLD_TOKENS, ()), "there are no tokens"),
        ((OLD_TOKENS, ("a", 3)), "tokens are text, not int"),
    ],
)
def test_token_lists_that_do_not_fit_are_refused(tokens, message):
    old = {"embed": (6, 3), "w": (4, 3)}
    with pytest.raises(InputError, match=message):
        align(old, {"embed": (8, 3), "w": (4, 3)}, "union", tokens)


def test_token_lists_of_other_models_are_refused():
    with pytest.raises(InputError, match=r"no tensor goes from 6 outputs .* to 8"):
        align({"embed": (6, 3), "w": (8, 6)}, {"embed": (6, 3), "w": (8, 6)}, "union", (OLD_TOKENS, NEW_TOKENS))
    with pytest.raises(InputError, match="policy 'unite'"):
        align({}, {}, "unite")


def test_new_rows_must_be_finite_and_present():
    old, new = make_model(OLD_TOKENS, 1), make_model(NEW_TOKENS, 2)
    alignment = align(outlines(old), outlines(new), "union", (OLD_TOKENS, NEW_TOKENS))
    new["ctc.bias"][3] = float("nan")
    with pytest.raises(InputError, match=r"ctc\.bias of the new model .*NaN"):
        alignment.pair("ctc.bias", old["ctc.bias"], new["ctc.bias"])
    with pytest.raises(InputError, match=r"ctc\.bias of the new model .*needed"):
        alignment.pair("ctc.bias", old["ctc.bias"], None)


def test_merged_tokens_are_written_in_the_old_form(tmp_path):
    paths = []
    for name, tokens in (("old", OLD_TOKENS), ("new", NEW_TOKENS)):
        (tmp_path / name).mkdir()
        paths.append(tmp_path / name / "tokens.txt")
        paths[-1].write_text("".join(f"{token} {n}\n" for n, token in enumerate(tokens)))
    shapes = [outlines(make_model(tokens, 1)) for tokens in (OLD_TOKENS, NEW_TOKENS)]
    alignment = align(*shapes, "union", (paths[0], tmp_path / "new"))
    (written,) = alignment.write_tokens(tmp_path / "out")
    assert written == tmp_path / "out" / "tokens.txt"
    assert written.read_text().splitlines()[-4:] == ["<sos/eos> 5", "x 6", "y 7", "z 8"]
    assert any("no longer the last" in note and "special_tokens" in note for note in alignment.notes)
    align(*shapes, "backbone-only", paths).write_tokens(tmp_path / "out")
    assert written.read_text() == paths[0].read_text()
    with pytest.raises(InputError, match=r"tokens .*not known"):
        align(*shapes, "keep-old").write_tokens(tmp_path)
