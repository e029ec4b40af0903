"""Reads what W&B wrote offline, in its own file format."""

import struct


def records(path):
    """Every record of a file of 32 KiB blocks of checksum, length, type and data, up to where it is written so far."""
    from wandb.proto import wandb_internal_pb2

    data, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        room = 32768 - position % 32768
        if room < 7:
            position += room
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        end = position + 7 + length
        if (length == 0 and kind == 0) or end > len(data):  # W&B writes blocks, which can end within a record
            return
        parts += data[position + 7 : end]
        position = end
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record
