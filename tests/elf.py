"""What the test of the CUDA module reads of a shared library: sections, names, and which GPUs its machine code is for."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

FATBINARY = 0xBA55ED50  # begins each of nvcc's containers, in section .nv_fatbin
NEEDED, PTX, MACHINE_CODE = 1, 1, 2


@dataclass(frozen=True)
class Library:
    """An ELF file of 64 bits, little endian, as x86 and ARM have them."""

    sections: dict[str, bytes]

    @classmethod
    def read(cls, path: Path) -> Library:
        data = path.read_bytes()
        assert data[:6] == b"\x7fELF\x02\x01"
        (table,) = struct.unpack_from("<Q", data, 40)
        size, count, names = struct.unpack_from("<HHH", data, 58)
        headers = [struct.unpack_from("<IIQQQQ", data, table + index * size) for index in range(count)]
        bodies = [data[offset : offset + length] for _, _, _, _, offset, length in headers]
        return cls({text_at(bodies[names], header[0]): body for header, body in zip(headers, bodies, strict=True)})

    def needed(self) -> list[str]:
        """The libraries that the loader looks for."""
        names = self.sections[".dynstr"]
        return [text_at(names, value) for tag, value in struct.iter_unpack("<qQ", self.sections[".dynamic"]) if tag == NEEDED]

    def dynamic_symbols(self) -> list[str]:
        """Names that the loader resolves or offers."""
        names = self.sections[".dynstr"]
        return [text_at(names, name) for name, *_ in struct.iter_unpack("<IBBHQQ", self.sections[".dynsym"])]

    def gpu_codes(self) -> set[str]:
        """What its kernels were compiled for, in nvcc's words: sm_80, compute_90."""
        data, found, at = self.sections.get(".nv_fatbin", b""), set(), 0
        while at + 16 <= len(data):
            magic, _, header, length = struct.unpack_from("<IHHQ", data, at)
            if magic != FATBINARY:
                at += 8  # containers are aligned
                continue
            at, end = at + header, at + header + length
            while at < end:
                kind, _, entry, size = struct.unpack_from("<HHIQ", data, at)
                (number,) = struct.unpack_from("<I", data, at + 28)
                found.add(f"{ {PTX: 'compute', MACHINE_CODE: 'sm'}[kind] }_{number}".replace(" ", ""))
                at += entry + size
        return found


def text_at(table: bytes, offset: int) -> str:
    return table[offset : table.index(b"\0", offset)].decode()
