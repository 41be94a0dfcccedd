"""What rank 0 and another rank say to each other before the first step: msgpack frames.

From then on every frame to a rank is a batch (hal.engine.batch_codec), and one from it is its end.
"""

from __future__ import annotations

import socket

import msgspec

from hal.config import EngineConfig
from hal.server.messages import HEADER, ErrorRecord, decode_path, encode_path


class StartRank(msgspec.Struct, tag=True, frozen=True):
    """First message to a rank.

    config: rank 0's, with the model's folder and the device it chose, and the threads of one rank
    meeting: the name of the collective's meeting point, where it has one
    """

    config: EngineConfig
    rank: int
    size: int
    collective: str
    meeting: str


class Load(msgspec.Struct, tag=True, frozen=True):
    """Allocate so many KV blocks and load the rank's part of the weights."""

    num_blocks: int


class Connected(msgspec.Struct, tag=True, frozen=True):
    """The rank has read its config and met the others."""


class Loaded(msgspec.Struct, tag=True, frozen=True):
    """Ready for steps. Bytes read from the checkpoint, and bytes its weights take."""

    read_bytes: int
    weights_bytes: int


class Ended(msgspec.Struct, tag=True, frozen=True):
    """The rank cannot go on."""

    error: ErrorRecord


ToRank = StartRank | Load
FromRank = Connected | Loaded | Ended


_encoder = msgspec.msgpack.Encoder(enc_hook=encode_path)
_to_rank = msgspec.msgpack.Decoder(ToRank, dec_hook=decode_path)
_from_rank = msgspec.msgpack.Decoder(FromRank)


def send(connection: socket.socket, message: ToRank | FromRank) -> None:
    """Raises OSError where the other side is gone or does not read."""
    send_bytes(connection, _encoder.encode(message))


def send_bytes(connection: socket.socket, payload: bytes) -> None:
    """One frame; raises as `send`."""
    connection.sendall(HEADER.pack(len(payload)) + payload)


def decode_to_rank(payload: bytes) -> ToRank:
    message: ToRank = _to_rank.decode(payload)
    return message


def decode_from_rank(payload: bytes) -> FromRank:
    message: FromRank = _from_rank.decode(payload)
    return message
