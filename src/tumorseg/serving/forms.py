"""The multipart forms that the API takes, read in memory."""

from io import BytesIO
from typing import Annotated, Literal, Self

import anyio.to_thread
import bentoml
from pydantic import BaseModel, Field, WithJsonSchema
from starlette.requests import Request
from werkzeug.datastructures import FileStorage, MultiDict
from werkzeug.exceptions import HTTPException
from werkzeug.formparser import FormDataParser
from werkzeug.http import parse_options_header

from tumorseg.imaging.study import Rejected
from tumorseg.serving.guard import no_file
from tumorseg.serving.web.shield import in_memory

MAX_FILES = 64
_SMALL = 1024 * 1024  # read at once; a thread would take longer to start than this to read

# BentoML's own file types write every upload to a disk, and fetch whatever address a client puts
# in its place; these forms are read into memory, and nothing else is done. BentoML's client knows
# a file to upload by the type `file`, OpenAPI knows it as binary.
_File = Annotated[
    bytes,
    WithJsonSchema({"type": "file", "format": "binary"}, mode="validation"),
    WithJsonSchema({"type": "string", "format": "binary"}, mode="serialization"),
]


class Form(bentoml.IODescriptor):
    """A form; its fields hold what was sent, unchecked, and None where nothing was."""

    @classmethod
    def mime_type(cls) -> str:
        """Names the request's media type for OpenAPI."""
        return "multipart/form-data"

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> Self:
        """Reads the form; one that cannot be read is like an empty one."""
        body, kind = await request.body(), request.headers.get("content-type", "")
        if len(body) > _SMALL:
            return await anyio.to_thread.run_sync(cls._read, body, kind)
        return cls._read(body, kind)

    @classmethod
    def _read(cls, body: bytes, kind: str) -> Self:
        parser = FormDataParser(in_memory, max_form_memory_size=_SMALL, max_form_parts=1000)
        try:
            name, options = parse_options_header(kind)
            _, texts, files = parser.parse(BytesIO(body), name, len(body), options)
        except (HTTPException, ValueError):
            texts, files = MultiDict(), MultiDict()
        return cls._of(files, texts)

    @classmethod
    def _of(cls, files: MultiDict[str, FileStorage], texts: MultiDict[str, str]) -> Self:
        """Takes what the form has a field for."""
        named = {name: texts[name] for name in cls.model_fields if name in texts}
        return cls.model_construct(**named | {"file": _bytes(files.get("file"))})


class PictureForm(Form):
    """What `/segment` takes."""

    file: _File = Field(
        description="One slice: a JPEG, PNG or single-slice DICOM file, at most 10 MiB and 4096 px "
        "a side."
    )
    probability: bool = Field(
        default=False, description="Whether to answer the map of probabilities too."
    )


class BatchForm(Form):
    """What `/segment/batch` takes."""

    files: list[_File] = Field(
        description="Slices, each as for `/segment`.", min_length=1, max_length=MAX_FILES
    )

    @classmethod
    def _of(cls, files: MultiDict[str, FileStorage], texts: MultiDict[str, str]) -> Self:
        return cls.model_construct(files=[_bytes(file) for file in files.getlist("files")])


class VolumeForm(Form):
    """What `/segment/volume` takes."""

    file: _File = Field(
        description="A volume: a zip of a DICOM series, one DICOM file, or NIfTI (.nii, .nii.gz), "
        "at most 256 MiB as sent, 512 MiB unpacked, and 512 slices."
    )
    output: Literal["seg", "nifti"] | None = Field(
        default=None,
        description="`seg` (DICOM SEG; only for DICOM, and what that is answered unless NIfTI is "
        "asked for) or `nifti`.",
    )


class UploadForm(BaseModel):
    """What `/upload` takes; Flask reads it."""

    file: _File = Field(description="One slice, as for `/segment`.")


PictureForm.multipart_fields = VolumeForm.multipart_fields = ["file"]
BatchForm.multipart_fields = ["files"]


def _bytes(part: FileStorage | None) -> bytes | None:
    return None if part is None else part.stream.read()


def given(file: bytes | None) -> bytes:
    """Returns the file that was sent.

    Raises:
        Rejected: 400 if none was.
    """
    if file is None:
        raise Rejected(400, no_file("file"))
    return file


def flag(text: str | bool) -> bool:
    """Reads a yes or no.

    Raises:
        Rejected: 400 for anything but true, false, 1, 0 or nothing.
    """
    known = {"true": True, "1": True, "false": False, "0": False, "": False}
    value = known.get(str(text).strip().lower())
    if value is None:
        raise Rejected(400, "The form field `probability` must be true or false: correct it.")
    return value
