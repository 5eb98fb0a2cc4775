"""Arrays in and out of .npy, .npz and .csv files, chunk by chunk, for inputs larger than memory.

A reader gives its rows in order and once; a writer puts the file in place only when complete.
"""

from __future__ import annotations

import csv
import os
import secrets
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from .formats import FormatError
from .layers.base import Array, Shape

FilePath = str | os.PathLike[str]
_SUFFIXES = (".npy", ".npz", ".csv")


class NpyReader:
    """One array of a .npy file, mapped a chunk at a time so that no more stays resident."""

    def __init__(self, path: FilePath) -> None:
        self._path = os.fspath(path)
        with open(path, "rb") as file:
            self.shape, self._fortran, self._dtype = _header(file, self._path)
            self._offset = file.tell()
        if not self.shape:
            raise FormatError(f"{self._path}: expected at least one axis, found ()")
        expected = self._offset + int(np.prod(self.shape)) * self._dtype.itemsize
        found = os.path.getsize(path)
        if found < expected:
            raise FormatError(f"{self._path}: expected {expected} bytes, found {found}; it is truncated")
        self.names: tuple[str, ...] = ("",)
        self.rows = self.shape[0]

    def chunks(self, rows: int) -> Iterator[dict[str, Array]]:
        """``{"": array}`` for each ``rows`` rows."""
        if self._fortran:
            whole = np.load(self._path, mmap_mode="r", allow_pickle=False)
            yield from ({"": np.asarray(whole[i : i + rows])} for i in _starts(self.rows, rows))
            return
        width = int(np.prod(self.shape[1:])) * self._dtype.itemsize
        for i in _starts(self.rows, rows):
            shape = (min(rows, self.rows - i), *self.shape[1:])
            if 0 in shape:
                yield {"": np.zeros(shape, self._dtype)}
                continue
            yield {"": np.memmap(self._path, self._dtype, "r", self._offset + i * width, shape)}


class NpzReader:
    """The arrays of a .npz file, read as streams side by side. Arrays that aren't taken are not looked at."""

    def __init__(self, path: FilePath) -> None:
        self._path = os.fspath(path)
        self.shapes: dict[str, Shape] = {}
        with self._archive() as archive:
            self.names = tuple(m.removesuffix(".npy") for m in archive.namelist() if m.endswith(".npy"))
        if not self.names:
            raise FormatError(f"{self._path}: expected an .npz archive of arrays, found none in it")

    def take(self, names: Iterable[str]) -> None:
        """Choose the arrays that `rows` and `chunks` are about; all of them without this call."""
        self.shapes = {}
        with self._archive() as archive:
            for name in names:
                where = f"{self._path}:{name}"
                with archive.open(f"{name}.npy") as file:
                    self.shapes[name], fortran, _ = _header(file, where)
                if fortran and len(self.shapes[name]) > 1:
                    raise FormatError(
                        f"{where}: expected an array in C order, found Fortran order; save np.ascontiguousarray of it"
                    )
                if not self.shapes[name]:
                    raise FormatError(f"{where}: expected at least one axis, found ()")
        if len({shape[0] for shape in self.shapes.values()}) != 1:
            raise FormatError(f"{self._path}: expected one number of rows in all arrays, found {self.shapes}")

    @property
    def rows(self) -> int:
        """Rows of each array."""
        if not self.shapes:
            self.take(self.names)
        return next(iter(self.shapes.values()))[0]

    def chunks(self, rows: int) -> Iterator[dict[str, Array]]:
        """``{name: array}`` for each ``rows`` rows."""
        total = self.rows
        with self._archive() as archive:
            files = {name: archive.open(f"{name}.npy") for name in self.shapes}
            kinds = {name: _header(file, self._path)[2] for name, file in files.items()}
            for i in _starts(total, rows):
                chunk = {}
                for name, file in files.items():
                    shape = (min(rows, total - i), *self.shapes[name][1:])
                    size = int(np.prod(shape)) * kinds[name].itemsize
                    data = file.read(size)
                    if len(data) != size:
                        raise FormatError(f"{self._path}:{name}: expected {size} bytes more, found {len(data)}")
                    chunk[name] = np.frombuffer(data, kinds[name]).reshape(shape)
                yield chunk

    def array(self, name: str) -> Array:
        """One array, whole and of any shape."""
        with self._archive() as archive:
            with archive.open(f"{name}.npy") as file:
                shape, fortran, dtype = _header(file, f"{self._path}:{name}")
                size = int(np.prod(shape)) * dtype.itemsize
                data = file.read(size)
            if len(data) != size:
                raise FormatError(f"{self._path}:{name}: expected {size} bytes, found {len(data)}")
            return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")

    @contextmanager
    def _archive(self) -> Iterator[zipfile.ZipFile]:
        try:
            with zipfile.ZipFile(self._path) as archive:
                yield archive
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # RuntimeError: encrypted
            raise FormatError(f"{self._path}: expected an .npz archive, found {error}") from error


