"""A Whisper that went to CTranslate2's layout and back is the model that it was."""

import json
import weakref

import numpy as np
import pytest
import torch
from ct2_writer import MERGES, NAMES, PROJECTION, TIMES, packed, tiny_whisper, variables, write_folder
from safetensors import safe_open

from asrcl.convert import convert_ctranslate2, tokens
from asrcl.convert.binary import ModelFile
from asrcl.exceptions import InputError

transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model():
    return tiny_whisper()


@pytest.fixture(scope="module")
def converted(model, tmp_path_factory):
    """The model, its folder in CTranslate2's layout, and the converted folder; read only."""
    home = tmp_path_factory.mktemp("whisper")
    write_folder(home / "ct2", variables(model))
    convert_ctranslate2(home / "ct2", home / "hf")
    return home / "hf"


@pytest.fixture
def folder(model, tmp_path):
    """A folder to spoil."""
    return write_folder(tmp_path / "ct2", variables(model))


def load(folder):
    return transformers.WhisperForConditionalGeneration.from_pretrained(folder, output_loading_info=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_tensor_comes_back(dtype, model, tmp_path):
    """To the bit; of half precision, what half precision holds of it."""
    convert_ctranslate2(write_folder(tmp_path / "ct2", variables(model), dtype), tmp_path / "hf")
    again, info = load(tmp_path / "hf")
    assert not any(info.values())
    old, new = model.state_dict(), again.state_dict()
    assert old.keys() == new.keys() and all(tensor.dtype == torch.float32 for tensor in new.values())
    assert all(torch.equal(new[name], old[name].to(dtype).float()) for name in old)


def test_the_model_computes_the_same_and_its_file_has_the_same_names(model, converted, tmp_path):
    again, _ = load(converted)
    given = {"input_features": torch.randn(2, 8, 100), "decoder_input_ids": torch.randint(0, len(NAMES), (2, 7))}
    with torch.no_grad():
        assert torch.equal(again.eval()(**given).logits, model(**given).logits)
    assert again.proj_out.weight is again.model.decoder.embed_tokens.weight
    model.save_pretrained(tmp_path)
    names = [set(safe_open(place / "model.safetensors", "pt").keys()) for place in (tmp_path, converted)]
    assert names[0] == names[1]
    kept = (
        "d_model", "num_mel_bins", "encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads",
        "encoder_ffn_dim", "decoder_ffn_dim", "max_source_positions", "max_target_positions", "vocab_size", "pad_token_id",
        "bos_token_id", "eos_token_id", "decoder_start_token_id",
    )  # fmt: skip
    assert [getattr(again.config, name) for name in kept] == [getattr(model.config, name) for name in kept]


@pytest.mark.parametrize("times", [True, False], ids=["tokenizer with time stamps", "without"])
@pytest.mark.parametrize("loader", ["AutoTokenizer", "WhisperTokenizerFast", "WhisperTokenizer"])
def test_tokenizers(loader, times, model, tmp_path):
    convert_ctranslate2(write_folder(tmp_path / "ct2", variables(model), times=times), tmp_path / "hf")
    tokenizer = getattr(transformers, loader).from_pretrained(tmp_path / "hf")
    assert len(tokenizer) == len(NAMES) and tokenizer.convert_ids_to_tokens(list(range(len(NAMES)))) == NAMES
    ids = tokenizer("the tea, the bäh").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the tea, the bäh" and NAMES.index("Ġthe") in ids
    assert tokenizer.all_special_ids[-1] == NAMES.index("<|notimestamps|>"), "time stamps begin behind the last special token"
    timed = [NAMES.index(TIMES[0]), *tokenizer("the", add_special_tokens=False).input_ids, NAMES.index(TIMES[-1])]
    assert tokenizer.decode(timed, decode_with_timestamps=True) == "<|0.00|>the<|1.00|>"
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == NAMES.index("<|endoftext|>")


def test_files_of_a_slow_tokenizer(converted):
    assert json.loads((converted / "vocab.json").read_text())["Ġthe"] == NAMES.index("Ġthe")
    assert (converted / "merges.txt").read_text().splitlines()[1:] == MERGES


def test_features_and_generation(converted):
    processor = transformers.WhisperProcessor.from_pretrained(converted)
    features = processor(np.random.default_rng(0).normal(size=9000), sampling_rate=16000, return_tensors="pt").input_features
    assert tuple(features.shape) == (1, 8, 100), "one second of 10 ms frames"
    model, _ = load(converted)
    settings = model.generation_config
    assert not settings.is_multilingual and settings.no_timestamps_token_id == NAMES.index("<|notimestamps|>")
    assert settings.suppress_tokens == [1, 2, NAMES.index("<|startoflm|>")] and settings.alignment_heads == [[0, 1], [0, 3]]
    assert settings.begin_suppress_tokens == [NAMES.index("Ġ"), NAMES.index("<|endoftext|>")]
    said = model.generate(features, max_new_tokens=5)
    assert said.shape[0] == 1 and not set(said[0].tolist()) & {1, 2, NAMES.index("<|startoflm|>")}


def test_languages_and_tasks_of_a_multilingual_model(monkeypatch, folder, tmp_path):
    monkeypatch.setattr(tokens, "MULTILINGUAL", len(NAMES))
    convert_ctranslate2(folder, tmp_path / "hf")
    settings = transformers.GenerationConfig.from_pretrained(tmp_path / "hf")
    assert settings.is_multilingual and settings.lang_to_id == {name: NAMES.index(name) for name in ("<|en|>", "<|es|>")}
    assert settings.task_to_id == {task: NAMES.index(f"<|{task}|>") for task in ("transcribe", "translate")}
    model, _ = load(tmp_path / "hf")
    prompts = []
    forward = model.model.decoder.forward
    monkeypatch.setattr(model.model.decoder, "forward", lambda **given: prompts.append(given["input_ids"]) or forward(**given))
    model.generate(torch.randn(1, 8, 100), max_new_tokens=1)
    start, language, task, plain = max((prompt[0].tolist() for prompt in prompts), key=len)
    assert NAMES[start] == "<|startoftranscript|>" and NAMES[language] in settings.lang_to_id, "detected"
    assert NAMES[task] == "<|transcribe|>" and NAMES[plain] == "<|notimestamps|>"


def test_variables_that_are_equal_and_stored_once(model, tmp_path):
    """CTranslate2's converter stores equal variables once: fresh norms, zero biases."""
    found = variables(model)
    found["encoder/layer_1/ffn/layer_norm/gamma"] = found["encoder/layer_norm/gamma"]
    folder = write_folder(tmp_path / "ct2", found)
    del found["encoder/layer_1/ffn/layer_norm/gamma"]
    aliases = {**PROJECTION, "encoder/layer_1/ffn/layer_norm/gamma": "encoder/layer_norm/gamma"}
    (folder / "model.bin").write_bytes(packed(found, aliases))
    convert_ctranslate2(folder, tmp_path / "hf")
    again, _ = load(tmp_path / "hf")
    assert torch.equal(again.model.encoder.layers[1].final_layer_norm.weight, model.model.encoder.layer_norm.weight)


def test_heads_that_are_not_told_are_64_wide(tmp_path):
    model = tiny_whisper(d_model=256, encoder_attention_heads=4, decoder_attention_heads=4)
    found = {name: tensor for name, tensor in variables(model).items() if not name.endswith("num_heads")}
    convert_ctranslate2(write_folder(tmp_path / "ct2", found), tmp_path / "hf")
    given = {"input_features": torch.randn(1, 8, 100), "decoder_input_ids": torch.randint(0, len(NAMES), (1, 5))}
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "hf")[0].eval()(**given).logits, model(**given).logits)


