"""From a multipart request to a scan and a question: counted while it streams, decoded from a file that goes again."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from anyio import to_thread
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.types import Message, Receive

from neuroray.serve.config import ServeError
from neuroray.serve.question import Question
from neuroray.storage.nifti import read_scan
from neuroray.storage.scan import Scan

FILE_FIELD = "file"
OPTIONS = {
    "sex": "M or F: of the person, for models that take it into account",
    "age_years": "of the person at the time of the scan: what a predicted age is held against",
    "explain": "true: also send the map of what the answer rests on, which takes longer; false when not given",
    "num_steps": "of the map's path, for models of runs: more are slower and more exact; the answer states the error",
    "ages": "for models that tell brains at other ages: those ages in years, such as 65 70 75; needs age_years",
    "samples": "of such models: draw so many brains for each age, with a temperature above 0: mean and spread are sent",
    "temperature": "codes are drawn, the wilder the higher; 0: always the likeliest, the same each time",
    "top_k": "draw among so many likeliest codes alone; 0: all",
    "top_p": "draw among the likeliest codes that together have this probability; 1: all",
    "age_guidance": "how far to go in the direction in which ages change what is told; 1: as far as they do",
    "previous_guidance": "the same of the scan that is given",
    "seed": "of the draws",
    "diagnosis": "of the person, as the study calls it: one that the training has not seen is refused",
    "allow_outside": "true: ages, or a diagnosis, outside the training are told all the same, with a warning",
    "files": "none, volumes (when not given) or all: each age, also its difference, spread, and the reconstruction",
}
"""The form's other fields, and what they mean."""
_KINDS = {
    **dict.fromkeys(("explain", "allow_outside"), "flag"),
    **dict.fromkeys(("num_steps", "samples", "top_k", "seed"), "count"),
    **dict.fromkeys(("age_years", "temperature", "top_p", "age_guidance", "previous_guidance"), "number"),
    "ages": "numbers",
}
_EXPECTED = {
    "flag": "true or false",
    "count": "a whole number",
    "number": "a number with a point",
    "numbers": "numbers with a point, a space between them",
}
SUFFIXES = (".nii.gz", ".nii", ".mgz")

# How much of an upload that is too large is still read and dropped, so that a client that writes first and reads later
# gets to see the answer, and not a broken connection.
_MOST_DROPPED_BYTES = 64 * 2**20


class UploadError(ServeError):
    """A request that is not understood: no form, not one file in it, or other fields than are known."""


class UploadTooLargeError(ServeError):
    """A request body above the service's limit."""