class CsvReader:
    """One row of numbers per line, separated by commas; a first line without any number is a title and left out."""

    def __init__(self, path: FilePath, separator: str = ",") -> None:
        self._path = os.fspath(path)
        self._separator = separator
        self.names = ("",)
        lines = self._lines()
        first = next(lines, (0, []))[1]
        if not first:
            raise FormatError(f"{self._path}: expected rows of numbers, found an empty file")
        self._titled = not any(_is_number(cell) for cell in first)
        self.title = tuple(first) if self._titled else ()
        self._columns = len(first)
        self.rows = sum(1 for _ in lines) + (not self._titled)
        if not self.rows:
            raise FormatError(f"{self._path}: expected rows of numbers, found only the title {','.join(first)!r:.60}")
        self.shape: Shape = (self.rows, self._columns)

    def chunks(self, rows: int) -> Iterator[dict[str, Array]]:
        """``{"": array (rows, columns)}``; int64 where all numbers are whole, else float64."""
        lines = self._lines()
        if self._titled:
            next(lines)
        held: list[list[float]] = []
        for number, line in lines:
            held.append(self._numbers(line, number))
            if len(held) == rows:
                yield {"": _narrow(held)}
                held = []
        if held:
            yield {"": _narrow(held)}

    def _lines(self) -> Iterator[tuple[int, list[str]]]:
        """The lines that hold something, with their numbers."""
        with open(self._path, newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file, delimiter=self._separator)
            try:
                for line in lines:
                    if line:
                        yield lines.line_num, line
            except (csv.Error, UnicodeDecodeError) as error:
                raise FormatError(f"{self._path}: expected lines of numbers in UTF-8, found {error}") from error

    def _numbers(self, line: list[str], number: int) -> list[float]:
        if len(line) != self._columns:
            raise FormatError(f"{self._path}: line {number}: expected {self._columns} numbers, found {len(line)}")
        try:
            return [float(cell) for cell in line]
        except ValueError:
            bad = next(cell for cell in line if not _is_number(cell))
            raise FormatError(f"{self._path}: line {number}: expected a number, found {bad!r}") from None


Reader = NpyReader | NpzReader | CsvReader


def open_table(path: FilePath) -> Reader:
    """The reader for a file that is called .npy, .npz or .csv, chosen by its content.

    Raises
    ------
    FormatError
        When it is none of .npy, .npz and .csv.
    """
    if os.path.isdir(path):
        raise FormatError(f"{os.fspath(path)}: expected a file of arrays, found a folder")
    if Path(path).suffix.lower() not in _SUFFIXES:  # any text would pass for a .csv with a title
        raise FormatError(f"{os.fspath(path)}: expected a name that ends in .npy, .npz or .csv")
    with open(path, "rb") as file:
        head = file.read(512)
    if head.startswith(b"\x93NUMPY"):
        return NpyReader(path)
    if head.startswith(b"PK"):
        return NpzReader(path)
    if b"\0" in head:
        raise FormatError(f"{os.fspath(path)}: expected .npy, .npz or .csv, found {head[:8]!r}…")
    return CsvReader(path)


def check_target(target: FilePath) -> None:
    """Refuse a place where no file can be written, before anything is computed."""
    if os.path.isdir(target):
        raise FormatError(f"{os.fspath(target)}: expected a file, found a folder")
    folder = Path(target).resolve().parent
    if not folder.is_dir():
        raise FormatError(f"{os.fspath(target)}: expected an existing folder to write into")
    if not os.access(folder, os.W_OK):
        raise FormatError(f"{os.fspath(target)}: expected a folder that can be written into, found {folder} read-only")


def check_apart(target: FilePath, *read: FilePath) -> None:
    """Refuse a target that would replace one of the files that are read, by whatever name: links count."""
    for source in read:
        if os.path.exists(target) and os.path.exists(source) and os.path.samefile(source, target):
            raise FormatError(f"{os.fspath(target)}: expected another file than {os.fspath(source)}, which is read")


