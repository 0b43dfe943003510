"""The text of a data file: unpacked and decoded, or refused with the line at fault."""

import codecs
from pathlib import Path

import pyarrow as pa

from autopeft.errors import DataError
from autopeft.spec.messages import first_line

EXTENSIONS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet")
COMPRESSIONS = (".gz", ".bz2", ".zst")
"""Endings behind the one of a text file, as in `reviews.csv.gz`."""
ENDINGS = f"{', '.join(EXTENSIONS)} (text files also with {', '.join(COMPRESSIONS)} behind it)"
"""Of data files, for messages."""
_MARKS = (  # longest first: the mark of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_POINTER = b"version https://git-lfs.github.com/spec/"


def extension_of(path: Path) -> str:
    """Return the ending that says how a file is read, or an empty text where it is no data file."""
    ending = path.suffix.lower()
    if ending in COMPRESSIONS:
        inner = Path(path.stem).suffix.lower()
        return inner if inner in EXTENSIONS and inner != ".parquet" else ""
    return ending if ending in EXTENSIONS else ""


def stem_of(path: Path) -> str:
    """Return the name of a data file without its endings."""
    return Path(path.stem).stem if path.suffix.lower() in COMPRESSIONS else path.stem


def refuse_pointer(path: Path) -> None:
    """Raise `DataError` where a file is only Git LFS's note of where the data is."""
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise DataError(
                f"data {str(path)!r} must hold rows, but is a Git LFS pointer: the clone has no data yet; run "
                f"git lfs pull in its folder"
            )


def read_text(path: Path) -> str:
    """Return what a file says, without its byte-order mark.

    Raises:
        DataError: It is empty, is not UTF-8 and has no byte-order mark of another encoding, or holds NUL characters.
        OSError: It cannot be read.
    """
    refuse_pointer(path)
    try:
        with pa.input_stream(str(path), compression="detect") as stream:
            content = bytes(stream.read())
    except (OSError, ValueError) as error:
        if path.suffix.lower() in COMPRESSIONS:
            raise DataError(
                f"data {str(path)!r} must be compressed as its ending says, but cannot be unpacked "
                f"({first_line(error)}); check the file"
            ) from None
        raise
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start]
        raise DataError(
            f"data {str(path)!r} must be text in {encoding.removesuffix('-sig').upper()}, but line {line} holds the "
            f"byte 0x{byte:02x} (at {error.start:,}), which is none; save it as UTF-8, such as with: "
            f"iconv -f cp1252 -t utf-8 {path.name} > utf8.{path.name}"
        ) from None
    if not text.strip():
        raise DataError(f"data {str(path)!r} cannot be read as {extension_of(path)[1:]}: it is empty; check the path")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(
            f"data {str(path)!r} must be text in UTF-8, but line {line} holds a NUL character; if the file is UTF-16, "
            f"save it as UTF-8, else delete that character"
        )
    return text
