"""What the name of a scan's file says where it follows no standard: whose scan it is, and of what kind."""

from __future__ import annotations

import re
from typing import Final

from neuroray.storage.sidecars import parse_bids_name
from neuroray.storage.volume_files import find_suffix

# Words in free names, and the BIDS suffix that they stand for.
_MODALITY_WORDS: Final = {
    "t1": "T1w",
    "t1w": "T1w",
    "mprage": "T1w",
    "t2": "T2w",
    "t2w": "T2w",
    "flair": "FLAIR",
    "bold": "bold",
    "fmri": "bold",
    "rsfmri": "bold",
    "func": "bold",
    "rest": "bold",
    "dwi": "dwi",
}
_MODALITY_TAIL: Final = re.compile(rf"[-_.]({'|'.join(_MODALITY_WORDS)})([-_.][a-z]+)*$", re.IGNORECASE)


def name_stem(name: str) -> str:
    """A file's name without folders and without the ending of a volume."""
    name = name.replace("\\", "/").rpartition("/")[2]
    suffix = find_suffix(name)
    if suffix:
        return name[: -len(suffix)]
    return name.rpartition(".")[0] or name


def subject_of(stem: str) -> str:
    """Whose scan it is: BIDS's `sub-`, else the name without what says the kind (`IXI012-HH-1211-T1_ds`)."""
    parsed = parse_bids_name(stem)
    return parsed.entities["sub"] if parsed else safe_part(_MODALITY_TAIL.sub("", stem))


def modality_of(words: str) -> str | None:
    """The BIDS suffix that a text names by one of its words; None where it names none, or several."""
    found = {_MODALITY_WORDS[word] for word in re.split(r"[-_.\s]", words.lower()) if word in _MODALITY_WORDS}
    return found.pop() if len(found) == 1 else None


def safe_part(text: str) -> str:
    """The text with everything that cannot be part of a path replaced; never empty."""
    cleaned = re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-_")
    return cleaned[:120] or "scan"
