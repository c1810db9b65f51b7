"""What a file is that can't be read: named, with what to do about it."""

import codecs
import shlex
from pathlib import Path

_MARKS = {
    b"PK\x03\x04": ("a zip archive", "unpack it; save a spreadsheet as CSV"),
    b"PK\x05\x06": ("an empty zip archive", "get it anew"),
    b"BZh": ("compressed by bzip2", "unpack it with: bunzip2 -k {name}"),
    b"\xfd7zXZ\x00": ("compressed by xz", "unpack it with: unxz -k {name}"),
    b"\x04\x22\x4d\x18": ("compressed by lz4", "unpack it with: unlz4 {name}"),
    b"7z\xbc\xaf\x27\x1c": ("a 7-Zip archive", "unpack it"),
    b"Rar!\x1a\x07": ("a RAR archive", "unpack it"),
    b"%PDF": ("a PDF", "take its text out, for example with: pdftotext {name}"),
    b"ARROW1": ("an Arrow file", "store the table as Parquet, with pyarrow.parquet.write_table"),
    b"\xff\xff\xff\xff": ("an Arrow stream or of no known kind", "store a table as Parquet"),
    b"\x89PNG": ("an image (PNG)", "name a file of text"),
    b"\xff\xd8\xff": ("an image (JPEG)", "name a file of text"),
    b"GIF8": ("an image (GIF)", "name a file of text"),
    b"RIFF": ("an image or sound (RIFF)", "name a file of text"),
    b"\x89HDF": ("HDF5", "store the table as Parquet"),
    b"\x93NUMPY": ("a NumPy array", "store the rows as JSONL"),
    b"SQLite format 3": ("an SQLite data base", "export the table as CSV"),
    b"\x80\x04\x95": ("a Python pickle", "store the rows as JSONL"),
    b"\x80\x05\x95": ("a Python pickle", "store the rows as JSONL"),
    b"\x7fELF": ("a program", "name a file of text"),
}
_ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""The longer marks first: one begins like the other."""
_TAR_MARK, _TAR_AT = b"ustar", 257
_CONTROLS = [bytes([code]) for code in range(32) if code not in b"\t\n\v\f\r\x1b"]
_FEWEST_CONTROLS = 8
_UNPACKERS = {"gzip": "gzip -dc", "zstd": "zstd -dc"}


def why_binary(head: bytes, name: str) -> str | None:
    """What a file is if it holds no text, with the cure; None where it may be text.

    Args:
        head: its beginning, unpacked.
        name: the file's name.
    """
    quoted = shlex.quote(name)
    for mark, (kind, cure) in _MARKS.items():
        if head.startswith(mark):
            return f"the file is {kind}, which can't be read; {cure.format(name=quoted)}"
    if head[_TAR_AT:].startswith(_TAR_MARK):
        return f"the file is a tar archive, which can't be read; unpack it with: tar -xf {quoted}"
    return None


def why_other_encoding(head: bytes, name: str, compression: str | None) -> tuple[int, str] | None:
    """The line and reason why text can't be read, with the command that mends it; None where it may be UTF-8.

    Args:
        head: the file's beginning in whole lines, unpacked.
        name: the file's name.
        compression: how it is packed.
    """
    for mark, encoding in _ENCODINGS.items():
        if head.startswith(mark):
            return 1, f"the file is {encoding}, only UTF-8 is read; {_convert(name, encoding, compression)}"
    for encoding, zeros in (("UTF-16LE", head[1::2]), ("UTF-16BE", head[0::2])):
        if zeros.count(0) > len(head) // 4:
            reason = "the file looks like UTF-16 without a mark, only UTF-8 is read"
            return 1, f"{reason}; {_convert(name, encoding, compression)}"
    if sum(map(head.count, _CONTROLS)) > max(_FEWEST_CONTROLS, len(head) // 20) and not _decodes(head, "utf-8"):
        return 1, "the file is binary, of no kind that is known; name a file of text or of Parquet"
    line = _first_line_of_latin_1(head)
    if line is None:
        return None
    return line, f"the file looks like Latin-1 or Windows-1252, only UTF-8 is read; {_convert(name, '', compression)}"


def _first_line_of_latin_1(head: bytes) -> int | None:
    """Where text in an 8-bit encoding first differs from UTF-8; None for a damaged line or two in UTF-8."""
    if head.isascii():
        return None
    special = [(number, line) for number, line in enumerate(head.split(b"\n"), start=1) if not line.isascii()]
    odd = [(number, line) for number, line in special if not _decodes(line, "utf-8")]
    if len(odd) < 2 or len(odd) < len(special) or not all(_decodes(line, "cp1252") for _, line in odd):
        return None
    return odd[0][0]


def _decodes(line: bytes, encoding: str) -> bool:
    try:
        line.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _convert(name: str, encoding: str, compression: str | None) -> str:
    target = shlex.quote(f"utf8-{Path(name).stem if compression else name}")
    command = f"iconv -f {encoding or 'WINDOWS-1252'} -t UTF-8"
    if compression:
        return f"convert it with: {_UNPACKERS[compression]} {shlex.quote(name)} | {command} > {target}"
    return f"convert it with: {command} {shlex.quote(name)} > {target}"
