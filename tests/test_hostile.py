"""Files made to hurt: nothing is run, nothing is imported, nothing large is allocated, nothing hangs.

Each test names the incident it comes from, where there was one.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastgru.formats import FormatError, read, read_bytes, untrusted
from fastgru.formats import archive as archive_module

GOLDEN = Path(__file__).parent / "golden"
FILES = sorted(
    path for path in [*GOLDEN.iterdir(), *(GOLDEN / "refused").iterdir()] if path.is_file() and path.suffix != ".npz"
)
MIB = 1 << 20


def zipped(contents: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def refuses(data: bytes, *words: str, peak: int = 64 * MIB) -> None:
    """The bytes are refused with these words, in little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(FormatError) as error:
            read_bytes(data, "evil.bin")
        assert tracemalloc.get_traced_memory()[1] < peak
    finally:
        tracemalloc.stop()
    for word in ("evil.bin", *words):
        assert word in str(error.value), str(error.value)
    assert len(str(error.value)) < 4000


def survives(data: bytes) -> None:
    """Reading gives a model or a FormatError, and nothing else."""
    try:
        read_bytes(data)
    except FormatError as error:
        assert str(error)


# ---------------------------------------------------------------------------------------- mutation


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_damaged_files(path: Path) -> None:
    """Bits flipped, numbers made extreme, spans copied, cut or filled, ends lost."""
    whole = path.read_bytes()
    generator = random.Random(path.name)
    for _ in range(24):
        survives(damage(whole, generator))
    for cut in (0, 1, 7, 8, 9, 64, len(whole) // 2, len(whole) - 1):
        survives(whole[:cut])


def damage(whole: bytes, generator: random.Random) -> bytes:
    data = bytearray(whole)
    for _ in range(generator.choice((1, 1, 2, 8))):
        # headers are where the lies pay: half of all damage goes to the first and last KiB
        edge = generator.random() < 0.5 and len(data) > 2048
        at = generator.randrange(1024) if edge else generator.randrange(len(data))
        at = len(data) - 1 - at if edge and generator.random() < 0.5 else at
        kind = generator.randrange(6)
        if kind == 0:
            data[at] ^= 1 << generator.randrange(8)
        elif kind == 1:
            data[at] = generator.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif kind == 2:
            number = generator.choice((0, 1, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFFFFFFFFFF, len(data)))
            size = generator.choice((2, 4, 8))
            data[at : at + size] = (number & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        elif kind == 3:
            size = generator.randrange(1, 64)
            start = generator.randrange(len(data))
            data[at : at + size] = data[start : start + size]
        elif kind == 4:
            del data[at : at + generator.randrange(1, 16)]
        else:
            data[at:at] = bytes(generator.randrange(256) for _ in range(4))
        if not data:
            return b""
    return bytes(data)


@pytest.mark.parametrize("name", ["k3_nested.keras", "tf213_nested.keras", "torch_tensors.pt", "torch_checkpoint.tar"])
def test_damaged_members(name: str) -> None:
    """The same inside an archive whose CRCs are right."""
    whole = members(GOLDEN / name)
    generator = random.Random(name)
    for member, data in whole.items():
        for _ in range(40 if member.endswith((".h5", ".json", ".pkl")) else 2):
            if data:
                survives(zipped({**whole, member: damage(data, generator)}))


@given(st.binary(max_size=200), st.sampled_from([b"", b"PK\x03\x04", b"\x89HDF\r\n\x1a\n", b"\x80\x02", b"\x80\x04"]))
@settings(max_examples=300, deadline=None)
def test_noise(tail: bytes, head: bytes) -> None:
    survives(head + tail)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@given(st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_configs_of_any_json(data: st.DataObject) -> None:
    """Any value anywhere in a real config: replaced, removed, doubled."""
    whole = members(GOLDEN / data.draw(st.sampled_from(["k3_nested.keras", "k3_rnn_cells.keras"])))
    config = json.loads(whole["config.json"])
    node: Any = config
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(node[key], (dict, list)) or not node[key] or data.draw(st.booleans()):
            break
        node = node[key]
    action = data.draw(st.integers(0, 2))
    if action == 0:
        node[key] = data.draw(JSON)
    elif action == 1:
        del node[key]
    elif isinstance(node, list):
        node.append(node[key])
    survives(zipped({**whole, "config.json": json.dumps(config).encode()}))


# ------------------------------------------------------------------------------------ nothing runs

AUDIT = r"""
import sys, warnings
from importlib.util import find_spec
from pathlib import Path
import fastgru.formats as formats

golden, hostile = Path(sys.argv[1]), Path(sys.argv[2])
files = [p for p in sorted([*golden.iterdir(), *(golden / "refused").iterdir(), *hostile.iterdir()])
         if p.is_file() and p.suffix != ".npz"]
if find_spec("onnx") is None:     # each .onnx would look for it, and say that it is not here
    files = [p for p in files if p.suffix != ".onnx"]

def read_all():
    for path in files:
        current[0] = str(path)
        try:
            formats.read(path)
        except formats.FormatError:
            pass

current, events = [""], []
read_all()                      # what the readers themselves import is loaded now
modules = set(sys.modules)
watched = ("open", "import", "exec", "compile", "os.", "subprocess.", "socket.", "shutil.", "pickle.",
           "marshal.", "ctypes.", "code.", "builtins.input", "builtins.breakpoint", "urllib.",
           "webbrowser.", "glob.", "tempfile.")
harmless = ("os.listdir", "os.scandir")   # this script's own globbing

def hook(event, arguments):
    if event.startswith(watched) and event not in harmless:
        events.append((event, str(arguments[0]) if arguments else "", current[0]))

sys.addaudithook(hook)
read_all()
bad = [e for e in events if e[0] != "open" or e[1] != e[2]]
assert len(events) >= len(files), len(events)
assert not bad, bad[:5]
assert set(sys.modules) == modules, set(sys.modules) - modules
print("read", len(files))
"""


def attack(function: Callable[..., Any], *arguments: Any) -> Any:
    class Evil:
        def __reduce__(self) -> Any:
            return function, arguments

    return Evil()


def evil_archive(value: Any, protocol: int = 2) -> bytes:
    return zipped({"archive/data.pkl": pickle.dumps(value, protocol), "archive/version": b"3\n"})


def keras_with(edit: Callable[[Any], None]) -> bytes:
    whole = members(GOLDEN / "keras_reset_after.keras")
    config = json.loads(whole["config.json"])
    edit(config)
    return zipped({**whole, "config.json": json.dumps(config).encode()})


def add_layer(entry: dict[str, Any]) -> Callable[[Any], None]:
    return lambda config: config["config"]["layers"].append(entry)


def test_nothing_is_opened_imported_or_run(tmp_path: Path) -> None:
    """An audit hook watches every golden file and every attack; only the file itself is opened."""
    flag = tmp_path / "owned"
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    call = f"open({str(flag)!r}, 'w').close()"
    values = [attack(os.system, f"touch {flag}"), attack(exec, call), attack(eval, call)]
    values += [attack(subprocess.call, ["touch", str(flag)]), attack(__import__, "antigravity")]
    values += [attack(getattr, "", "join")]
    for i, value in enumerate(values):
        for protocol in (0, 2, 4, 5):
            whole = {"w": 1, "x": value}
            (hostile / f"pickle{i}_{protocol}").write_bytes(pickle.dumps(whole, protocol))
            (hostile / f"zip{i}_{protocol}").write_bytes(evil_archive(whole, protocol))
    for i, edit in enumerate(KERAS_ATTACKS):
        (hostile / f"keras{i}").write_bytes(keras_with(edit))
    command = [sys.executable, "-c", AUDIT, str(GOLDEN), str(hostile)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("read")
    assert not flag.exists()


def test_attacks_in_pickles() -> None:
    """CVE-2025-32434 and every torch.load before it: a pickle that calls what it likes."""
    evil = [attack(os.system, "true"), attack(eval, "1"), attack(subprocess.call, ["true"])]
    for value in evil:
        for protocol in (0, 1, 2, 4, 5):
            refuses(evil_archive({"x": value}, protocol), "nothing was run")
    for value in (attack(getattr, "", "join"), attack(print, "hello")):
        refuses(evil_archive({"x": value}))
    legacy = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {}, evil[0], []))
    refuses(legacy, "nothing was run")


def test_hidden_beside_tensors() -> None:
    """An attack in one value of a working checkpoint is refused, not skipped."""
    whole = members(GOLDEN / "torch_cell.pt")
    name = next(name for name in whole if name.endswith("data.pkl"))
    body = whole[name]
    evil = pickle.dumps(attack(os.system, "true"), 2)[2:-1]
    assert body.endswith(b".")
    # (state_dict, evil) as a tuple
    refuses(zipped({**whole, name: body[:-1] + evil + b"\x86."}), "system", "nothing was run")


KERAS_ATTACKS: list[Callable[[Any], None]] = [
    # CVE-2024-3660, CVE-2025-9905, CVE-2025-9906: code in a Lambda, marshalled or by name
    add_layer({"class_name": "Lambda", "config": {"name": "l", "function": ["4wEA", None, None]}}),
    add_layer(
        {
            "module": "keras.layers",
            "class_name": "Lambda",
            "config": {
                "name": "l",
                "function": {"class_name": "__lambda__", "config": {"code": "4wEA"}},
            },
        }
    ),
    # CVE-2025-1550, CVE-2025-8747: any function of any module by name
    add_layer({"module": "os", "class_name": "system", "config": {"name": "x", "command": "true"}}),
    add_layer(
        {
            "module": "keras.src.utils",
            "class_name": "get_file",
            "config": {"name": "x", "origin": "http://localhost/evil"},
        }
    ),
    lambda config: config.update(module="builtins", class_name="exec", config={"layers": []}),
    lambda config: config.update(registered_name="evil>Functional", module="evil"),
    # CVE-2026-1462: a layer that loads another model from a path
    add_layer({"class_name": "TFSMLayer", "config": {"name": "x", "filepath": "/tmp/evil"}}),
]


def test_attacks_in_keras_configs() -> None:
    for edit in KERAS_ATTACKS[:2] + KERAS_ATTACKS[-1:]:
        refuses(keras_with(edit), "never run")
    for edit in KERAS_ATTACKS[4:6]:
        refuses(keras_with(edit), "expected a Sequential or functional model")
    for edit in KERAS_ATTACKS[2:4]:  # unknown classes without weights are for the layers to refuse
        survives(keras_with(edit))


# -------------------------------------------------------------------------------------- bombs: zip


def test_zip_bombs() -> None:
    zeros = bytes(256 * MIB)
    whole = members(GOLDEN / "keras_reset_after.keras")
    bomb = zipped({**whole, "model.weights.h5": zeros}, zipfile.ZIP_DEFLATED)
    del zeros
    assert len(bomb) < 2 * MIB
    refuses(bomb, "inside", "declared")
    # a directory that declares little for a member that inflates to much
    lying = bytearray(bomb)
    at = lying.rindex(b"PK\x01\x02", 0, lying.rindex(b"PK\x05\x06"))
    assert b"model.weights.h5" in lying[at : at + 80]
    lying[at + 24 : at + 28] = struct.pack("<I", 1000)
    refuses(bytes(lying), "model.weights.h5")


def test_zip_oddities(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = members(GOLDEN / "keras_reset_after.keras")
    for name in ("../evil", "/etc/passwd", "a/../../b", "C:/x", "\\x"):
        refuses(zipped({**whole, name: b"x"}), "a name inside the archive")
    with pytest.warns(UserWarning, match="Duplicate"):
        buffer = io.BytesIO(zipped(whole))
        with zipfile.ZipFile(buffer, "a") as archive:
            archive.writestr("config.json", b"{}")
    refuses(buffer.getvalue(), "config.json", "each member once")
    few = dataclasses.replace(untrusted.LIMITS, zip_members=20)
    monkeypatch.setattr(archive_module, "LIMITS", few)
    refuses(zipped({**whole, **{f"m{i}": b"" for i in range(20)}}), "at most 20 members")
    monkeypatch.undo()
    refuses(zipped(whole, zipfile.ZIP_BZIP2), "stored or deflated")
    crypted = bytearray(zipped(whole))
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = -1
        while (at := crypted.find(signature, at + 1)) >= 0:
            crypted[at + flags] |= 1
    refuses(bytes(crypted), "encrypted")


def test_json_bombs() -> None:
    whole = members(GOLDEN / "keras_reset_after.keras")
    for text in (b"[" * 200_000, b'{"a":' * 200_000, b"1" * 100_000):
        refuses(zipped({**whole, "config.json": text}), "config.json")
    model: dict[str, Any] = {"class_name": "GRU", "config": {"name": "g", "units": 1}}
    for i in range(200):
        model = {"class_name": "Sequential", "config": {"name": f"s{i}", "layers": [model]}}
    refuses(zipped({**whole, "config.json": json.dumps(model).encode()}), "levels of nesting")


# ------------------------------------------------------------------------------------- bombs: HDF5


def hdf5_with(path: Path, write: Callable[[Any, Any], None]) -> bytes:
    """A model of one Dense layer whose file `write(h5py, file)` has changed."""
    h5py = pytest.importorskip("h5py", reason="h5py writes the attack")
    entry = {"class_name": "Dense", "config": {"name": "d", "units": 3, "use_bias": False}}
    config = {"class_name": "Sequential", "config": {"name": "net", "layers": [entry]}}
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(config)
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [b"d"]
        layer = group.create_group("d")
        layer.attrs["weight_names"] = [b"d/kernel:0"]
        layer.create_group("d")
        write(h5py, layer["d"])
    return path.read_bytes()


def test_hdf5_layouts(tmp_path: Path) -> None:
    """CVE-2026-0897 and kin: data that is elsewhere, or far larger than the file."""
    path = tmp_path / "evil.h5"
    (tmp_path / "secret").write_bytes(bytes(96))

    def write(**options: Any) -> bytes:
        return hdf5_with(path, lambda h5py, g: g.create_dataset("kernel:0", (8, 3), "f4", **options))

    refuses(write(chunks=(8, 3), compression="gzip"), "/kernel:0", "gzip")
    refuses(write(chunks=(8, 3)), "/kernel:0", "chunked")
    refuses(write(chunks=(8, 3), shuffle=True, fletcher32=True), "shuffle, fletcher32")
    refuses(write(external=[(str(tmp_path / "secret"), 0, 96)]), "external storage")

    def huge(h5py: Any, group: Any) -> None:
        group.create_dataset("kernel:0", (1 << 20, 1 << 20), "f4")  # never written: no bytes at all

    def huge_chunks(h5py: Any, group: Any) -> None:
        size = 1 << 27
        group.create_dataset("kernel:0", (size, 3), "f4", chunks=(size, 3), compression="gzip")

    def soft(h5py: Any, group: Any) -> None:
        group["real"] = [[0.0] * 3] * 8
        group["kernel:0"] = h5py.SoftLink("/model_weights/d/d/real")

    def external(h5py: Any, group: Any) -> None:
        group["kernel:0"] = h5py.ExternalLink("/etc/passwd", "/x")

    def virtual(h5py: Any, group: Any) -> None:
        layout = h5py.VirtualLayout((8, 3), "f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", (8, 3))
        group.create_virtual_dataset("kernel:0", layout)

    def strings(h5py: Any, group: Any) -> None:
        group.create_dataset("kernel:0", (8, 3), h5py.string_dtype())

    def opaque(h5py: Any, group: Any) -> None:
        group.create_dataset("kernel:0", (8, 3), "V2")

    refuses(hdf5_with(path, huge), "shape")
    refuses(hdf5_with(path, huge_chunks), "gzip")
    refuses(hdf5_with(path, soft), "a soft or external link")
    refuses(hdf5_with(path, external), "expected")
    refuses(hdf5_with(path, virtual), "virtual")
    refuses(hdf5_with(path, strings), "IEEE floats")
    refuses(hdf5_with(path, opaque), "opaque 2-byte values")


def test_hdf5_ends(tmp_path: Path) -> None:
    def write(h5py: Any, group: Any) -> None:
        group["kernel:0"] = [[1.0] * 3] * 8

    good = hdf5_with(tmp_path / "good.h5", write)
    assert read_bytes(good).tensors["d/kernel"].shape == (8, 3)
    for cut in range(len(good) // 2, len(good), 37):
        refuses(good[:cut], "truncated")
    lying = bytearray(good[:-64])
    lying[40:48] = struct.pack("<Q", len(lying))  # an end-of-file address that fits the lie
    survives(bytes(lying))
    refuses(bytes(512) + good, "user block")
    moved = bytearray(good)
    moved[24:32] = struct.pack("<Q", 512)
    refuses(bytes(moved), "base address")


def test_hdf5_attribute_bombs(tmp_path: Path) -> None:
    def write(h5py: Any, group: Any) -> None:
        group["kernel:0"] = [[1.0] * 3] * 8

    good = hdf5_with(tmp_path / "good.h5", write)
    at = good.index(b"weight_names\0")
    for position in range(at, at + 64, 8):
        for number in (1 << 40, (1 << 64) - 1):
            survives(good[:position] + struct.pack("<Q", number) + good[position + 8 :])


# ---------------------------------------------------------------------------------- bombs: pickles


def pkl(body: bytes) -> bytes:
    return zipped({"a/data.pkl": b"\x80\x02" + body + b"."})


def test_pickle_bombs() -> None:
    laughs = b"]" + b"".join(b"q%c(h%ch%ce" % (i, i, i) for i in range(1))  # a list that holds itself
    refuses(pkl(laughs))
    doubled = b"]q\x00" + b"".join(
        b"](h%ch%ceq%c" % (i, i, i + 1)
        for i in range(200)  # 2^200 leaves when walked
    )
    refuses(pkl(doubled), peak=400 * MIB)
    tuples = b")q\x00" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(200))
    key = tuples + b"}" + b"h\xc8K\x01s"  # as the key of a dict: hashing it would take 2^200 steps
    refuses(pkl(key + b"\x86"), peak=400 * MIB)
    refuses(pkl(b"(" * 100_000))
    refuses(pkl(b"]" * 100_000 + b"a" * 99_999))
    refuses(pkl(b"\x8b" + struct.pack("<i", 1 << 30)))  # LONG4 beyond the file
    refuses(pkl(b"\x8e" + struct.pack("<Q", 1 << 60)))  # BINBYTES8
    refuses(pkl(b"\x8b" + struct.pack("<i", 100_000) + b"\x7f" * 100_000))
    nested = b"ctorch._utils\n_rebuild_parameter\n" * 5000 + b")" + b"\x85R" * 5000
    refuses(pkl(nested))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"0",
        b"1",
        b"2",
        b"h\x05",
        b"q\x00",
        b"(t(t",
        b"R",
        b"K\x01K\x02R",
        b"K\x01)R",
        b"])R",
        b"}K\x01K\x02",
        b"}(K\x01u",
        b"]K\x01K\x02s",  # SETITEM on a list
        b")K\x01K\x02s",
        b"K\x07(K\x01K\x02u",
        b"K\x01a",
        b"}K\x01a",
        b"](K\x01\x90",
        b"K\x01}b",
        b"K\x01Q",
        b")Q",
        b"(X\x07\x00\x00\x00storageK\x01X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQ",
        b"P0\n",
        b"\x82\x01",
        b"\x83\x01\x00",
        b"\x84\x01\x00\x00\x00",
        b"\x97",
        b"\x98",
        b"\x93",
        b"K\x01K\x02\x93",
        b"(ios\nsystem\n",
        b"(cos\nsystem\no",
        b"(o",
        b"cos\nsystem\n)\x81",
        b"cos\nsystem\n)}\x92",
        b"cposix\nsystem\n.",
        b"\xff",
    ],
    ids=lambda body: body.decode("latin-1").encode("unicode_escape").decode()[:24],
)
def test_pickle_opcodes(body: bytes) -> None:
    """Opcodes on the wrong things; CVE-2026-24747 is SETITEM on what is no dict."""
    refuses(pkl(body))


def test_set_item_on_a_tensor() -> None:
    whole = members(GOLDEN / "torch_bare.pt")
    name = next(name for name in whole if name.endswith("data.pkl"))
    refuses(zipped({**whole, name: whole[name][:-1] + b"K\x00K\x01s."}), "a dict to set items of")


# ----------------------------------------------------------------------------------- other things


def test_things_that_are_no_model(tmp_path: Path) -> None:
    for data, words in {
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n": ("Git LFS", "git lfs pull"),
        b"<!DOCTYPE html><html></html>": ("web page",),
        b"\x1f\x8b\x08\0\0\0\0\0": ("compressed", "gunzip"),
        b'{"class_name": "Sequential"}': ("JSON",),
        b"\x93NUMPY\x01\0v\0": (".npy",),
        b"\x08\x07\x12\x07pytorch": ("ONNX",),
        b"PK\x05\x06" + bytes(18): (),
        zipped({"a.txt": b"x"}): ("something else",),
        zipped({"config.json": b"{}"}): ("without model.weights.h5",),
    }.items():
        refuses(data, *words)
    empty = tmp_path / "empty"
    empty.touch()
    with pytest.raises(FormatError, match="an empty file"):
        read(empty)
    with pytest.raises(FormatError, match="a folder"):
        read(tmp_path)
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(FormatError, match=r"SavedModel.*model\.save"):
        read(tmp_path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nothing")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = os.open(pipe, os.O_RDWR)
    try:
        with pytest.raises(FormatError, match="a pipe or device"):
            read(pipe)
    finally:
        os.close(writer)