@contextmanager
def told_of(target: FilePath) -> Iterator[None]:
    """Errors of writing name the target, not the temporary file beside it that nobody knows."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(target)) from error


class Writer:
    """Writes named outputs as they come; the target's suffix (.npy, .npz, .csv) says how."""

    def __init__(self, target: FilePath) -> None:
        self.target = Path(target)
        self.kind = self.target.suffix.lower()
        if self.kind not in _SUFFIXES:
            raise FormatError(f"{self.target}: expected a name that ends in .npy, .npz or .csv")
        check_target(self.target)
        self.shapes: dict[str, Shape] = {}  # of each output, as it stands in the file
        self._stem = self.target.resolve().parent / f".{self.target.name}.{secrets.token_hex(4)}"
        self._files: dict[str, IO[bytes]] = {}
        self._paths: list[Path] = []

    def write(self, outputs: dict[str, Array], rows: int) -> None:
        """Append one chunk of every output, each of which has ``rows`` rows in all."""
        if self.kind != ".npz" and len(outputs) > 1:
            raise FormatError(f"{self.target}: the model has the outputs {list(outputs)}; write them to a .npz file")
        with told_of(self.target):
            for name, values in outputs.items():
                if self.kind == ".csv":
                    values = values.reshape(len(values), int(np.prod(values.shape[1:])))
                if name not in self._files:
                    self.shapes[name] = (rows, *values.shape[1:])
                    self._files[name] = self._start(values, self.shapes[name])
                if self.kind == ".csv":
                    np.savetxt(self._files[name], values, "%.9g", ",")
                else:
                    self._files[name].write(np.ascontiguousarray(values).data)

    def _start(self, values: Array, shape: Shape) -> IO[bytes]:
        path = Path(f"{self._stem}.{len(self._paths)}.tmp")
        self._paths.append(path)
        file = open(path, "xb")
        if self.kind != ".csv":
            descr = np.lib.format.dtype_to_descr(values.dtype)
            header = {"descr": descr, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
        return file

    def finish(self) -> None:
        """Sync, and put the whole file in the target's place in one step."""
        with told_of(self.target):
            self._finish()

    def _finish(self) -> None:
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        complete = self._paths[0]
        if self.kind == ".npz":
            complete = Path(f"{self._stem}.tmp")
            self._paths.append(complete)
            with zipfile.ZipFile(complete, "x", zipfile.ZIP_STORED) as archive:
                for name, path in zip(self._files, self._paths, strict=False):
                    archive.write(path, f"{name}.npy")
            with open(complete, "rb") as whole:
                os.fsync(whole.fileno())
        os.replace(complete, self.target)

    def clean(self) -> None:
        """Remove what is left beside the target."""
        for file in self._files.values():
            with suppress(OSError):  # what is left to write to a full disk is not wanted any more
                file.close()
        for path in self._paths:
            path.unlink(missing_ok=True)


@contextmanager
def writing(target: FilePath) -> Iterator[Writer]:
    """A `Writer` whose file appears when the block ends well, and not at all otherwise."""
    writer = Writer(target)
    try:
        yield writer
        writer.finish()
    finally:
        writer.clean()


def _header(file: Any, where: str) -> tuple[Shape, bool, np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except ValueError as error:
        raise FormatError(f"{where}: expected a .npy array, found {error}") from error
    if dtype.kind not in "fiub":
        raise FormatError(f"{where}: expected numbers, found {dtype}")
    return shape, fortran, dtype


def unflatten(x: Array, shape: tuple[int | None, ...] | None, path: FilePath) -> Array:
    """A line of numbers as an input's (T, I): the features of one step stand side by side."""
    if shape is None or len(shape) < 2:
        return x
    known = int(np.prod([n for n in shape if n is not None]))
    free = sum(n is None for n in shape)
    width = x.shape[1]
    if free > 1 or known == 0 or width % known or (not free and width != known):
        sizes = " · ".join("T" if n is None else str(n) for n in shape)
        raise FormatError(f"{os.fspath(path)}: expected lines of {sizes} numbers, found {width}")
    return x.reshape(x.shape[0], *(width // known if n is None else n for n in shape))


def _starts(rows: int, step: int) -> range:
    return range(0, max(rows, 1), step)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _narrow(rows: list[list[float]]) -> Array:
    values = np.asarray(rows, np.float64)
    whole = np.isfinite(values).all() and bool((values == np.trunc(values)).all())
    return values.astype(np.int64) if whole else values
