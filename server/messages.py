"""What the front and the engine process say to each other: msgpack frames, never pickle.

A frame is a 4-byte little-endian length and one message. Requests and outputs are the engine's
own dataclasses; decoding a Request runs the checks of SamplingParams again, in the engine process.
"""

from __future__ import annotations

import socket
import struct
from pathlib import Path

import msgspec

from hal import errors
from hal.config import EngineConfig
from hal.engine.request import EngineStats, Output, Request

HEADER = struct.Struct("<I")
MAX_FRAME_BYTES = 256 * 2**20


class Start(msgspec.Struct, tag=True, frozen=True):
    """First message: what to build. `fake_script` replaces the engine by a scripted one."""

    config: EngineConfig
    fake_script: str | None = None


class Add(msgspec.Struct, tag=True, frozen=True):
    request: Request


class Abort(msgspec.Struct, tag=True, frozen=True):
    """End a request, or one choice of it that has had a token; unknown ids are ignored."""

    request_id: str
    index: int | None = None


class Pin(msgspec.Struct, tag=True, frozen=True):
    """Keep the cached prefix of a tenant under a name; Pinned or Rejected follows."""

    name: str
    token_ids: list[int]
    tenant: str


class Unpin(msgspec.Struct, tag=True, frozen=True):
    name: str


ToEngine = Start | Add | Abort | Pin | Unpin


class ErrorRecord(msgspec.Struct, frozen=True):
    """An error of hal/errors.py on its way between processes.

    rows: of a SelectionError, every candidate with its reason
    """

    kind: str
    code: str
    message: str
    param: str | None = None
    rows: tuple[str, ...] = ()

    @classmethod
    def of(cls, error: errors.HalError) -> ErrorRecord:
        param = error.param if isinstance(error, errors.RequestError) else None
        rows = error.rows if isinstance(error, errors.SelectionError) else ()
        return cls(type(error).__name__, error.code, error.message, param, rows)

    def to_error(self) -> errors.HalError:
        kind = getattr(errors, self.kind, errors.EngineError)
        if not (isinstance(kind, type) and issubclass(kind, errors.HalError)):
            kind = errors.EngineError
        if issubclass(kind, errors.RequestError):
            return kind(self.message, param=self.param, code=self.code)
        if issubclass(kind, errors.SelectionError):
            return kind(self.message, rows=self.rows, code=self.code)
        return kind(self.message, code=self.code)


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What the front tells users about a started engine.

    weights: where they came from, in words.
    site_levels: how many sites run native, upcast and reference kernels.
    explain_json: device, choices, memory and kernels with their reasons, an object ready to serve.
    """

    architecture: str
    device: str
    device_reason: str
    dtype: str
    vocab_size: int
    hidden_size: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    num_blocks: int
    plan_text: str
    weights: str
    site_levels: dict[str, int]
    explain_json: bytes

    def memory_parts(self) -> dict[str, int]:
        """Bytes of each part of the memory plan, as "kv"; {} where nothing was planned."""
        ledger = msgspec.json.decode(self.explain_json, type=_Explained).memory
        found = {part: ledger.get(f"{part}_bytes") for part in _MEMORY_PARTS}
        return {part: size for part, size in found.items() if isinstance(size, int)}


_MEMORY_PARTS = "weights kv activation logits graphs communicator others unused".split()


class _Explained(msgspec.Struct, frozen=True):
    memory: dict[str, object]


class Ready(msgspec.Struct, tag=True, frozen=True):
    info: EngineInfo


class Failed(msgspec.Struct, tag=True, frozen=True):
    """Last message: the engine cannot start or go on."""

    error: ErrorRecord


class Admitted(msgspec.Struct, tag=True, frozen=True):
    request_id: str


class Rejected(msgspec.Struct, tag=True, frozen=True):
    """request_id: or the name of a pin"""

    request_id: str
    error: ErrorRecord


class Pinned(msgspec.Struct, tag=True, frozen=True):
    """Tokens that a pin keeps from now on; 0: it was unpinned."""

    name: str
    num_tokens: int


class Outputs(msgspec.Struct, tag=True, frozen=True):
    """Everything one step produced, or nothing but fresh stats when the engine falls idle."""

    outputs: list[Output]
    stats: EngineStats


class Heartbeat(msgspec.Struct, tag=True, frozen=True):
    """Sent every HEARTBEAT_INTERVAL_S by a thread of its own, also while loading."""

    num_steps: int
    is_busy: bool


FromEngine = Ready | Failed | Admitted | Rejected | Pinned | Outputs | Heartbeat

HEARTBEAT_INTERVAL_S = 0.5


def encode_path(value: object) -> object:
    """A hook of msgspec: paths as text. NotImplementedError is what it expects for the rest."""
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} cannot be sent")


def decode_path(kind: type, value: object) -> object:
    """The way back of encode_path."""
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise NotImplementedError(f"{kind.__name__} cannot be received")


_encoder = msgspec.msgpack.Encoder(enc_hook=encode_path)
_to_engine = msgspec.msgpack.Decoder(ToEngine, dec_hook=decode_path)
_from_engine = msgspec.msgpack.Decoder(FromEngine, dec_hook=decode_path)


def encode_frame(message: ToEngine | FromEngine) -> bytes:
    payload = _encoder.encode(message)
    if len(payload) > MAX_FRAME_BYTES:
        raise errors.RequestError(
            f"a message of {len(payload)} bytes is above the limit of {MAX_FRAME_BYTES}"
        )
    return HEADER.pack(len(payload)) + payload


def decode_to_engine(payload: bytes) -> ToEngine:
    message: ToEngine = _to_engine.decode(payload)
    return message


def decode_from_engine(payload: bytes) -> FromEngine:
    message: FromEngine = _from_engine.decode(payload)
    return message


class _OnlyId(msgspec.Struct):
    request_id: str


class _AnyAdd(msgspec.Struct, tag="Add"):
    request: _OnlyId


_any_add = msgspec.msgpack.Decoder(_AnyAdd)


def request_id_of(payload: bytes) -> str:
    """The id in an Add whose request did not pass its own checks."""
    return _any_add.decode(payload).request.request_id


def receive_frame(connection: socket.socket) -> bytes | None:
    """The payload of the next frame, or None when the other side has closed."""
    header = _receive_exactly(connection, HEADER.size)
    if header is None:
        return None
    (length,) = HEADER.unpack(header)
    assert length <= MAX_FRAME_BYTES, f"frame of {length} bytes"
    return _receive_exactly(connection, length)


def _receive_exactly(connection: socket.socket, num_bytes: int) -> bytes | None:
    chunks = bytearray()
    while len(chunks) < num_bytes:
        chunk = connection.recv(min(num_bytes - len(chunks), 2**20))
        if not chunk:
            return None
        chunks += chunk
    return bytes(chunks)
