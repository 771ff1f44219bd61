"""Files of tokens: read in every form, written back longer, and the tokenisers' own libraries agree."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asrcl.exceptions import InputError
from asrcl.merge.vocabulary.pieces import NORMAL, UNKNOWN, Piece, pieces_of, with_pieces
from asrcl.merge.vocabulary.token_files import remarks, write_tokens
from asrcl.merge.vocabulary.tokens import read_tokens, role_of

ESPNET = """\
# made by a recipe
batch_type: folded
token_list:
- <blank>
- <unk>
- 'no'
- =
- '1'
- "▁the"
- <sos/eos>
init: null
"""
TOKENIZER = {
    "added_tokens": [{"id": 3, "content": "<|end|>", "special": True}],
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    "model": {"type": "BPE", "vocab": {"h": 0, "i": 1, "hi": 2}, "merges": ["h i"]},
}
UNIGRAM = {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0], ["b", -2.5]]}}


@pytest.fixture
def write(tmp_path):
    def written(name, content):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False))
        return path

    return written


FORMS = [
    ("tokens.txt", "<blk> 0\n<unk> 1\n▁a 2\n  3\n#0 4\n#1 5\n", "table", ("<blk>", "<unk>", "▁a", " ")),
    ("units.txt", "b\t1\na\t0\n", "table", ("a", "b")),
    ("list.txt", "<blank>\r\na b\r\n7\r\n", "plain", ("<blank>", "a b", "7")),
    ("bpe.vocab", "<unk>\t0\n▁t\t-1.5\n\t\t-2\n", "pieces", ("<unk>", "▁t", "\t")),
    ("vocab.json", {"b": 1, "a": 0, "<pad>": 2}, "vocab", ("a", "b", "<pad>")),
    ("labels.json", ["a", "b"], "plain", ("a", "b")),
    ("tokenizer.json", TOKENIZER, "tokenizer", ("h", "i", "hi", "<|end|>")),
    ("unigram.json", UNIGRAM, "tokenizer", ("<unk>", "a", "b")),
    ("config.yaml", ESPNET, "espnet", ("<blank>", "<unk>", "no", "=", "1", "▁the", "<sos/eos>")),
    ("flow.yaml", "a: 1\ntoken_list: [<blank>, 'no', x]\nb: 2\n", "espnet", ("<blank>", "no", "x")),
]


@pytest.mark.parametrize(("name", "content", "kind", "tokens"), FORMS, ids=[form[0] for form in FORMS])
def test_each_form_is_read_and_grows(write, tmp_path, name, content, kind, tokens):
    path = write(name, content)
    old = read_tokens(path)
    assert (old.tokens, old.kind) == (tokens, kind)
    before = path.read_text()
    added = ["neu", "ü'\"x", "<new>"]
    (written,) = write_tokens(old, added, tmp_path / "out")
    again = read_tokens(written)
    assert written == tmp_path / "out" / name and again.kind == kind
    assert again.tokens == (*tokens, *added) and again.symbols == old.symbols
    assert path.read_text() == before
    assert read_tokens(write_tokens(old, [], tmp_path / "out" / f"other.{name}")[0]).tokens == tokens


def test_the_rest_of_a_configuration_stays(write, tmp_path):
    (written,) = write_tokens(read_tokens(write("config.yaml", ESPNET)), ["neu"], tmp_path / "new.yaml")
    assert written.read_text() == ESPNET.replace("- <sos/eos>\n", '- <sos/eos>\n- "neu"\n')


def test_folders_are_searched_and_given_lists_become_a_table(write, tmp_path):
    write("README.md", "no tokens")
    with pytest.raises(InputError, match="no file with tokens"):
        read_tokens(tmp_path)
    write("tokens.txt", "a 0\n")
    write("vocab.json", {"b": 0})
    assert read_tokens(tmp_path).tokens == ("b",)


def test_hugging_face_folders_grow_with_their_configuration(write, tmp_path):
    old = read_tokens(write("vocab.json", {"a": 0, "b": 1}))
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text('{"vocab_size": 2, "decoder": {"vocab_size": 2, "layers": 2}}')
    assert write_tokens(old, ["c"], out) == [out / "vocab.json", out / "config.json"]
    assert json.loads((out / "config.json").read_text()) == {"vocab_size": 3, "decoder": {"vocab_size": 3, "layers": 2}}


def test_the_files_of_the_old_model_are_never_written_to(write, tmp_path):
    config = write("config.json", {"vocab_size": 2})
    path = write("vocab.json", {"a": 0, "b": 1})
    before = path.read_text(), config.read_text()
    assert write_tokens(read_tokens(path), ["c"], tmp_path) == [tmp_path / "merged_tokens" / "vocab.json"]
    assert write_tokens(read_tokens(path), ["c"], tmp_path / "other.json") == [tmp_path / "other.json"]
    with pytest.raises(InputError, match="tokens of the old model"):
        write_tokens(read_tokens(path), ["c"], path)
    assert (path.read_text(), config.read_text()) == before


def test_beside_merges_new_tokens_are_added_tokens(write, tmp_path):
    write("merges.txt", "a b\n")
    write("added_tokens.json", {"<x>": 2})
    old = read_tokens(write("vocab.json", {"a": 0, "b": 1}))
    assert old.tokens == ("a", "b", "<x>")
    written = write_tokens(old, ["c"], tmp_path / "out")
    assert [path.name for path in written] == ["vocab.json", "added_tokens.json"]
    assert json.loads(written[0].read_text()) == {"a": 0, "b": 1} and read_tokens(written[0]).tokens == ("a", "b", "<x>", "c")
    assert any("added tokens" in remark for remark in remarks(old, ["c"]))


def test_the_tokenizers_library_finds_the_new_tokens(write, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    content = {"version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None, **TOKENIZER}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    content["added_tokens"] = [{**content["added_tokens"][0], **flags}]
    old = read_tokens(write("tokenizer.json", content))
    (written,) = write_tokens(old, ["Ġho", "<pad>"], tmp_path / "out")
    tokenizer = tokenizers.Tokenizer.from_file(str(written))
    assert tokenizer.encode("hi ho<|end|>").ids == [2, 4, 3] and tokenizer.get_vocab_size() == 6
    assert tokenizer.decode([2, 4]) == "hi ho" and tokenizer.decode([5]) == ""


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokens.txt", "a 0\nb 2\n", "id 1 has no token, though ids go up to 2"),
        ("tokens.txt", "a 0\nb 0\n", "id 0 belongs to 'a' and to 'b'"),
        ("tokens.txt", "a 0\na 0\n", "the same line comes twice"),
        ("tokens.txt", "a 0\na 1\n", "come twice: 'a'"),
        ("list.txt", "a\n\nb\n", "line 2: empty"),
        ("list.txt", "", "there are no tokens"),
        ("vocab.json", {"eng": {"a": 0}}, "'eng' has no id"),
        ("vocab.json", "{", "line 1: not readable as JSON"),
        ("tokenizer.json", {"model": {}}, "model.vocab is missing"),
        ("config.yaml", "a: 1\n", "no entry token_list"),
        ("config.yaml", "token_list: data/tokens.txt\n", "token_list names the file data/tokens.txt; give that file"),
        ("config.yaml", "a: [\n", "not readable as YAML"),
        ("bpe.model", "not a model", "SentencePiece model"),
        ("bpe.model", "", "no pieces"),
    ],
)
def test_damaged_files_are_named(write, name, content, message):
    path = write(name, content)
    with pytest.raises(InputError, match=message) as error:
        read_tokens(path)
    assert str(path) in str(error.value)


def test_files_that_are_no_text_or_gone(tmp_path):
    (tmp_path / "tokens.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"text .*UTF-8"):
        read_tokens(tmp_path / "tokens.txt")
    with pytest.raises(InputError, match="no such file"):
        read_tokens(tmp_path / "other.txt")


def test_special_tokens_are_known_in_any_case():
    assert [role_of(token) for token in ("<BLK>", "[UNK]", "<s>", "a", "<noise>")] == ["blank", "unknown", "start", None, None]


TEXTS = ["turn on the light", "play some jazz", "what is the time", "call my mother", "the light is on"] * 4


@pytest.fixture(scope="module", params=["unigram", "bpe", "char"])
def models(request, tmp_path_factory):
    """Two SentencePiece models trained on different texts."""
    library = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp(request.param)
    texts = {"old": TEXTS, "new": [text.replace("light", "żebra") for text in TEXTS]}
    for name, lines in texts.items():
        library.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_prefix=str(folder / name), vocab_size=45, model_type=request.param,
            hard_vocab_limit=False, character_coverage=1.0, minloglevel=9, num_threads=1, pad_id=3,
        )  # fmt: skip
    return library, folder


def test_sentencepiece_models_grow_and_the_library_reads_them(models, tmp_path):
    library, folder = models
    old, new = (read_tokens(folder / f"{name}.model") for name in ("old", "new"))
    before = library.SentencePieceProcessor(model_file=str(old.path))
    assert old.tokens == tuple(before.id_to_piece(list(range(before.get_piece_size()))))
    assert read_tokens(folder / "old.vocab").tokens == old.tokens
    added = [*(token for token in new.tokens if token not in old.tokens), "<noise>", "<blank>"]
    (written,) = write_tokens(old, added, tmp_path)
    after = library.SentencePieceProcessor(model_file=str(written))
    assert tuple(after.id_to_piece(list(range(after.get_piece_size())))) == (*old.tokens, *added)
    assert before.unk_id() in before.encode("the żebra")
    assert after.unk_id() not in after.encode("the żebra") and after.decode(after.encode("the żebra")) == "the żebra"
    assert max(after.encode("the żebra")) >= len(old)
    assert after.encode("jazz <noise>")[-1] == after.piece_to_id("<noise>")
    assert after.is_control(after.piece_to_id("<blank>"))
    for text in TEXTS[:4]:
        assert after.encode(text) == before.encode(text) and after.decode(after.encode(text)) == text


def test_pieces_agree_with_the_protocol_buffer(models):
    protocol = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
    _, folder = models
    data = (folder / "old.model").read_bytes()
    parsed = protocol.ModelProto.FromString(with_pieces(data, [("x", NORMAL), ("y", NORMAL)]))
    assert parsed.trainer_spec.vocab_size == len(parsed.pieces)
    assert [Piece(p.piece, p.score, p.type) for p in parsed.pieces][:-2] == pieces_of(data)
    old = protocol.ModelProto.FromString(data)
    lowest = min(p.score for p in old.pieces if p.type == NORMAL)
    assert all(p.score <= lowest for p in parsed.pieces[-2:])
    old.trainer_spec.vocab_size = parsed.trainer_spec.vocab_size
    assert old.trainer_spec == parsed.trainer_spec and old.normalizer_spec == parsed.normalizer_spec


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data):
    try:
        assert pieces_of(data)
    except ValueError as error:
        assert str(error)


def test_a_file_cut_short_is_refused(models):
    _, folder = models
    data = (folder / "old.model").read_bytes()
    with pytest.raises(ValueError, match="ends within"):
        pieces_of(data[:-3])
    assert pieces_of(data)[0].type == UNKNOWN
