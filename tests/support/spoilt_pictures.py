"""Pictures and files that are not what they seem."""

import os
import struct
import zlib

import numpy as np
from PIL import Image

from tests.support.spoiling import ENTRY, HEIGHT, WIDTH, Case, Spot, finding, odd

BROKEN = finding("unreadable", "cannot be decoded")
OTHER_FORMAT = finding("unreadable", "neither JPEG nor PNG")
OUT = "is a link that leads out of"
SPECIAL = "is neither a file nor a folder"


def cut(spot: Spot) -> None:
    spot.path.write_bytes(spot.path.read_bytes()[: spot.path.stat().st_size // 2])


def as_format(kind: str):
    return lambda spot: spot.save(Image.fromarray(spot.pixels()), kind)


def palette(spot: Spot) -> None:
    spot.save(Image.fromarray(spot.pixels(HEIGHT, WIDTH, 3)).convert("P"))


def sized(width: int, height: int):
    def spoil(spot: Spot) -> None:
        spot.save(Image.fromarray(spot.pixels(height, width)))
        spot.image.update(width=width, height=height)

    return spoil


def deep(spot: Spot) -> None:
    spot.save(Image.fromarray(spot.pixels().astype(np.uint16) * 200))


def turned(width: int, height: int, orientation: int):
    """A file of 80×64 that EXIF turns; the JSON has the size given."""

    def spoil(spot: Spot) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        spot.save(Image.fromarray(spot.pixels()), "JPEG", exif=exif)
        spot.image.update(width=width, height=height)
        spot.annotation["segmentation"] = [[5, 5, 20, 8, 12, 20]]

    return spoil


def chunk(kind: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def claims(width: int, height: int):
    def spoil(spot: Spot) -> None:
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        rest = chunk(b"IDAT", zlib.compress(bytes(100_000))) + chunk(b"IEND", b"")
        spot.path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + rest)

    return spoil


def inserted(kind: bytes, data: bytes):
    """A PNG chunk after the header."""

    def spoil(spot: Spot) -> None:
        file = spot.path.read_bytes()
        spot.path.write_bytes(file[:33] + chunk(kind, data) + file[33:])

    return spoil


BOMB = zlib.compress(bytes(200 * 2**20))


def checksum(spot: Spot) -> None:
    file = bytearray(spot.path.read_bytes())
    file[30] ^= 255
    spot.path.write_bytes(file)


def two_pictures(spot: Spot) -> None:
    image = Image.fromarray(spot.pixels())
    spot.save(image, "MPO", save_all=True, append_images=[image.rotate(180)])


def replaced(make):
    """Something else in the file's place."""

    def spoil(spot: Spot) -> None:
        spot.path.unlink()
        make(spot)

    return spoil


def link_out(spot: Spot) -> None:
    secret = spot.folder.parent.parent / "outside"
    secret.mkdir(exist_ok=True)
    spot.path.rename(secret / spot.name)
    spot.path.symlink_to(secret / spot.name)


def link_into_cache(spot: Spot) -> None:
    cache = spot.folder.parent.parent / ".dvc" / "cache"
    cache.mkdir(parents=True)
    (cache.parent / "config").write_text("[core]\n    no_scm = true\n")
    spot.path.rename(cache / spot.name)
    spot.path.symlink_to(cache / spot.name)


def large(spot: Spot) -> None:
    os.truncate(spot.path, 101 * 2**20)  # sparse


def unlisted(spot: Spot) -> None:
    del spot.image["file_name"]


PICTURES = [
    Case("truncated JPEG", cut, BROKEN, ".jpg"),
    Case("truncated PNG", cut, BROKEN),
    Case("empty file", lambda s: s.path.write_bytes(b""), OTHER_FORMAT),
    Case("PNG called .jpg", as_format("PNG"), odd("wrong_extension"), ".jpg"),
    Case("JPEG called .png", as_format("JPEG"), odd("wrong_extension")),
    Case("text called .jpg", lambda s: s.path.write_text("hello"), OTHER_FORMAT, ".jpg"),
    *(Case(f"{kind} called .png", as_format(kind), OTHER_FORMAT) for kind in ("GIF", "TIFF", "WEBP",
         "BMP")),
    Case("16-bit PNG", deep),
    Case("palette", palette, odd("coloured")),
    Case("several pictures in a JPEG", two_pictures, suffix=".jpg"),
    Case("EXIF turns, JSON upright", turned(64, 80, 6), odd("rotated"), ".jpg"),
    Case("EXIF turns, JSON as stored", turned(80, 64, 6), finding("size_mismatch", "EXIF turns it"),
         ".jpg"),
    Case("PNG claims 100000×100000", claims(100_000, 100_000), BROKEN),
    Case("PNG of 200 MiB text, zTXt", inserted(b"zTXt", b"a\0\0" + BOMB), BROKEN),
    Case("PNG with a wrong checksum", checksum, finding("unreadable", "damaged header")),
    Case("side of 5000", sized(5000, 64), finding("too_large", "5000×64")),
    Case("1×1", sized(1, 1), finding("too_small", "1×1")),
    Case("101 MiB", large, finding("too_large", "100 MiB")),
    Case("missing", lambda s: s.path.unlink(), finding("missing_file", "no such file")),
    Case("folder called .jpg", replaced(lambda s: s.path.mkdir()), finding("not_a_file",
         "no regular file"), ".jpg"),
    Case("pipe called .jpg", replaced(lambda s: os.mkfifo(s.path)), finding("not_a_file",
         "no regular file"), ".jpg", imports=SPECIAL),
    Case("link to nothing", replaced(lambda s: s.path.symlink_to("gone.png")),
         finding("missing_file"), imports=SPECIAL),
    Case("link into DVC's cache", link_into_cache),
    Case("link out of the folder", link_out, finding("outside", "is a link"), imports=OUT),
    Case("no permission", lambda s: s.path.chmod(0), finding("unreadable", "Permission denied"),
         imports="cannot be copied"),
    Case("entry without a name", unlisted, finding("unlisted", "is not listed", bad_entry=ENTRY)),
]  # fmt: skip
