"""Runs PTX, NVIDIA's assembly for GPUs, with numpy: the threads of a kernel are the elements of arrays.

As much of PTX as nvcc makes of native/device. Whatever it does not know is an error, never a guess. It is stricter than a GPU. An
address that is no multiple of the size, or outside the memory that was handed in, is an error. Two threads that write the same bytes
are one, unless the block has synchronised between them. A NaN that is computed has the sign and payload of no operand; registers that
nothing was written to hold noise. Threads go in units, one unit after the other in a random order, each up to where it has to wait for
others: what is correct by the luck of an order is not correct here.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

THREADS = 256  # of a block
PARAMETERS = 1 << 40  # where a kernel's parameters lie, in an address space of their own
TYPES = {f"{kind}{8 * size}": f"{code}{size}" for kind, code in (("u", "u"), ("b", "u"), ("s", "i")) for size in (1, 2, 4, 8)}
TYPES |= {"f16": "f2", "f32": "f4", "f64": "f8", "pred": "?"}
REGISTERS = {"%p": "?", "%rs": "u2", "%r": "u4", "%rd": "u8", "%f": "u4", "%fd": "u8"}
NAN = {"f2": 0x7FFF, "f4": 0x7FFFFFFF, "f8": 0x7FFFFFFFFFFFFFFF}


class PtxError(Exception):
    """What is wrong with a kernel, or with what it was given."""


@dataclass(frozen=True)
class Instruction:
    text: str
    guard: tuple[str, bool] | None  # a predicate register, and what it has to be
    name: list[str]  # parts of the operation, between dots
    operands: list[str]


class Kernel:
    """One kernel of a PTX module, parsed."""

    def __init__(self, module: str, name: str) -> None:
        found = re.search(rf"\.entry {name}\((.*?)\)\s*(?:\.\w+[^{{}}\n]*\n)*\{{(.*?)\n\}}", module, re.DOTALL)
        if found is None:
            raise PtxError(f"no kernel {name}")
        self.name = name
        size = re.search(r"\[(\d+)\]", found[1])
        self.parameter_bytes = int(size[1]) if size else 0
        self.text = found[2]
        self.instructions: list[Instruction] = []
        self.labels: dict[str, int] = {}
        for line in re.split(r"[;\n]", re.sub(r"//[^\n]*", "", self.text)):
            self._parse(line.strip())

    def _parse(self, line: str) -> None:
        if not line or line in "{}" or line.startswith((".reg", ".pragma")):
            return
        if re.fullmatch(r"\$?\w+:", line):
            self.labels[line[:-1]] = len(self.instructions)
            return
        found = re.fullmatch(r"(?:@(!?)(%p\d+)\s+)?([a-z][\w.:]*)(?:\s+(.*))?", line)
        if found is None:
            raise PtxError(f"{self.name}: not understood: {line}")
        guard = (found[2], not found[1]) if found[2] else None
        operands = re.findall(r"\{[^}]*\}|\[[^]]*\]|[^,\s]+", found[4] or "")
        self.instructions.append(Instruction(line, guard, found[3].split("."), operands))


class Memory:
    """Arrays of the host that a kernel may read and write, at their own addresses."""

    def __init__(self, *arrays: Array) -> None:
        ranges = sorted((int(array.ctypes.data), array.nbytes) for array in arrays if array.nbytes)
        self.begin = np.array([begin for begin, _ in ranges], np.uint64)
        self.end = np.array([begin + size for begin, size in ranges], np.uint64)
        self.bytes = {begin: self._whole(array) for array in arrays if array.nbytes for begin in (int(array.ctypes.data),)}
        self.stores = 0  # so far
        self.when = {begin: np.zeros(len(whole), np.int64) for begin, whole in self.bytes.items()}  # the last one of each byte

    @staticmethod
    def _whole(array: Array) -> Array:
        if not array.flags.c_contiguous:
            raise PtxError("memory with gaps")
        return array.reshape(-1).view(np.uint8)

    def last_store(self, array: Array) -> int:
        """A number for the time at which one of its bytes was written last; 0: never."""
        return int(self.when[int(array.ctypes.data)].max())

    def parts(self, addresses: Array, size: int, text: str) -> list[tuple[Array, Array, Array]]:
        """For each array that is accessed: which of the addresses, the array's bytes, and where in it. Raises PtxError."""
        if (addresses % np.uint64(size)).any():
            raise PtxError(f"{text}: misaligned: {int(addresses[addresses % np.uint64(size) != 0][0]):#x}")
        which = np.searchsorted(self.begin, addresses, side="right") - 1
        if not len(self.begin) or (which < 0).any() or (addresses + np.uint64(size) > self.end[which]).any():
            raise PtxError(f"{text}: outside the memory of the kernel")
        found = []
        for each in np.unique(which):
            chosen = np.flatnonzero(which == each)
            offsets = (addresses[chosen] - self.begin[each]).astype(np.int64)
            found.append((chosen, self.bytes[int(self.begin[each])], offsets))
        return found


