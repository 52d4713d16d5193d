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

MAX_FILES = 64
_SMALL = 1024 * 1024  # bytes of a body that is parsed in the event loop

# BentoML's own file types write every upload to a disk, and fetch a URL that a client puts in its
# place. BentoML's client knows a file to upload by the type `file`, OpenAPI knows it as binary.
_File = Annotated[
    bytes,
    WithJsonSchema({"type": "file", "format": "binary"}, mode="validation"),
    WithJsonSchema({"type": "string", "format": "binary"}, mode="serialization"),
]


def in_memory(*_: object, **__: object) -> BytesIO:
    """Werkzeug's `stream_factory` that writes no upload to a disk."""
    return BytesIO()


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
        texts, files = MultiDict[str, str](), MultiDict[str, FileStorage]()
        try:
            name, options = parse_options_header(kind)
            _, texts, files = parser.parse(BytesIO(body), name, len(body), options)
        except (HTTPException, ValueError):
            pass
        sent = texts.to_dict() | {
            "file": files["file"].stream.read() if "file" in files else None,
            "files": [part.stream.read() for part in files.getlist("files")],
        }
        return cls.model_construct(**{key: sent[key] for key in cls.model_fields if key in sent})


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


class VolumeForm(Form):
    """What `/segment/volume` takes."""

    file: _File = Field(
        description="A volume: a zip of a DICOM series, one DICOM file, or NIfTI (.nii, .nii.gz), "
        "at most 256 MiB as sent, 512 MiB unpacked, and 512 slices."
    )
    output: Literal["seg", "nifti"] | None = Field(
        default=None,
        description="`seg` (DICOM SEG) or `nifti`; the kind that was sent if left out.",
    )


class UploadForm(BaseModel):
    """What `/upload` takes; Flask reads it."""

    file: _File = Field(description="One slice, as for `/segment`.")


PictureForm.multipart_fields = VolumeForm.multipart_fields = ["file"]
BatchForm.multipart_fields = ["files"]


def given(file: bytes | None) -> bytes:
    """Returns the file that was sent; raises Rejected, 400, if none was."""
    if file is None:
        raise Rejected(400, no_file("file"))
    return file


def flag(text: str | bool) -> bool:
    """Reads a yes or no; raises Rejected, 400, for anything but true, false, 1, 0 or nothing."""
    known = {"true": True, "1": True, "false": False, "0": False, "": False}
    value = known.get(str(text).strip().lower())
    if value is None:
        raise Rejected(400, "The form field `probability` must be true or false: correct it.")
    return value
