"""What other tools write into their manifests beyond the obvious: honoured, or refused with file, line and remedy."""

import json

import numpy as np
import pytest
import soundfile

from asrcl.exceptions import InputError
from asrcl.speech.corpora import load_commonvoice, load_kaldi, load_nemo, load_speechbrain, to_utterances, validate
from asrcl.speech.corpora.tables import read_table
from asrcl.speech.corpora.utterance import distinct_stems

RATE = 8000


@pytest.fixture
def folder(tmp_path):
    """A mono recording and one of two channels, a second long; the same name in two folders."""
    noise = np.random.default_rng(0).normal(0, 0.1, (RATE, 2))
    soundfile.write(tmp_path / "mono.wav", noise[:, 0], RATE)
    soundfile.write(tmp_path / "call.wav", noise, RATE)
    for speaker in ("spk1", "spk2"):
        (tmp_path / speaker).mkdir()
        soundfile.write(tmp_path / speaker / "sa1.wav", noise[:, 0], RATE)
    return tmp_path


def kaldi(folder, segments=None, scp="call call.wav\nmono mono.wav\n", text="u hello\n", **more):
    (folder / "wav.scp").write_text(scp)
    (folder / "text").write_text(text)
    if segments is not None:
        (folder / "segments").write_text(segments)
    for name, content in more.items():
        (folder / name).write_text(content)
    return load_kaldi(folder)


def nemo(folder, *rows, name="m.json"):
    (folder / name).write_text("".join(json.dumps({"text": "x", **row}) + "\n" for row in rows))
    return load_nemo(folder / name)