def computed(name: str, left: Array, right: Array) -> Array:
    """Additions and divisions of floats, with a GPU's NaN."""
    done = np.asarray(left + right if name == "add" else left / right)
    done.view(f"u{done.itemsize}")[np.isnan(done)] = NAN[done.dtype.str[1:]]
    return done


COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
}  # fmt: skip
LOGIC = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}


class Run:
    """One launch."""

    def __init__(
        self, kernel: Kernel, parameters: bytes, blocks: int, memory: Memory, unit: int, rng: np.random.Generator
    ) -> None:
        self.kernel, self.memory, self.rng = kernel, memory, rng
        if len(parameters) != kernel.parameter_bytes:
            raise PtxError(f"{kernel.name}: {len(parameters)} bytes of parameters: must be {kernel.parameter_bytes}")
        self.parameters = np.frombuffer(parameters + bytes(-len(parameters) % 16), np.uint8)
        threads = self.threads = blocks * THREADS
        number = np.arange(threads, dtype=np.uint32)
        self.special = {
            "%tid.x": number % np.uint32(THREADS),
            "%ctaid.x": number // np.uint32(THREADS),
            "%ntid.x": np.full(threads, THREADS, np.uint32),
            "%nctaid.x": np.full(threads, blocks, np.uint32),
        }
        self.registers: dict[str, Array] = {}
        self.at = np.zeros(threads, np.int64)
        self.waiting = np.zeros(threads, bool)
        self.units = np.split(np.arange(threads), range(unit, threads, unit))
        self.starts = set(kernel.labels.values())
        self.steps = 0
        self.epoch = np.zeros(blocks, np.int64)  # barriers that each block has passed
        self.writers: dict[int, tuple[Array, Array]] = {}  # by array: who wrote each byte last, and in which epoch

    def go(self) -> None:
        """To the end of all threads. Raises PtxError."""
        end = len(self.kernel.instructions)
        with np.errstate(all="ignore"):
            while (self.at < end).any():
                for number in self.rng.permutation(len(self.units)):
                    self._run_unit(self.units[number], end)
                for block in range(self.threads // THREADS):  # those whose live threads have all come
                    own = slice(block * THREADS, (block + 1) * THREADS)
                    self.epoch[block] += bool(self.waiting[own].any())
                    self.waiting[own] = False

    def _run_unit(self, unit: Array, end: int) -> None:
        while True:
            able = unit[(self.at[unit] < end) & ~self.waiting[unit]]
            if not able.size:
                return
            at = int(self.at[able].min())
            self._run_from(at, able[self.at[able] == at], end)

    def _run_from(self, at: int, who: Array, end: int) -> None:
        """Up to where these threads part, wait, end, or may meet others."""
        while True:
            self.steps += 1
            if self.steps > 200_000:
                raise PtxError(f"{self.kernel.name}: no end")
            instruction = self.kernel.instructions[at]
            some = who
            if instruction.guard is not None:
                some = who[self.registers[instruction.guard[0]][who] == instruction.guard[1]]
            at += 1
            name = instruction.name[0]
            if name == "bra":
                self.at[who] = at
                self.at[some] = self.kernel.labels[instruction.operands[0]]
                return
            if name in ("ret", "bar"):
                self.at[who] = at
                self.at[some] = end if name == "ret" else at
                self.waiting[some] = name == "bar"
                return
            if some.size:
                try:
                    self._execute(instruction, some)
                except (KeyError, ValueError, TypeError) as error:
                    raise PtxError(f"{self.kernel.name}: unknown: {instruction.text}: {error!r}") from error
            if at in self.starts or at == end:
                self.at[who] = at
                return

    # --- Operands -----------------------------------------------------------------------------------

    def _register(self, name: str) -> Array:
        if name in self.special:
            return self.special[name]
        if name not in self.registers:  # what nobody has set may be anything
            kind = np.dtype(REGISTERS[name.rstrip("0123456789")])
            noise = np.frombuffer(self.rng.bytes(self.threads * kind.itemsize), f"u{kind.itemsize}")
            self.registers[name] = noise % 2 == 1 if kind.kind == "b" else noise.copy()
        return self.registers[name]

    def _read(self, operand: str, kind: str, who: Array) -> Array:
        """An operand's values, of a numpy type."""
        if operand.startswith("%"):
            values = self._register(operand)[who]
            if kind != "?" and values.itemsize != np.dtype(kind).itemsize:
                values = values.astype(f"u{np.dtype(kind).itemsize}")
            return np.asarray(values.view(kind))
        if operand.startswith(self.kernel.name):
            return np.full(len(who), PARAMETERS, kind)
        if re.fullmatch(r"0[fFdD][0-9A-Fa-f]+", operand):
            return np.full(len(who), int(operand[2:], 16), f"u{len(operand) // 2 - 1}").view(kind)
        number = int(operand.removesuffix("U"), 0) if operand not in ("true", "false") else operand == "true"
        size = np.dtype(kind).itemsize
        return np.full(len(who), number if kind == "?" else number % (1 << 8 * size), "?" if kind == "?" else f"u{size}").view(
            kind
        )

    def _write(self, name: str, values: Array, who: Array) -> None:
        register = self._register(name)
        if values.dtype.kind == "f":
            values = values.view(f"u{values.itemsize}")
        register[who] = values.astype(register.dtype)  # a narrower signed one is extended by its sign

    def _addresses(self, operand: str, who: Array) -> Array:
        found = re.fullmatch(r"\[([%$\w]+)(?:\+(-?\d+))?\]", operand)
        if found is None:
            raise PtxError(f"address {operand}")
        return np.asarray(self._read(found[1], "u8", who) + np.uint64(int(found[2] or 0) % (1 << 64)))

    # --- Operations ---------------------------------------------------------------------------------

    def _execute(self, instruction: Instruction, who: Array) -> None:
        name, operands = instruction.name, instruction.operands
        if name[0] in ("ld", "st"):
            return self._move(instruction, who)
        if name[0] == "atom":
            return self._atomic(instruction, who)
        if name[0] in ("membar", "fence"):
            return None
        if name[0] == "setp":
            return self._compare(instruction, who)
        if name[0] == "cvt":
            return self._convert(instruction, who)
        kind = TYPES[name[-1]]
        if name[0] == "mov" and "{" in instruction.text:
            return self._repack(instruction, kind, who)
        values = [self._read(operand, kind, who) for operand in operands[1:3]]
        if name[0] in ("mov", "cvta"):
            result = values[0]
        elif name[0] == "selp":
            result = np.where(self._read(operands[3], "?", who), *values)
        elif kind[0] == "f":
            if name[0] not in ("add", "div") or name[1:-1] != ["rn"]:
                raise KeyError(instruction.text)
            result = computed(name[0], values[0], values[1])
        else:
            result = self._integers(instruction, kind, values, who)
        return self._write(operands[0], result, who)

    def _repack(self, instruction: Instruction, kind: str, who: Array) -> None:
        """A register from several, the lowest bits first, or the reverse."""
        to, source = ([*re.findall(r"[^{},\s]+", operand)] for operand in instruction.operands)
        small = f"u{np.dtype(kind).itemsize // max(len(to), len(source))}"
        if len(to) == 1:
            columns = np.stack([self._read(register, small, who) for register in source], 1)
            return self._write(to[0], columns.view(kind)[:, 0], who)
        columns = self._read(source[0], kind, who)[:, None].view(small)
        for register, column in zip(to, columns.T, strict=True):
            self._write(register, column, who)
        return None

    def _integers(self, instruction: Instruction, kind: str, values: list[Array], who: Array) -> Array:
        name, operands = instruction.name, instruction.operands
        if name[0] in LOGIC:
            return np.asarray(LOGIC[name[0]](*values))
        if name[0] in ("not", "neg"):
            return np.asarray(~values[0] if name[0] == "not" else -values[0])
        if name[0] in ("min", "max"):
            return np.asarray((np.minimum if name[0] == "min" else np.maximum)(*values))
        if name[0] in ("shl", "shr"):
            width = 8 * values[0].itemsize
            by = self._read(operands[2], "u4", who)
            inside = np.minimum(by, width - 1).astype(kind)
            moved = values[0] << inside if name[0] == "shl" else values[0] >> inside
            return np.asarray(np.where((by >= width) & ((name[0] == "shl") | (values[0] >= 0)), moved * 0, moved))
        if name[0] in ("mul", "mad") and name[1] in ("wide", "lo"):
            wide = kind if name[1] == "lo" else f"{kind[0]}{2 * int(kind[1])}"
            product = np.asarray(values[0].astype(wide) * values[1].astype(wide))
            return product + self._read(operands[3], wide, who) if name[0] == "mad" else product
        if name[0] == "prmt" and len(name) == 2:
            both = np.stack([values[i] >> np.uint32(8 * k) & np.uint32(255) for i in (0, 1) for k in range(4)])
            how = self._read(operands[3], "u4", who)
            if (how & np.uint32(0x8888)).any():
                raise KeyError(instruction.text)
            chosen = [both[how >> np.uint32(4 * k) & np.uint32(7), np.arange(len(who))] << np.uint32(8 * k) for k in range(4)]
            return np.asarray(np.bitwise_or.reduce(chosen))
        return np.asarray({"add": operator.add, "sub": operator.sub}[name[0]](*values))

    def _compare(self, instruction: Instruction, who: Array) -> None:
        name, operands = instruction.name, instruction.operands
        left, right = (self._read(operand, TYPES[name[-1]], who) for operand in operands[1:3])
        unordered = left.dtype.kind == "f" and (np.isnan(left) | np.isnan(right))
        if name[1] in ("num", "nan"):
            result = unordered == (name[1] == "nan")
        elif left.dtype.kind == "f" and name[1] in ("equ", "neu", "ltu", "leu", "gtu", "geu"):
            result = (left != right if name[1] == "neu" else COMPARISONS[name[1][:2]](left, right)) | unordered
        elif name[1] == "ne":
            result = (left != right) & ~np.asarray(unordered)
        else:
            result = COMPARISONS[name[1]](left, right)
        if name[2] in LOGIC:
            result = LOGIC[name[2]](result, self._read(operands[3], "?", who))
        self._write(operands[0], np.asarray(result), who)

    def _convert(self, instruction: Instruction, who: Array) -> None:
        name, operands = instruction.name, instruction.operands
        to, source = TYPES[name[-2]], TYPES[name[-1]]
        narrower = to[0] == "f" and (source[0] != "f" or int(to[1]) < int(source[1]))
        if name[1:-2] != (["rn"] if narrower else []) or (source[0] == "f") > (to[0] == "f"):
            raise KeyError(instruction.text)
        values = self._read(operands[1], source, who)
        result = values.astype(to)
        if to[0] == "f" and source[0] == "f":
            result.view(f"u{result.itemsize}")[np.isnan(result)] = NAN[to]
        self._write(operands[0], result, who)

    # --- Memory -------------------------------------------------------------------------------------

    def _move(self, instruction: Instruction, who: Array) -> None:
        name, operands = instruction.name, instruction.operands
        kind = TYPES[name[-1]]
        store = name[0] == "st"
        registers = re.findall(r"[^{},\s]+", operands[1 if store else 0])
        size = np.dtype(kind).itemsize
        addresses = self._addresses(operands[0 if store else 1], who)
        columns = [self._read(register, kind, who) for register in registers] if store else []
        if name[1] == "param" and not store:
            offsets = (addresses - np.uint64(PARAMETERS)).astype(np.int64)
            rows = self.parameters[offsets[:, None] + np.arange(size * len(registers))].view(kind)
        elif name[1] == "global":
            rows = np.stack(columns, 1) if store else np.empty((len(who), len(registers)), kind)
            self._access(instruction, addresses, rows, who, store)
        else:
            raise KeyError(instruction.text)
        if not store:
            for register, column in zip(registers, rows.T, strict=True):
                self._write(register, np.ascontiguousarray(column), who)

    def _access(self, instruction: Instruction, addresses: Array, rows: Array, who: Array, store: bool) -> None:
        size = rows.shape[1] * rows.itemsize
        for chosen, memory, offsets in self.memory.parts(addresses, size, f"{self.kernel.name}: {instruction.text}"):
            where = offsets[:, None] + np.arange(size)
            if store:
                self._claim(memory, where, who[chosen], instruction)
                memory[where] = np.ascontiguousarray(rows[chosen]).view(np.uint8)
            else:
                rows[chosen] = memory[where].view(rows.dtype)

    def _claim(self, memory: Array, where: Array, who: Array, instruction: Instruction) -> None:
        """Two threads that write the same bytes without a barrier between them do so in any order."""
        key = int(memory.ctypes.data)
        if key not in self.writers:
            self.writers[key] = np.full(len(memory), -1), np.zeros(len(memory), np.int64)
        writer, epoch = self.writers[key]
        now = self.epoch[who // THREADS][:, None]
        others = (writer[where] >= 0) & (writer[where] != who[:, None])
        apart = (writer[where] // THREADS == who[:, None] // THREADS) & (epoch[where] < now)
        writer[where] = who[:, None]
        if (others & ~apart).any() or (writer[where] != who[:, None]).any():
            raise PtxError(f"{self.kernel.name}: {instruction.text}: two threads write the same bytes")
        epoch[where] = now
        self.memory.stores += 1
        self.memory.when[key][where] = self.memory.stores

    def _atomic(self, instruction: Instruction, who: Array) -> None:
        if instruction.name[1:] != ["global", "add", "u32"]:
            raise KeyError(instruction.text)
        addresses = self._addresses(instruction.operands[1], who)
        values = self._read(instruction.operands[2], "u4", who)
        before = np.empty(len(who), np.uint32)
        for number, (address, value) in enumerate(zip(addresses, values, strict=True)):
            ((_, memory, offsets),) = self.memory.parts(address[None], 4, instruction.text)
            word = memory[offsets[0] : offsets[0] + 4].view(np.uint32)
            before[number] = word[0]
            word[0] += value
        self._write(instruction.operands[0], before, who)


def launch(kernel: Kernel, parameters: bytes, blocks: int, memory: Memory, seed: int, unit: int = THREADS) -> None:
    """Runs a kernel: `parameters` as its one argument lies in memory; `unit`: how many threads go together. Raises PtxError."""
    Run(kernel, parameters, blocks, memory, unit, np.random.default_rng(seed)).go()
