"""Zip archives from strangers: listed whole, bounded, and only then read."""

from __future__ import annotations

import struct
import zipfile
import zlib

from .untrusted import LIMITS, REMEDIES, ByteFile, Source

__all__ = ["Archive"]


class Archive:
    """The members of a zip file, after every check that needs no inflating.

    Refused: encryption, methods other than stored and deflated, names that climb out or repeat, more members than
    `LIMITS.zip_members`, and declared sizes beyond what a file of this size may hold. zipfile itself
    checks each CRC.

    Raises
    ------
    FormatError
        If any of these holds, or the directory does not parse.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        with source.parsing("", "a zip archive"):
            self._zip = zipfile.ZipFile(ByteFile(source.data))
            members = self._zip.infolist()
        if len(members) > LIMITS.zip_members:
            raise source.refuse(
                "",
                expected=f"at most {LIMITS.zip_members} members",
                found=str(len(members)),
                remedy=REMEDIES["bomb"],
            )
        total = 0
        self._members: dict[str, zipfile.ZipInfo] = {}
        for info in members:
            self._check(info)
            total += info.file_size
            self._members[info.filename] = info
        most = LIMITS.bytes_for(len(source))
        if total > most:
            raise source.refuse(
                "",
                expected=f"at most {most} bytes inside {len(source)}",
                found=f"{total} declared",
                remedy=REMEDIES["bomb"],
            )
        self.names: tuple[str, ...] = tuple(self._members)

    def _check(self, info: zipfile.ZipInfo) -> None:
        name = info.filename
        if name in self._members:
            raise self._source.refuse(name, expected="each member once", found="two", remedy=REMEDIES["damaged"])
        if name.startswith(("/", "\\")) or ":" in name.split("/")[0] or ".." in name.split("/"):
            raise self._source.refuse(
                name, expected="a name inside the archive", found="a path", remedy=REMEDIES["bomb"]
            )
        if info.flag_bits & 0x1:
            raise self._source.refuse(
                name, expected="plain bytes", found="an encrypted member", remedy="decrypt it first"
            )
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise self._source.refuse(
                name,
                expected="a stored or deflated member",
                found=f"compression method {info.compress_type}",
                remedy="re-pack the archive with plain zip",
            )

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def size(self, name: str) -> int:
        """Return the declared size of `name` in bytes (what `read` will return, or raise)."""
        return self._members[name].file_size

    def read(self, name: str) -> bytes:
        """Return the bytes of one member, its size and CRC checked."""
        info = self._members.get(name)
        if info is None:
            raise self._source.refuse(
                name,
                expected="this member",
                found=f"{len(self._members)} others",
                remedy=REMEDIES["damaged"],
            )
        with self._source.parsing(name, "a readable zip member"):
            # read() without a size would inflate all that is there before it cuts to the declared size
            with self._zip.open(info) as member:
                data = member.read(info.file_size + 1)
        if len(data) != info.file_size:
            raise self._source.refuse(
                name,
                expected=f"{info.file_size} bytes",
                found=f"{len(data)}",
                remedy=REMEDIES["damaged"],
            )
        return data

    def view(self, name: str) -> memoryview:
        """Return the bytes of one member without copying them where they are stored plain, its CRC checked."""
        info = self._members.get(name)
        if info is None or info.compress_type != zipfile.ZIP_STORED:
            return memoryview(self.read(name))
        with self._source.parsing(name, "a readable zip member"):
            data, at = self._source.data, info.header_offset
            signature, name_size, extra_size = struct.unpack_from("<4s22xHH", data, at)
            begin = at + 30 + name_size + extra_size
            stored = data[begin : begin + info.file_size]
            if signature != b"PK\x03\x04" or bytes(data[at + 30 : at + 30 + name_size]) != _encoded(info):
                raise ValueError("the local header is another member's")
            if len(stored) != info.file_size or info.compress_size != info.file_size:
                raise ValueError("the member ends beyond the file")
            if zlib.crc32(stored) != info.CRC:
                raise ValueError("wrong CRC-32")
        return stored


def _encoded(info: zipfile.ZipInfo) -> bytes:
    """Return a member's name as its headers hold it (bit 11: UTF-8, else the old PC encoding)."""
    return info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437")
