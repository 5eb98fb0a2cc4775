"""Arrays in and out of .npy, .npz and .csv, chunk by chunk."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers_layers import normal

from fastgru.formats import FormatError
from fastgru.tables import CsvReader, NpyReader, NpzReader, open_table, writing

X = normal(7, 3, 2)


@pytest.mark.parametrize("rows", [1, 3, 7, 100])
@pytest.mark.parametrize("array", [X, X[:0], np.asfortranarray(X), X.astype(">f8"), np.arange(7)], ids=str)
def test_npy(rows: int, array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "x", array)
    reader = open_table(tmp_path / "x.npy")
    assert isinstance(reader, NpyReader) and reader.rows == len(array)
    chunks = [c[""] for c in reader.chunks(rows)]
    assert all(len(c) <= rows for c in chunks)
    np.testing.assert_array_equal(np.concatenate(chunks), array)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(save: object, tmp_path: Path) -> None:
    y = np.arange(7)
    assert callable(save)
    save(tmp_path / "x.npz", a=X, b=y)
    reader = open_table(tmp_path / "x.npz")
    assert isinstance(reader, NpzReader) and reader.names == ("a", "b")
    chunks = list(reader.chunks(3))
    np.testing.assert_array_equal(np.concatenate([c["a"] for c in chunks]), X)
    np.testing.assert_array_equal(np.concatenate([c["b"] for c in chunks]), y)


@pytest.mark.parametrize("title", ["", "a,b,c\n"])
def test_csv(title: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(title + "1,2,3\n\n4,5,6.5\n-7,8e0,9\n", encoding="utf-8")
    reader = open_table(tmp_path / "x.csv")
    assert isinstance(reader, CsvReader) and reader.shape == (3, 3)
    first, second = (c[""] for c in reader.chunks(2))
    np.testing.assert_array_equal(first, [[1, 2, 3], [4, 5, 6.5]])
    assert first.dtype == np.float64 and second.dtype == np.int64  # ids stay whole


@pytest.mark.parametrize("title", [b"", b"a,b\n", b"\n,b\n", b"\xef\xbb\xbfa,b\n"])
def test_a_title_has_no_number(title: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(title + b"1,2\n")
    reader = open_table(tmp_path / "x.csv")
    assert reader.rows == 1
    np.testing.assert_array_equal(next(reader.chunks(5))[""], [[1, 2]])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"1,2o\n3,4\n", "line 1: expected a number, found '2o'"),
        ("x.csv", b"a,b,c\n3,4\n", "line 2: expected 3 numbers, found 2"),
        ("x.csv", b"a,b\n\n", "expected rows of numbers, found only the title 'a,b'"),
        ("x.csv", b"1,\xff\n", "x.csv: expected lines of numbers in UTF-8"),
        ("x.txt", b"1,2\n", r"x.txt: expected a name that ends in \.npy, \.npz or \.csv"),
        ("x.csv", b"1,2\n3\n", "line 2: expected 2 numbers, found 1"),
        ("x.csv", b"1,2\n3,x\n", "line 2: expected a number, found 'x'"),
        ("x.csv", b"", "found an empty file"),
        ("x.csv", b"\x01\x00\x02", r"expected \.npy, \.npz or \.csv"),
        ("x.npz", b"PK nonsense", "expected an .npz archive"),
        ("x.npy", b"\x93NUMPY\x01\x00nonsense", "expected a .npy array"),
    ],
)
def test_bad_files(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FormatError, match=message):
        list(open_table(tmp_path / name).chunks(2))


def test_without_axes(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array(3.0))
    with pytest.raises(FormatError, match=r"x\.npy: expected at least one axis, found \(\)"):
        open_table(tmp_path / "x.npy")
    np.savez(tmp_path / "x.npz", a=np.array(3.0), b=X)
    table = open_table(tmp_path / "x.npz")
    assert isinstance(table, NpzReader)
    with pytest.raises(FormatError, match=r"x\.npz:a: expected at least one axis, found \(\)"):
        list(table.chunks(2))
    table.take(["b"])
    np.testing.assert_array_equal(next(table.chunks(9))["b"], X)


@pytest.mark.parametrize("array", [X, np.asfortranarray(X), np.array(3), X[:0]], ids=["C", "F", "scalar", "empty"])
def test_whole_array_of_an_npz(array: np.ndarray, tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", a=array)
    table = open_table(tmp_path / "x.npz")
    assert isinstance(table, NpzReader)
    np.testing.assert_array_equal(table.array("a"), array)


def test_damaged_npz(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", a=normal(100, 3))
    content = bytearray((tmp_path / "x.npz").read_bytes())
    content[300:340] = b"\xff" * 40
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(FormatError, match=r"x\.npz: expected an \.npz archive, found "):
        list(open_table(tmp_path / "x.npz").chunks(7))


def test_truncated_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    content = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(content[:-4])
    with pytest.raises(FormatError, match=r"expected 296 bytes, found 292; it is truncated"):
        open_table(tmp_path / "x.npy")


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(FormatError, match="expected numbers, found object"):
        open_table(tmp_path / "x.npy")
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}]), allow_pickle=True)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", buffer.getvalue())
    with pytest.raises(FormatError, match="expected numbers, found object"):
        list(open_table(tmp_path / "x.npz").chunks(2))


def test_rows_that_differ(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=X, b=X[:2])
    with pytest.raises(FormatError, match="expected one number of rows in all arrays"):
        list(open_table(tmp_path / "x.npz").chunks(2))


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv"])
def test_writing(suffix: str, tmp_path: Path) -> None:
    target = tmp_path / f"y{suffix}"
    with writing(target) as writer:
        for i in range(0, 7, 3):
            writer.write({"y": X[i : i + 3]}, 7)
    if suffix == ".csv":
        np.testing.assert_allclose(np.loadtxt(target, delimiter=","), X.reshape(7, 6), rtol=1e-7)
    else:
        found = np.load(target)
        np.testing.assert_array_equal(found["y"] if suffix == ".npz" else found, X)
    assert [p.name for p in tmp_path.iterdir()] == [target.name]


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "y.npy"
    target.write_bytes(b"old")
    with pytest.raises(RuntimeError), writing(target) as writer:
        writer.write({"y": X}, 7)
        raise RuntimeError
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["y.npy"]


def test_bad_targets(tmp_path: Path) -> None:
    for name, message in (("y.txt", r"ends in \.npy"), ("no/y.npy", "an existing folder")):
        with pytest.raises(FormatError, match=message), writing(tmp_path / name):
            pass
    with pytest.raises(FormatError, match=r"write them to a \.npz file"), writing(tmp_path / "y.npy") as writer:
        writer.write({"a": X, "b": X}, 7)
