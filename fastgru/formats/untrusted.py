"""What the readers refuse, and how much they are willing to believe.

Every byte below this module comes from a stranger. Readers check declared sizes against `LIMITS` before they
allocate, say what they refuse in one form (`Source.refuse`), and run foreign parsers inside `Source.parsing`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

__all__ = ["LIMITS", "REMEDIES", "ByteFile", "FormatError", "Limits", "Source"]

MIB = 1 << 20


class FormatError(ValueError):
    """A file that cannot be read as a model: broken, contradictory, hostile, or of a kind that is not supported.

    The message names the file, the member inside it, what was expected, what was found, and what to do. It is cut in
    its middle where it is longer than `LIMITS.message`: it may quote names from the file, which have no end.
    """

    def __init__(self, message: str) -> None:
        most = LIMITS.message
        super().__init__(message if len(message) <= most else f"{message[: most * 3 // 4]} … {message[-most // 4 :]}")


@dataclass(frozen=True)
class Limits:
    """The most a reader believes. Each is far above any real model file, and low enough to stop a bomb.

    Sizes that a file declares are held against `inflation` times its own size plus `slack` bytes: an honest file
    holds its tensors (zeros deflated ~1000:1 are the exception that nobody saves), a bomb only announces them.
    """

    inflation: int = 64
    slack: int = 2 * MIB
    json_bytes: int = 64 * MIB
    zip_members: int = 100_000
    tensors: int = 200_000
    rank: int = 32
    nesting: int = 64
    pickle_opcodes: int = 20_000_000
    pickle_nodes: int = 5_000_000
    reads: int = 50_000_000
    onnx_fields: int = 200_000
    onnx_made: int = 2 << 30
    onnx_depth: int = 16
    onnx_turns: int = 1 << 20
    name: int = 4096
    message: int = 3000

    def bytes_for(self, file_size: int) -> int:
        """Return the most bytes a file of `file_size` bytes may declare for all its tensors together."""
        return self.inflation * file_size + self.slack


LIMITS = Limits()

_EXPORT_TORCH = (
    "where the model's code lives, run torch.save(model.state_dict(), 'model.pt') and load that file "
    "(tools/export_torch.py does it, for quantised modules too)"
)
_EXPORT_KERAS = "in Keras, load the model and call model.save('model.keras'), then load that file"

REMEDIES: dict[str, str] = {
    "damaged": "copy or download the file again",
    "export_torch": _EXPORT_TORCH,
    "export_keras": _EXPORT_KERAS,
    "folder": (
        f"give the path of a file; for a TensorFlow SavedModel folder: {_EXPORT_KERAS} "
        "(or run tools/export_keras.py there)"
    ),
    "unknown": "give a .keras or .h5 file of Keras, a .pt or .safetensors file of PyTorch, .onnx, or one saved here",
    "tar": f"it was written by PyTorch before 0.1.10; load it there or later and {_EXPORT_TORCH}",
    "frozen": f"torch.jit.freeze makes weights part of the code: save the module before it; or {_EXPORT_TORCH}",
    "pickle": f"pickles other than those of torch.save are not read; {_EXPORT_TORCH}",
    "opset": "export the model again, with an opset_version in between",
    "external": "keep the model and its data file together in one folder, and give the path of the model",
    "lfs": "the file is a Git LFS pointer: run `git lfs pull` to fetch the model itself",
    "html": "the file is a web page: the download gave an error or a login page instead of the model",
    "compressed": "decompress it first (gunzip, xz -d, bunzip2)",
    "userblock": "strip the user block with h5jam/h5unjam, or re-save the model",
    "h5_layout": f"datasets must be stored contiguously and unfiltered, as Keras writes them; {_EXPORT_KERAS}",
    "shared": (
        "a layer shared between an outer and a nested model is stored only once and Keras itself cannot reload "
        "it; save the weights of a model in which every layer has one place"
    ),
    "lambda": (
        "Python code in a model file is never run; replace the Lambda by layers (Multiply, Add, Concatenate, "
        "Reshape, Permute, …) and save again"
    ),
    "bomb": "no honest model looks like this; if yours does, re-save it uncompressed",
    "attack": "the pickle asks for code that no checkpoint needs; nothing was run; do not load it elsewhere",
}


class Source:
    """The bytes of one file and its name: what every reader is given.

    Parameters
    ----------
    name : str
        How errors name the file.
    data : bytes-like
        The whole file, C-contiguous; a memory map or bytes.
    folder : str, optional
        Where files that belong to it may lie; None for bytes that come from no path.
    """

    def __init__(self, name: str, data: Any, folder: str | None = None) -> None:
        self.name = name
        self.data = memoryview(data).cast("B")
        self.folder = folder

    def __len__(self) -> int:
        return len(self.data)

    def refuse(self, member: str, *, expected: str, found: str, remedy: str = "") -> FormatError:
        """Return the FormatError for `member` of this file (for the caller to raise)."""
        where = f"{self.name}: {member}" if member else self.name
        tail = f"; {remedy}" if remedy else ""
        return FormatError(f"{where}: expected {expected}, found {found}{tail}")

    @contextmanager
    def parsing(self, member: str, what: str) -> Iterator[None]:
        """Turn every exception of a parser inside the block into a FormatError about `member`.

        The parsers below (pyfive, zipfile, json, struct, pickletools, NumPy) raise a dozen types on broken bytes,
        MemoryError and RecursionError among them, so the whole of Exception is meant.
        """
        try:
            yield
        except FormatError:
            raise
        except Exception as error:
            detail = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise self.refuse(
                member,
                expected=what,
                found=f"bytes that do not parse ({detail[:300]})",
                remedy=REMEDIES["damaged"],
            ) from error

    def json(self, member: str, text: bytes | str) -> Any:
        """Parse JSON of bounded size."""
        if len(text) > LIMITS.json_bytes:
            raise self.refuse(
                member,
                expected=f"at most {LIMITS.json_bytes} bytes of JSON",
                found=f"{len(text)}",
                remedy=REMEDIES["bomb"],
            )
        with self.parsing(member, "JSON"):
            # decoded here: json would guess the encoding of bytes, and import the codec that the file asks for
            return json.loads(text if isinstance(text, str) else text.decode("utf-8"))


class ByteFile:
    """A read-only file object over bytes in memory, which stops a parser that reads in circles.

    A crafted HDF5 file can send a parser round a loop, or make it gather the same megabyte 65,535 times. The
    budget (bytes and calls) ends both.
    """

    closed = False

    def __init__(self, data: memoryview, most_bytes: int | None = None) -> None:
        self._data = data
        self._at = 0
        self._bytes_left = LIMITS.bytes_for(len(data)) if most_bytes is None else most_bytes
        self._reads_left = LIMITS.reads

    def _spend(self, count: int) -> None:
        self._bytes_left -= count
        self._reads_left -= 1
        if self._bytes_left < 0 or self._reads_left < 0:
            raise ValueError("the file leads its reader in circles")

    def read(self, size: int | None = -1) -> bytes:
        end = len(self._data) if size is None or size < 0 else min(self._at + size, len(self._data))
        chunk = self._data[self._at : end].tobytes()
        self._spend(len(chunk))
        self._at += len(chunk)
        return chunk

    def readline(self) -> bytes:
        parts = []
        while chunk := self.read(256):
            end = chunk.find(b"\n")
            if end >= 0:
                self._at -= len(chunk) - end - 1
                parts.append(chunk[: end + 1])
                break
            parts.append(chunk)
        return b"".join(parts)

    def seek(self, offset: int, whence: int = 0) -> int:
        base = (0, self._at, len(self._data))[whence]
        if base + offset < 0:
            raise ValueError("seek before the start of the file")
        self._at = base + offset
        self._spend(0)
        return self._at

    def tell(self) -> int:
        return self._at

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        """Nothing to close: the bytes belong to the caller."""
