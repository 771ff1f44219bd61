"""espeak-ng in this process, through the library and the voices that the package `espeakng-loader` brings.

espeak-ng keeps its state in global variables, and pitch flutter and breath noise run on from one utterance
to the next, so the same request gives other samples the second time. A `Synthesizer` therefore loads a
private copy of the library: two of them do not disturb each other, and a fresh one that is asked the same
things in the same order gives the same samples.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
import threading
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from asrcl.exceptions import InputError

ESPEAK_RATE = 22050
"""Samples per second of everything espeak-ng says."""

ACCENTS: dict[str, str] = {
    "US": "en-us",
    "ENG": "en",
    "CAR": "en-029",
    "SCO": "en-gb-scotland",
    "WMI": "en-gb-x-gbcwmd",
    "NYC": "en-us-nyc",
    "LAN": "en-gb-x-gbclan",
    "RP": "en-gb-x-rp",
}
"""English accents and their espeak-ng voices: American, British, Caribbean, Scottish, West Midlands,
New York, Lancashire, Received Pronunciation."""

# Constants of espeak-ng's speak_lib.h.
_SYNCHRONOUS, _DONT_EXIT, _CHARS_UTF8 = 2, 0x8000, 1
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
# At the default of 100 the loudest voices clip.
_HEADROOM = 60


def _installed() -> tuple[Path, Path]:
    """The library file and the folder of voices."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise InputError("espeakng-loader is not installed; run: pip install 'asrcl[recipes]'") from error
    return Path(espeakng_loader.get_library_path()), Path(espeakng_loader.get_data_path())


def espeak_version() -> str:
    """Version of the installed `espeakng-loader`, which pins library and voices.

    Raises:
        InputError: the package is not installed.
    """
    from importlib.metadata import version

    _installed()
    return version("espeakng-loader")


def _load_private_copy(library: Path) -> ctypes.CDLL:
    """Load a copy of the library: a file of its own has global variables of its own."""
    with tempfile.TemporaryDirectory(prefix="asrcl-espeak-", ignore_cleanup_errors=True) as folder:
        copy = os.path.join(folder, library.name)
        try:
            shutil.copyfile(library, copy)
            return ctypes.CDLL(copy)
        except OSError as error:
            raise InputError(
                f"{copy}: cannot load espeak-ng ({error}); set TMPDIR to a folder that allows programs"
            ) from error


class Synthesizer:
    """A private espeak-ng: text in, samples out. Also a context manager that frees the library.

    Raises:
        InputError: `espeakng-loader` is not installed, or its library does not load.
    """

    def __init__(self) -> None:
        library, self._data = _installed()
        self._lock = threading.Lock()
        self._chunks: list[bytes] = []
        # Held as an attribute: ctypes frees a callback that nothing refers to.
        self._callback = _CALLBACK(self._collect)
        self._library: ctypes.CDLL | None = _load_private_copy(library)
        rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(self._data), _DONT_EXIT)
        if rate != ESPEAK_RATE:
            self.close()
            raise InputError(f"{self._data}: espeak-ng does not start; keep this path below 150 bytes")
        self._library.espeak_SetSynthCallback(self._callback)
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(1))

    def _collect(self, samples: ctypes._Pointer[ctypes.c_short], count: int, _events: int | None) -> int:
        if count > 0:
            self._chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    def say(
        self, text: str, voice: str, *, rate: int = 175, pitch: int = 50, pitch_range: int = 50
    ) -> Tensor:
        """Speak a text.

        Args:
            text: what to say.
            voice: espeak-ng's name of a language, with a variant for the speaker: "en-us", "en-029+f1".
            rate: words per minute, 80 to 450.
            pitch: 0 to 99; 50 is the voice's own.
            pitch_range: 0 (monotone) to 99; 50 is the voice's own.

        Returns:
            float32 ``[samples]`` in [-1, 1) at 22,050 Hz, with espeak-ng's silence around it.

        Raises:
            InputError: the voice is refused, a setting is out of range, or the text gives no sound.
        """
        _check_range("rate", rate, 80, 450)
        _check_range("pitch", pitch, 0, 99)
        _check_range("pitch_range", pitch_range, 0, 99)
        with self._lock:
            library = self._set_voice(voice)
            # Choosing a voice resets these.
            values = {_RATE: rate, _PITCH: pitch, _RANGE: pitch_range, _VOLUME: _HEADROOM}
            for parameter, value in values.items():
                library.espeak_SetParameter(parameter, value, 0)
            self._chunks.clear()
            encoded = text.encode()
            status = library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, _CHARS_UTF8, None, None)
            pcm = b"".join(self._chunks)
        if status != 0 or not any(pcm):
            raise InputError(f"text {text!r}: voice {voice} says nothing; give it words")
        return torch.frombuffer(bytearray(pcm), dtype=torch.int16).to(torch.float32) / 32768.0

    def _set_voice(self, voice: str) -> ctypes.CDLL:
        if self._library is None:
            raise InputError("this Synthesizer is closed; make a new one")
        language, _, variant = voice.partition("+")
        # espeak-ng itself falls back silently on a variant that does not exist.
        if variant and variant not in variants_installed():
            raise InputError(f"voice {voice!r}: no variant {variant!r}; see variants_installed()")
        if not language or self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise InputError(f"voice {voice!r}: refused; name one of {', '.join(ACCENTS.values())}")
        return self._library

    def close(self) -> None:
        """Free the library; harmless when repeated."""
        library, self._library = self._library, None
        if library is not None:
            library.espeak_Terminate()
            if os.name == "posix":
                import _ctypes

                _ctypes.dlclose(library._handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InputError(f"{name} {value}: must lie between {low} and {high}")


@lru_cache(maxsize=1)
def variants_installed() -> frozenset[str]:
    """Names of all voice variants that espeak-ng brings along, robots and whispers included.

    Raises:
        InputError: `espeakng-loader` is not installed.
    """
    folder = _installed()[1] / "voices" / "!v"
    return frozenset(path.name for path in folder.glob("*") if path.is_file())