def test_memory_stays_small(folder, monkeypatch, tmp_path):
    """A variable is let go before the next is read, so that no more than the largest is in memory, in two types."""
    held = []
    read = ModelFile.read

    def counted(file, name):
        assert not [reference for reference in held if reference() is not None]
        tensor = read(file, name)
        held.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(ModelFile, "read", counted)
    convert_ctranslate2(folder, tmp_path / "hf")
    assert len(held) > 50


SOME = "encoder/layer_0/ffn/linear_0/weight"
KEYS = "decoder/layer_0/attention/linear_1/bias"


@pytest.mark.parametrize(
    "change, message",
    [
        ({SOME: torch.zeros(24, 16, dtype=torch.int8)}, f"{SOME} is quantised"),
        ({SOME: torch.zeros(24, 16, dtype=torch.int16)}, f"{SOME} is quantised"),
        ({SOME: torch.zeros(24, 15)}, rf"{SOME} is \[24, 15\], but \[24, 16\] belongs there"),
        ({SOME: torch.zeros(24)}, f"{SOME} is .* has 2 axes"),
        ({KEYS: None}, f"{KEYS} is missing"),
        ({"encoder/layer_1/ffn/linear_0/weight": None}, r"encoder/layer_1/.* no part of a Whisper"),
        ({"encoder/layer_0/ffn/linear_0/low_rank": torch.zeros(3)}, "linear_0/low_rank .* no part of a Whisper"),
        ({KEYS: torch.ones(32)}, f"{KEYS} has a bias of the keys"),
        ({"decoder/activation": torch.tensor(0, dtype=torch.int8)}, "decoder/activation is 0, but 3"),
        ({"decoder/activation": torch.tensor(3.0)}, "decoder/activation is .*, not a whole number"),
        ({"decoder/num_heads": torch.tensor(3, dtype=torch.int16)}, "decoder/num_heads is 3, which does not divide"),
        ({"decoder/embeddings/weight": torch.zeros(7, 16)}, "vocabulary.txt: 320 tokens, but the model has 7"),
    ],
)  # fmt: skip
def test_variables_that_do_not_fit_are_named(change, message, model, folder, tmp_path):
    found = {name: tensor for name, tensor in (variables(model) | change).items() if tensor is not None}
    (folder / "model.bin").write_bytes(packed(found, PROJECTION))
    with pytest.raises(InputError, match=message):
        convert_ctranslate2(folder, tmp_path / "hf")
    assert not (tmp_path / "hf").exists() and [path.name for path in tmp_path.iterdir()] == ["ct2"]