def brain(folder, content, **options):
    (folder / "b.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    return load_speechbrain(folder / "b.csv", **options)


# Channels


@pytest.mark.parametrize("channel", ["0", "1"])
def test_a_channel_of_a_segment_is_not_dropped(folder, channel):
    with pytest.raises(InputError, match=rf"segments:1: takes channel {channel} of .*call.wav, which has 2; write each .*sox"):
        kaldi(folder, f"u call 0 0.5 {channel}\n")


@pytest.mark.parametrize("channel", ["0", "-1"])
def test_the_only_channel_may_be_named(folder, channel):
    (row,) = to_utterances(kaldi(folder, f"u mono 0 0.5 {channel}\n"))
    assert (row.start, row.end) == (0, RATE // 2)


@pytest.mark.parametrize("channel", ["1", "A", "x"])
def test_a_channel_that_is_not_there(folder, channel):
    with pytest.raises(InputError, match=rf"segments:1: .*channel {channel} .*mono.wav"):
        kaldi(folder, f"u mono 0 0.5 {channel}\n")


def test_sides_of_recordings(folder):
    sides = "call call A\nmono call B\nother x B\n"
    with pytest.raises(InputError, match=r"reco2file_and_channel:1: takes channel A of .*call.wav"):
        kaldi(folder, text="call hello\n", reco2file_and_channel=sides)
    cut_already = kaldi(folder, scp="mono mono.wav\n", text="mono hello\n", reco2file_and_channel=sides)
    assert cut_already["id"] == ["mono"]
    with pytest.raises(InputError, match=r"reco2file_and_channel:1: expected 'recording file channel'"):
        kaldi(folder, scp="mono mono.wav\n", text="mono hello\n", reco2file_and_channel="mono call\n")


@pytest.mark.parametrize(
    ("command", "file_alone"),
    [
        ("flac -c -d -s call.flac", True),
        ("sox call.wav -r 16k -t wav -", True),
        ("ffmpeg -i call.wav -f wav -ar 16000 -", True),
        ("sox call.wav -t wav - remix 1", False),
        ("sox -c 1 call.wav -t wav -", False),
        ("sox call.wav -t wav - speed 0.9", False),
        ("sox call.wav -t wav - trim 0 10", False),
        ("sph2pipe -f wav -c 2 call.wav", False),
        ("ffmpeg -i call.wav -af pan=mono|c0=c1 -f wav -", False),
        ("ffmpeg -ss 3 -i call.wav -f wav -", False),
        ("flac -c -d --skip=100 call.flac", False),
        ("mytool call.wav", False),
        ("", False),
    ],
)
def test_the_remedy_for_a_command_keeps_its_channel_and_speed(folder, command, file_alone):
    words = r"name call.(wav|flac) itself" if file_alone else r"write its output to a .wav and name that"
    with pytest.raises(InputError, match=rf"wav.scp:1: a command.*{words}"):
        kaldi(folder, scp=f"rec {command} |\n")


def test_a_channel_in_other_manifests(folder):
    with pytest.raises(InputError, match=r"m.json:1: takes channel 1 of .*call.wav"):
        nemo(folder, {"audio_filepath": "call.wav", "channel": 1})
    assert len(nemo(folder, {"audio_filepath": "mono.wav", "channel": 0})) == 1
    with pytest.raises(InputError, match=r"b.csv:2: takes channel 1 of .*call.wav"):
        brain(folder, "ID,wav,wrd,channel\nu,call.wav,yes,1\n")
    assert len(brain(folder, "ID,wav,wrd,channel\nu,mono.wav,yes,\n")) == 1


# Ends


@pytest.mark.parametrize(("end", "kept"), [(0.98, 7840), (0.995, -1), (1.0, -1), (1.03, -1), (1.5, -1), (1.6, 12800), (9, 72000)])
def test_an_end_just_beyond_the_file_is_its_end_as_in_kaldi(folder, end, kept):
    by_seconds = (
        kaldi(folder, f"u mono 0.25 {end}\n"),
        nemo(folder, {"audio_filepath": "mono.wav", "offset": 0.25, "duration": end - 0.25}),
    )
    for corpus in by_seconds:
        assert (corpus[0]["start"], corpus[0]["end"]) == (2000, kept)
        assert len(validate(corpus, max_broken_share=1)[1] if kept <= RATE else [1]) == (kept > RATE)
    stop = round(end * RATE)
    samples = brain(folder, f"ID,wav,wrd,start,stop\nu,mono.wav,yes,2000,{stop}\n")[0]
    assert samples["end"] == (-1 if RATE < stop <= 1.5 * RATE else stop)


def test_an_end_far_beyond_the_file_stays_broken(folder):
    corpus = nemo(folder, {"audio_filepath": "mono.wav", "duration": 2}, {"audio_filepath": "spk1/sa1.wav"})
    assert [item.reason for item in validate(corpus, max_broken_share=1)[1]] == [
        "samples 0 to 16000 lie outside the file (it has 8000); correct the manifest"
    ]


# Ids


def test_files_of_one_name_get_their_folders(folder):
    rows = [{"audio_filepath": f"{name}.wav"} for name in ("spk1/sa1", "spk2/sa1", "mono")]
    assert nemo(folder, *rows)["id"] == ["spk1-sa1", "spk2-sa1", "mono"]


def test_parts_of_one_file_get_ids_of_their_own(folder):
    parts = [(0, 0.5), (0, 0.7), (0.2, 0.1), (0.20001, 0.1), (0.3, 0.1), (0.3, 0.2), (0.4, 0.1)]
    corpus = nemo(folder, *({"audio_filepath": "mono.wav", "offset": start, "duration": length} for start, length in parts))
    assert len(set(corpus["id"])) == len(parts)
    assert corpus["id"][-1] == "mono-400"
    assert validate(corpus)[1] == []


def test_the_same_row_twice_is_still_named(folder):
    corpus = nemo(folder, *[{"audio_filepath": "mono.wav"}] * 2)
    assert [item.reason for item in validate(corpus, max_broken_share=1)[1]] == ["duplicate id; rename or remove one"]


def test_stems_that_no_folder_tells_apart():
    paths = ["a/x.wav", "a/x.flac", "b-c/y.wav", "c/b/../b-c/y.wav", "/", "b/c-y.wav"]
    names = distinct_stems(paths)
    assert len(set(names.values())) == len(paths) and all("/" not in name for name in names.values())
    assert distinct_stems(["x/a.wav", "x/a.wav"]) == {"x/a.wav": "a"}


def test_an_id_of_zero_is_an_id(folder):
    corpus = nemo(folder, {"audio_filepath": "mono.wav", "id": 0, "speaker": 0}, {"audio_filepath": "mono.wav", "id": 1})
    assert [(row.id, row.speaker) for row in to_utterances(corpus)] == [("0", "0"), ("1", "1")]


@pytest.mark.parametrize("name", ["", "a\x1b[31m", "a\nb"])
def test_ids_that_a_terminal_would_act_on_are_broken(folder, name):
    rows = [{"audio_filepath": "mono.wav", "id": name or "\x00"}, {"audio_filepath": "mono.wav"}]
    (item,) = validate(nemo(folder, *rows), max_broken_share=1)[1]
    assert "control characters" in item.reason and item.id.isprintable()


# Tarred datasets


@pytest.mark.parametrize("more", [{"shard_id": 0}, {"audio_tarred_filepaths": "a_0.tar"}, {"audio_filepath": "audio_0.tar"}])
def test_tarred_datasets_are_refused_with_their_remedy(folder, more):
    with pytest.raises(InputError, match=r"tar -xf .*root"):
        validate(nemo(folder, {"audio_filepath": "gone.wav", **more}))
    unpacked = nemo(folder, {"audio_filepath": "mono.wav", "shard_id": 0})
    assert validate(unpacked)[1] == []


# Tables


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ('ID, duration, wav, wrd\nu1, 1.0, $data/mono.wav, "HELLO WORLD"\n', "HELLO WORLD"),
        ('ID, duration, wav, wrd\nu1, 1.0, $data/mono.wav, "HELLO, WORLD"\n', "HELLO, WORLD"),
        ('\ufeffID,wav,wrd\r\nu1,$data/mono.wav,"yes ""no"""\r\n\r\n', 'yes "no"'),
        ('ID,wav,wrd,\nu1,$data/mono.wav,5" pipe,\n', '5" pipe'),
        (',ID,wav,wrd\n0,u1 ,$data/mono.wav,yes\n', "yes"),
        ('ID,wav,wrd\nu1,$data/mono.wav,"two\nlines"\n', "two\nlines"),
    ],
)
def test_csv_as_others_write_it(folder, content, text):
    (row,) = to_utterances(brain(folder, content, replacements={"data": folder}))
    assert (row.id, row.text, row.path) == ("u1", text, str(folder / "mono.wav"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'ID,wav,wrd\na,a.wav,"yes\nb,b.wav,no\nc,c.wav,no\n', r"b.csv:2: not csv \(unexpected end of data\)"),
        (b'ID,wav,wrd\na,a.wav,"yes\nb,b.wav,"no"\n', r"b.csv:2: not csv"),
        (b"ID,wav,wrd,wrd\na,a.wav,yes,no\n", r"b.csv:1: two columns wrd; rename or remove one"),
        (b"ID,wav,wrd\na,a.wav,\0\n", r"b.csv:2: holds a NUL \(column 9\)"),
        (b"ID,wav,wrd\ra,a.wav,yes\r", r"b.csv:1: not csv"),
        ("ID,wav,wrd\n".encode("utf-16"), r"b.csv:1: not UTF-8 .*iconv -f utf-16"),
        (b"ID,wav,wrd\na,a.wav,yes\nb,b.wav\n", r"b.csv:3: 2 fields where the header has 3"),
        (b"ID,wav,wrd,start\na,a.wav,yes,1_000\n", r"b.csv:2: start is '1_000', not a number"),
        (b"ID,wav,wrd,start\na,a.wav,yes,1e300\n", r"b.csv:2: start is '1e300', not a number"),
        (b"ID,wav,wrd\na,a.wav," + b"x" * 200_000 + b"\n", r"b.csv:2: not csv \(field larger than"),
        (b"ID;wav;wrd\na;a.wav;yes\n", r"b.csv:1: no column ID, wav, wrd \(found ID;wav;wrd\)"),
    ],
)
def test_csv_that_cannot_be_meant(folder, content, words):
    with pytest.raises(InputError, match=words) as caught:
        brain(folder, content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("$data_root/a.wav", "/long/a.wav"),
        ("$data/a.wav", "/short/a.wav"),
        ("$data/$data_root.wav", "/short//long.wav"),
        ("$file.v1.wav", "/f.v1.wav"),
        ("/cash$/a.wav", "/cash$/a.wav"),
        ("$odd/a.wav", "/$data/a.wav"),
    ],
)
def test_variables_are_whole_words(folder, path, wanted):
    values = {"data": "/short", "$data_root": "/long", "file": "/f", "odd": "/$data"}
    corpus = brain(folder, f"ID,wav,wrd\nu,{path},yes\n", replacements=values)
    assert corpus[0]["path"] == wanted.replace("//", "/")


def test_an_unknown_variable_is_named(folder):
    with pytest.raises(InputError, match=r'b.csv:2: the path \$data_rooted/a.wav holds a variable; .*"data_rooted"'):
        brain(folder, "ID,wav,wrd\nu,$data_rooted/a.wav,yes\n", replacements={"data": "/x", "data_root": "/y"})


def test_a_tsv_has_no_quotes(tmp_path):
    said = ['"Yes, he said', 'no "', "'it''s", 'a\r"b']
    rows = "".join(f"s{n}\tc{n}.mp3\t{text}\tscotland\n" for n, text in enumerate(said * 10))
    (tmp_path / "validated.tsv").write_bytes(("\ufeffclient_id\tpath\tsentence\taccent\r\n" + rows).encode())
    corpus = load_commonvoice(tmp_path, accents=["SCO"], dev_utterances=1, test_utterances=1)
    assert set(corpus["text"]) == set(said) and len(corpus) == 40


def test_columns_named_twice_in_a_tsv(tmp_path):
    (tmp_path / "t.tsv").write_text("a\tb\tb\n1\t2\t3\n")
    with pytest.raises(InputError, match=r"t.tsv:1: two columns b"):
        list(read_table(tmp_path / "t.tsv", ["a"], tabs=True))
