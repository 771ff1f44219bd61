import builtins
import json
import subprocess
import sys

import pytest

from asrcl.exceptions import InputError
from asrcl.scoring.normalise import SPELLINGS_VARIABLE, basic, normaliser


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello,  WORLD!", "hello world"),
        ("don’t 'quote' rock-n-roll", "don't quote rock n roll"),
        ("ﬁne ½ №5", "fine 1 2 no5"),
        ("नमस्ते, दुनिया।", "नमस्ते दुनिया"),
        ("naïve Ünïcode", "naïve ünïcode"),
        ("Straße İ", "straße i̇"),
        ("\u00a0\u3000tab\t", "tab"),
        ("<unk> [noise] (uh)", "unk noise uh"),
        ("'", ""),
        ("", ""),
    ],
)
def test_basic_keeps_letters_marks_digits_and_inner_apostrophes(text: str, expected: str) -> None:
    assert basic(text) == expected and basic(expected) == expected


def test_none_changes_nothing_but_runs_of_white_space() -> None:
    assert normaliser("none")("  Don't,\t STOP ") == "Don't, STOP"
    assert normaliser("basic").source.startswith("asrcl")
    with pytest.raises(InputError, match="unknown normaliser 'french'; choose none, basic, whisper-english"):
        normaliser("french")


def test_whisper_english_where_its_package_is_installed() -> None:
    pytest.importorskip("whisper_normalizer")
    rules = normaliser("whisper-english")
    assert rules("Mr. Smith's colour is twenty-one, won't it? [noise]") == "mister smith is color is 21 will not it"
    assert rules.source.startswith("whisper_normalizer 0.")


@pytest.fixture
def without_packages(monkeypatch: pytest.MonkeyPatch):
    """Hides the named packages."""
    plain = builtins.__import__

    def hide(*names: str) -> None:
        def find(name: str, *rest: object, **more: object):
            if name.split(".")[0] in names:
                raise ImportError(name)
            return plain(name, *rest, **more)

        monkeypatch.setattr(builtins, "__import__", find)

    return hide


def test_whisper_english_from_transformers_needs_the_list_of_spellings(tmp_path, monkeypatch, without_packages) -> None:
    pytest.importorskip("transformers")
    without_packages("whisper_normalizer")
    with pytest.raises(InputError, match="pip install whisper_normalizer"):
        normaliser("whisper-english")
    spellings = tmp_path / "normalizer.json"
    monkeypatch.setenv(SPELLINGS_VARIABLE, str(spellings))
    with pytest.raises(InputError, match="cannot read a JSON object of spellings"):
        normaliser("whisper-english")
    spellings.write_text("[]")
    with pytest.raises(InputError, match="expected a JSON object, British to American"):
        normaliser("whisper-english")
    spellings.write_text(json.dumps({"colour": "color"}))
    rules = normaliser("whisper-english")
    assert rules("Colour, twenty one") == "color 21" and rules.source.startswith("transformers")
    without_packages("whisper_normalizer", "transformers")
    with pytest.raises(InputError, match="pip install whisper_normalizer"):
        normaliser("whisper-english")


def test_normalisers_do_not_import_torch() -> None:
    code = "import sys; from asrcl.scoring.normalise import NAMES, normaliser\nfor name in NAMES:\n  try: normaliser(name)\n"
    check = f"{code}  except ValueError: pass\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