def test_an_output_layer_of_its_own_is_refused(model, folder, tmp_path):
    found = variables(model) | {"decoder/projection/weight": torch.randn(len(NAMES), 16)}
    (folder / "model.bin").write_bytes(packed(found, {}))
    with pytest.raises(InputError, match=r"decoder/projection/weight .* not that of the embedding"):
        convert_ctranslate2(folder, tmp_path / "hf")


@pytest.mark.parametrize(
    "header, message",
    [
        ({"version": 5}, "binary version 5, not 6"),
        ({"specification": "TransformerSpec"}, "a TransformerSpec of revision 3"),
        ({"revision": 2}, "a WhisperSpec of revision 2"),
    ],
)
def test_other_kinds_of_files(header, message, model, folder, tmp_path):
    (folder / "model.bin").write_bytes(packed(variables(model), PROJECTION, **header))
    with pytest.raises(InputError, match=f"model.bin: {message}"):
        convert_ctranslate2(folder, tmp_path / "hf")


def test_a_file_that_ends_early_is_refused_wherever_it_ends(folder):
    path = folder / "model.bin"
    content = path.read_bytes()
    table = [*range(400), *range(400, len(content), len(content) // 300), len(content) - 1]
    for end in table:
        path.write_bytes(content[:end])
        with pytest.raises(InputError, match=r"model\.bin: ends within"):
            ModelFile(path)
    path.write_bytes(content + b"x")
    with pytest.raises(InputError, match=r"1 bytes behind the last alias"):
        ModelFile(path)


def test_damaged_bytes_are_refused_or_leave_a_table(folder):
    """Whatever is in the table, the outcome is a table or a line that names the file, and no memory for what is not there."""
    path, g = folder / "model.bin", np.random.default_rng(0)
    content = path.read_bytes()
    for _ in range(300):
        damaged = bytearray(content)
        for place in g.integers(0, 2000, size=3):
            damaged[place] = g.integers(0, 256)
        path.write_bytes(damaged)
        try:
            assert ModelFile(path).variables
        except InputError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("model.bin", None, "model.bin: cannot read it"),
        ("model.bin", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
        ("tokenizer.json", None, "tokenizer.json: no such file"),
        ("tokenizer.json", "{}", "tokenizer.json: not what is expected"),
        ("vocabulary.txt", None, "holds neither vocabulary.json nor vocabulary.txt"),
        ("vocabulary.txt", "\n".join(reversed(NAMES)), "tokenizer.json: token .* but not in vocabulary.txt"),
        ("vocabulary.json", "{}", "vocabulary.json: is no list"),
        ("config.json", "[]", "config.json: is no JSON object"),
        ("config.json", '{"suppress_ids": [900]}', "config.json: suppress_ids does not go with the model"),
        ("config.json", '{"alignment_heads": [[0, 4]]}', "config.json: alignment_heads does not go with the model"),
    ],
)
def test_other_files_that_do_not_fit(file, content, message, folder, tmp_path):
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    with pytest.raises(InputError, match=message):
        convert_ctranslate2(folder, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_a_tokenizer_that_is_no_whispers(folder, tmp_path):
    for name in ("tokenizer.json", "vocabulary.txt"):
        text = (folder / name).read_text(encoding="utf-8")
        (folder / name).write_text(text.replace("<|startofprev|>", "<|other|>"), encoding="utf-8")
    with pytest.raises(InputError, match=r"there is no token <\|startofprev\|>"):
        convert_ctranslate2(folder, tmp_path / "hf")


def test_a_folder_that_holds_something_is_left_alone(folder, tmp_path):
    (tmp_path / "hf").mkdir()
    convert_ctranslate2(folder, tmp_path / "hf")
    before = (tmp_path / "hf" / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(InputError, match="hf: exists already"):
        convert_ctranslate2(folder, tmp_path / "hf")
    assert (tmp_path / "hf" / "model.safetensors").stat().st_mtime_ns == before
