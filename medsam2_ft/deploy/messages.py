"""The JSON that clients and server exchange, checked on arrival; arrays travel as base64 of compressed bits."""

import base64
import binascii
import zlib
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from medsam2_ft.deploy.limits import Refusal
from medsam2_ft.prompts.prompt import Prompt

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Coordinate = Annotated[float, Field(ge=-1e5, le=1e5, allow_inf_nan=False)]
Index = Annotated[int, Field(ge=0, le=1_000_000)]


class Message(BaseModel):
    """A request body; unknown fields are refused, so that a typing error is told instead of ignored."""

    model_config = ConfigDict(extra="forbid")


class Click(Message):
    """One click in pixels of the slice."""

    x: Coordinate
    y: Coordinate
    positive: bool = True


class ObjectPrompt(Message):
    """What the user pointed at: one object on one slice."""

    object: Annotated[int, Field(ge=1, le=255)] = Field(description="label value of the object in the result")
    slice: Index
    box: tuple[Coordinate, Coordinate, Coordinate, Coordinate] | None = Field(
        None, description="x0, y0, x1, y1 in pixels, x1 and y1 exclusive"
    )
    clicks: list[Click] = Field(default_factory=list, max_length=64)
    mask: Annotated[str, StringConstraints(max_length=1 << 22)] | None = Field(
        None, description="base64 of zlib of numpy.packbits of the (H, W) mask, row by row"
    )

    def to_prompt(self, height: int, width: int) -> Prompt:
        """The library's own type.

        Raises:
            Refusal: 422, a mask that does not decode to height x width.
        """
        return Prompt(
            object_id=self.object,
            slice=self.slice,
            box=self.box,
            points=np.array([(c.x, c.y) for c in self.clicks], np.float32) if self.clicks else None,
            point_labels=np.array([c.positive for c in self.clicks], np.int64) if self.clicks else None,
            mask=None if self.mask is None else decode_mask(self.mask, height, width),
        )


class SliceRequest(Message):
    """Which pixels of which volume; common to clicks and propagation."""

    volume: Sha256
    axis: Annotated[int, Field(ge=0, le=2)] = Field(0, description="array axis that the slices step through")
    model: Annotated[str, StringConstraints(max_length=200)] | None = Field(None, description="a name from /models")
    window: tuple[Coordinate, Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]] | None = Field(
        None, description="level and width; null for the checkpoint's own recipe"
    )


class EmbedRequest(SliceRequest):
    """A slice that the user looks at and may click on next."""

    slice: Index
    wait: bool = True
    """False answers at once; the slice is read in while the user draws."""


class MasksRequest(SliceRequest):
    """Prompts on one slice, answered at once."""

    prompts: list[ObjectPrompt] = Field(min_length=1, max_length=64)


class JobRequest(SliceRequest):
    """Prompts on any slices, carried through the volume in the background."""

    prompts: list[ObjectPrompt] = Field(min_length=1, max_length=256)
    first: Index = Field(0, description="first slice to fill")
    last: Index | None = Field(None, description="last slice to fill, inclusive; null for the end")


class SessionOpened(BaseModel):
    """A new session; its id is the only way to what it holds."""

    session: str
    idle_seconds: float = Field(description="the session is closed after so long without a request")


class VolumeKept(BaseModel):
    """A volume that the session holds."""

    volume: str
    shape: list[int]
    dtype: str


class ObjectMask(BaseModel):
    """One object's answer on one slice."""

    object: int
    iou: float = Field(description="the model's own estimate")
    mask: str = Field(description="base64 of zlib of numpy.packbits of the (H, W) mask, row by row")


class Masks(BaseModel):
    """All objects of one slice."""

    height: int
    width: int
    masks: list[ObjectMask]


class JobState(BaseModel):
    """Where a propagation stands."""

    job: str
    status: str = Field(description="queued, running, done, failed or cancelled")
    progress: float = Field(description="0 to 1")
    message: str = Field(description="why it failed, in one sentence")


class Models(BaseModel):
    """The checkpoints to choose from, by name."""

    models: list[str]
    default: str


class Health(BaseModel):
    """That the server lives, and how busy it is."""

    status: str
    version: str
    sessions: int
    jobs: int
    stored_mib: int


class Problem(BaseModel):
    """What went wrong, in one sentence."""

    detail: str


def encode_mask(mask: NDArray[np.bool_]) -> str:
    """(H, W) bool to base64 of zlib of its bits."""
    return base64.b64encode(zlib.compress(np.packbits(mask).tobytes(), 1)).decode("ascii")


def decode_mask(text: str, height: int, width: int) -> NDArray[np.bool_]:
    """The inverse of `encode_mask`.

    Raises:
        Refusal: 422, not such an encoding of height x width bits.
    """
    num_bytes = (height * width + 7) // 8
    try:
        packed = base64.b64decode(text.encode("ascii"), validate=True)
        plain = zlib.decompressobj().decompress(packed, num_bytes + 1)
    except (binascii.Error, UnicodeEncodeError, zlib.error):
        raise Refusal(422, "A mask is not base64 of zlib-compressed bits.") from None
    if len(plain) != num_bytes:
        raise Refusal(422, f"A mask does not hold {height} x {width} bits.")
    bits: NDArray[Any] = np.unpackbits(np.frombuffer(plain, np.uint8), count=height * width)
    return bits.reshape(height, width).astype(np.bool_)
