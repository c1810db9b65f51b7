"""The bytes of a file, unpacked where it is compressed, in pieces of bounded size."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_PLAIN_CHUNK = 2**20
_PACKED_CHUNK = 2**18


class CutShort(Exception):
    """A compressed file ends too early or is damaged: every byte before was given, there are no more.

    Args:
        reason: what is wrong, with its cure.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def read_chunks(file: Path, compression: str | None) -> Iterator[bytes]:
    """The content of a file, unpacked, without a byte order mark.

    Args:
        file: the file.
        compression: `gzip`, `zstd` or None.

    Raises:
        CutShort: the compressed data are incomplete or damaged; after all that could be unpacked.
    """
    chunks = _plain(file) if compression is None else _unpacked(file, compression)
    first = next(chunks, b"")
    if first:
        yield first.removeprefix(BYTE_ORDER_MARK)
    yield from chunks


def _plain(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while chunk := stream.read(_PLAIN_CHUNK):
            yield chunk


def _unpacked(file: Path, compression: str) -> Iterator[bytes]:
    position = 0
    try:
        with _packed(file, compression) as stream:
            while chunk := stream.read(_PACKED_CHUNK):
                position += len(chunk)
                yield chunk
            return
    except OSError as error:
        if error.errno is not None:
            raise
        reason = _why_cut(error, compression)
    yield from _what_is_left(file, compression, position)
    raise CutShort(reason)


def _what_is_left(file: Path, compression: str, position: int) -> Iterator[bytes]:
    """The bytes from a position up to where the data break off: the read that failed gave none of them."""
    left = bytearray()
    with _packed(file, compression) as stream:
        while position > 0:
            position -= len(stream.read(min(position, _PACKED_CHUNK)))
        try:
            while byte := stream.read(1):
                left += byte
        except OSError:
            pass
    if left:
        yield bytes(left)


def _packed(file: Path, compression: str) -> Any:
    return pa.CompressedInputStream(file.open("rb"), compression)


def _why_cut(error: OSError, compression: str) -> str:
    if "Truncated" in str(error):
        return f"the file is cut short here, its {compression} data have no end; get it whole"
    return f"the {compression} data are damaged at about this line, nothing after it was read; get the file anew"