class UnknownSuffixError(ServeError):
    """A file whose name does not say that it is a scan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """What a request asks.

    Attributes:
        scan: The file, decoded.
        question: The form's other fields.
    """

    scan: Scan
    question: Question


async def read_upload(request: Request, *, max_upload_bytes: int, max_volume_bytes: int) -> Upload:
    """Takes scan and question out of a multipart request.

    The file's name decides only on its suffix. It is neither logged nor passed on, since names carry identities.

    Args:
        request: A request whose body has not been read.
        max_upload_bytes: Largest body.
        max_volume_bytes: Largest volume after decoding.

    Raises:
        UploadTooLargeError: the body is larger than allowed, by its header or by what has come of it.
        UploadError: the body is no form with one file in the field `file`, or has fields that are not known.
        QuestionError: fields whose values make no sense.
        UnknownSuffixError: the file is no .nii, .nii.gz or .mgz.
        ScanError: the file cannot be taken as a scan.
    """
    receive = _Counted(request.receive, max_upload_bytes)
    await _refuse_announced(request, receive)
    _refuse_query(request)
    async with _open_form(Request(request.scope, receive)) as (upload, form):
        suffix, question = find_suffix(upload.filename or ""), read_question(form)
        scan = await to_thread.run_sync(_decode, upload.file, suffix, max_volume_bytes)
    return Upload(scan=scan, question=question)


def read_question(form: FormData) -> Question:
    """The fields beside the file; one that is empty, as a page sends it, is not given.

    Raises:
        UploadError: an unknown field, one that is given twice, or one whose text cannot be read.
        QuestionError: a value that makes no sense.
    """
    names = [name for name, _ in form.multi_items() if name != FILE_FIELD]
    wrong = sorted({name for name in names if name not in OPTIONS or names.count(name) > 1})
    if wrong:
        given = ", ".join(repr(name[:32]) for name in wrong[:4])
        known = f"each of {FILE_FIELD}, {', '.join(OPTIONS)} at most once"
        raise UploadError("the form has fields that are not known, or twice", given=given, expected=known)
    texts = {name: str(form[name]).strip() for name in names}
    return Question(**{name: _parse_option(name, text) for name, text in texts.items() if text})


def find_suffix(filename: str) -> str:
    """The suffix of a scan's file name, `.nii.gz` whole.

    Raises:
        UnknownSuffixError: it is none that is read from one file.
    """
    for suffix in SUFFIXES:
        if filename.lower().endswith(suffix):
            return suffix
    given = "".join(Path(filename).suffixes[-2:])
    raise UnknownSuffixError(
        "the file's name does not say that it is a scan",
        given=f"a name that ends in {given}" if given else "a name without a suffix",
        expected=", ".join(SUFFIXES),
        fix="send one NIfTI or MGZ file; DICOM series and .hdr/.img pairs have to be converted first",
    )


async def _refuse_announced(request: Request, receive: _Counted) -> None:
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > receive.max_bytes:
        await receive.drop_rest()
        raise receive.too_large(f"{announced} bytes")


def _refuse_query(request: Request) -> None:
    """An option that is silently without effect would be taken for one that was followed."""
    if request.query_params:
        fix = f"curl -F {FILE_FIELD}=@scan.nii.gz -F explain=true URL"
        raise UploadError("options are fields of the form, not parts of the URL", given="a query", fix=fix)


def _parse_option(name: str, text: str) -> Any:
    kind = _KINDS.get(name, "text")
    try:
        match kind:
            case "flag":
                return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
            case "count":
                return int(text)
            case "number":
                return float(text)
            case "numbers":
                return tuple(float(one) for one in re.split(r"[\s,;]+", text))
            case _:
                return text
    except (KeyError, ValueError):
        raise UploadError(f"the field {name} cannot be read", given=repr(text[:32]), expected=_EXPECTED[kind]) from None


@contextlib.asynccontextmanager
async def _open_form(request: Request) -> AsyncIterator[tuple[UploadFile, FormData]]:
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise UploadError(
            "the request is no multipart form",
            given=request.headers.get("content-type", "no content type"),
            expected=f"multipart/form-data with the scan in the field {FILE_FIELD!r}",
            fix=f"curl -F {FILE_FIELD}=@scan.nii.gz URL",
        )
    async with request.form(max_files=1, max_fields=2 * len(OPTIONS)) as form:
        upload = form.get(FILE_FIELD)
        if not isinstance(upload, UploadFile):
            raise UploadError(
                "the form holds no file",
                given=f"the fields {', '.join(sorted(form)) or 'none'}",
                expected=f"a file in the field {FILE_FIELD!r}",
                fix=f"curl -F {FILE_FIELD}=@scan.nii.gz URL",
            )
        yield upload, form


def _decode(upload: BinaryIO, suffix: str, max_volume_bytes: int) -> Scan:
    with tempfile.TemporaryDirectory(prefix="neuroray-upload-") as folder:
        path = Path(folder) / f"upload{suffix}"
        with path.open("wb") as kept:
            shutil.copyfileobj(upload, kept, 2**20)
        return read_scan(path, max_bytes=max_volume_bytes)


class _Counted:
    """An ASGI `receive` that raises as soon as the body has grown past its limit."""

    def __init__(self, receive: Receive, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._receive = receive
        self._size_bytes = 0

    async def __call__(self) -> Message:
        message = await self._receive()
        self._size_bytes += len(message.get("body", b""))
        if self._size_bytes > self.max_bytes:
            if message.get("more_body", False):
                await self.drop_rest()
            raise self.too_large(f"more than {self.max_bytes} bytes")
        return message

    async def drop_rest(self) -> None:
        dropped, more = 0, True
        while more and dropped < _MOST_DROPPED_BYTES:
            message = await self._receive()
            dropped += len(message.get("body", b""))
            more = message["type"] == "http.request" and message.get("more_body", False)

    def too_large(self, given: str) -> UploadTooLargeError:
        return UploadTooLargeError(
            "the upload is too large",
            given=given,
            expected=f"at most {self.max_bytes} bytes",
            fix="send one compressed volume, or ask whoever runs this service to raise its limit",
        )
