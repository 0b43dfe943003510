"""Folders of data files: one file or one row of shards for each split, as people and clones of the hub have them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autopeft.errors import DataError
from autopeft.spec.messages import listed
from autopeft.tasks.splits import ALIASES
from autopeft.tasks.text_file import ENDINGS, extension_of, stem_of

NO_DATA = frozenset({"dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json"})
"""Files that describe a data set beside its data."""
_SHARD = re.compile(r"(?P<split>.+?)[-_.](?P<number>\d{4,})-of-(?P<total>\d{4,})(?:-[0-9a-f]{8,})?")
"""Such as `train-00000-of-00002`, and as older versions of the hub wrote it, with a hash behind."""
_SPLITS = frozenset(name for names in ALIASES.values() for name in names)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One of the files that hold a split together; `number` counts from 0."""

    split: str
    number: int
    total: int

    @classmethod
    def of(cls, path: Path) -> "Shard | None":
        """Return what a file's name says, or None where it is no shard."""
        found = _SHARD.fullmatch(stem_of(path))
        return found and cls(split=found["split"], number=int(found["number"]), total=int(found["total"]))


def find_files(folder: Path) -> dict[str, list[Path]]:
    """Return the files of each split in their order: those of the folder, or of the one folder inside that has any.

    Raises:
        DataError: There are none, several folders inside hold data, a shard lacks, or two files have one name.
    """
    files, inner = _data_files(folder), _data_folders(folder)
    if files and inner:
        raise DataError(
            f"a data folder must have its files in one place, but {str(folder)!r} holds "
            f"{listed(f.name for f in files)} and also folders with data: "
            f"{listed(f.name for f in inner)}; give the path of a file or of one folder"
        )
    if files:
        return _by_split(folder, files)
    splits = [part for part in inner if part.name.lower() in _SPLITS]
    if splits and len(splits) == len(inner):
        return {part.name: _in_order(part) for part in splits}
    if len(inner) == 1:
        return find_files(inner[0])
    if inner:
        raise DataError(
            f"data must be one data set, but {str(folder)!r} holds several: {listed(part.name for part in inner)}; "
            f"give the path of one, such as {str(inner[0])!r}"
        )
    raise DataError(
        f"a data folder must hold a saved data set or files that end with {ENDINGS}, but {str(folder)!r} holds neither"
    )


def _data_files(folder: Path) -> list[Path]:
    found = (path for path in folder.iterdir() if extension_of(path) and path.is_file())
    return sorted(path for path in found if not path.name.startswith(".") and path.name not in NO_DATA)


def _data_folders(folder: Path) -> list[Path]:
    """Return the folders inside that hold data, or a folder with data."""
    found = (path for path in _folders(folder) if any(_data_files(place) for place in (path, *_folders(path))))
    return sorted(found)


def _folders(folder: Path) -> list[Path]:
    real = folder.resolve()
    above = (real, *real.parents)  # a link may lead back
    found = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))
    return [path for path in found if path.resolve() not in above]


def _by_split(folder: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    shards: dict[str, dict[int, tuple[int, Path]]] = {}
    result: dict[str, list[Path]] = {}
    for path in files:
        shard = Shard.of(path)
        name = shard.split if shard else stem_of(path)
        known = shards.setdefault(name, {})
        number, total = (shard.number, shard.total) if shard else (0, 1)
        if number in known or any(other != total for other, _ in known.values()):
            raise DataError(
                f"the files of a data folder must have different names, but {path.name!r} and "
                f"{next(iter(known.values()))[1].name!r} in {str(folder)!r} are both of the split {name!r}; remove one"
            )
        known[number] = total, path
    for name, parts in shards.items():
        total = next(iter(parts.values()))[0]
        missing = [number for number in range(total) if number not in parts]
        if missing:
            example = f"{name}-{missing[0]:05}-of-{total:05}"
            raise DataError(
                f"all shards of a split must be there, but {len(missing)} of {total} are missing in {str(folder)!r}, "
                f"the first {example!r}; fetch the data again"
            )
        result[name] = [parts[number][1] for number in sorted(parts)]
    return result


def _in_order(folder: Path) -> list[Path]:
    """Return the files of a folder that is one split."""
    files = _data_files(folder)
    if not files:
        raise DataError(
            f"the files of a split must be in one folder, but {str(folder)!r} holds the folders "
            f"{listed(path.name for path in _data_folders(folder))}; put them together"
        )
    parts = _by_split(folder, files) if any(Shard.of(path) for path in files) else {}
    if len(parts) == 1:
        return next(iter(parts.values()))
    extensions = {extension_of(path) for path in files}
    if len(extensions) > 1:
        raise DataError(
            f"the files of a split must be of one kind, but {str(folder)!r} holds {listed(path.name for path in files)}"
            f"; remove what is no data"
        )
    return files
