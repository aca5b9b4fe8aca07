"""Pure: classic BPF programs for a packet socket. Assembling; and what comes first in them: interfaces, user's filter.

A socket's program returns how many bytes of a packet are kept; 0: it is not accepted. It sees a packet of one interface
(link type Ethernet) from its Ethernet header on, and one of `any` from its network header on: the SLL2 header that is
in the file is made by libpcap later. Loads beyond the packet's end end the program with 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from capture.libpcap import LINUX_SLL2, MOST_SNAPLEN, Instruction

MOST_INSTRUCTIONS: Final = 4096
"""BPF_MAXINSNS: the kernel takes no more."""
SLL2_BYTES: Final = 20
WHOLE: Final = MOST_SNAPLEN

# linux/bpf_common.h
LD_WORD, LD_HALF, LD_LENGTH = 0x20, 0x28, 0x80
"""From a constant offset (the three); the packet's length."""
LD_WORD_X, LD_HALF_X, LD_BYTE_X = 0x40, 0x48, 0x50
"""From offset X + constant."""
LD_IMM, LD_MEM, LDX_IMM, LDX_MEM, ST, STX, TAX, TXA = 0x00, 0x60, 0x01, 0x61, 0x02, 0x03, 0x07, 0x87
ADD, AND, LSH, RSH, ADD_X, SUB_X, LSH_X = 0x04, 0x54, 0x64, 0x74, 0x0C, 0x1C, 0x6C
JA, JEQ, JGT, JGE, JSET, JGE_X = 0x05, 0x15, 0x25, 0x35, 0x45, 0x3D
RET, RET_A = 0x06, 0x16
_CLASS, _MODE, _ABSOLUTE, _INDIRECT, _MSH = 0x07, 0xE0, 0x20, 0x40, 0xA0
_LOADS, _JUMP, _RETURN = (0, 1), 5, 6

# linux/filter.h: offsets from which the kernel reads what is in no packet.
AD_PROTOCOL, AD_PACKET_TYPE, AD_INTERFACE, AD_HARDWARE = 0xFFFFF000, 0xFFFFF004, 0xFFFFF008, 0xFFFFF01C
OUTGOING: Final = 4
_SLL2_FIELDS: Final = {0: AD_PROTOCOL, 4: AD_INTERFACE, 8: AD_HARDWARE, 10: AD_PACKET_TYPE}
_FAR: Final = 255


class FilterError(ValueError):
    """The filter can't be applied where the packets are; the message tells why."""


@dataclass
class _Step:
    code: int
    k: int = 0
    yes: str = ""
    no: str = ""
    """Labels of a jump; '' goes on with the next step."""
    is_jump: bool = False


@dataclass
class Assembly:
    """A program under construction: steps, and labels that jumps go to. Jumps go forward only."""

    _steps: list[_Step] = field(default_factory=list)
    _labels: dict[str, int] = field(default_factory=dict)

    def add(self, code: int, k: int = 0) -> None:
        """An instruction that does not jump."""
        self._steps.append(_Step(code, k))

    def jump(self, code: int, k: int, yes: str = "", no: str = "") -> None:
        """A test of A (JEQ, JGT, JGE, JSET): go to `yes` if it holds, to `no` if not; '' is the next step."""
        self._steps.append(_Step(code, k, yes, no, is_jump=True))

    def go(self, label: str) -> None:
        """Go to a label in any case."""
        self._steps.append(_Step(JA, 0, label, is_jump=True))

    def label(self, name: str) -> None:
        """The next step's name."""
        if name in self._labels:
            raise ValueError(f"label {name} is there twice")
        self._labels[name] = len(self._steps)

    def assemble(self) -> list[Instruction]:
        """FilterError where it is longer than the kernel takes.

        A test can jump over 255 instructions. Farther targets are reached through a jump: one that is near already, or
        one that is put behind the test. So it is done from the end, where what is near is known.
        """
        backwards: list[Instruction] = []
        to_end = [0] * (len(self._steps) + 1)
        """Instructions from a step to the end."""
        relays: dict[int, int] = {}
        """The nearest jump to a step, as instructions from it to the end."""
        for index in reversed(range(len(self._steps))):
            step = self._steps[index]
            if not step.is_jump:
                emitted = [Instruction(step.code, 0, 0, step.k)]
            elif step.code == JA:
                emitted = [Instruction(JA, 0, 0, to_end[index + 1] - to_end[self._labels[step.yes]])]
            else:
                targets = [self._labels[label] if label else index + 1 for label in (step.yes, step.no)]
                emitted = _test(step, targets, to_end, to_end[index + 1], relays)
            backwards += reversed(emitted)
            to_end[index] = to_end[index + 1] + len(emitted)
        if len(backwards) > MOST_INSTRUCTIONS:
            raise FilterError(f"{len(backwards)} instructions, and the kernel takes {MOST_INSTRUCTIONS} at most")
        return backwards[::-1]


def _test(
    step: _Step, targets: Sequence[int], to_end: Sequence[int], behind: int, relays: dict[int, int]
) -> list[Instruction]:
    """A test, and the jumps that it needs. `behind`: instructions that follow both."""
    places = {}
    far = []
    for target in dict.fromkeys(targets):
        places[target] = to_end[target]
        if behind + 2 - places[target] > _FAR:
            places[target] = relays.get(target, -1)
            if places[target] < 0 or behind + 2 - places[target] > _FAR:
                far.append(target)
    for number, target in enumerate(far):
        relays[target] = places[target] = behind + len(far) - number
    yes, no = (behind + len(far) - places[target] for target in targets)
    jumps = [Instruction(JA, 0, 0, places[target] - 1 - to_end[target]) for target in far]
    return [Instruction(step.code, yes, no, step.k), *jumps]


def add_interfaces(assembly: Assembly, loopback: int | None, only: Sequence[int] | None) -> None:
    """Not the loopback's packets a second time, as they go out; only interfaces with these indices, unless None."""
    if loopback is not None:
        assembly.add(LD_WORD, AD_PACKET_TYPE)
        assembly.jump(JEQ, OUTGOING, no="not sent to itself")
        assembly.add(LD_WORD, AD_INTERFACE)
        assembly.jump(JEQ, loopback, yes="rejected")
        assembly.label("not sent to itself")
    if only is not None:
        assembly.add(LD_WORD, AD_INTERFACE)
        for index in only:
            assembly.jump(JEQ, index, yes="interface")
        assembly.go("rejected")
        assembly.label("interface")


def add_filter(assembly: Assembly, program: Sequence[Instruction], link_type: int) -> None:
    """What libpcap compiled for files of `link_type`, for the packets as the kernel has them. Goes on with the next
    step if it accepts. FilterError where it reads what the kernel does not have."""
    for index, instruction in enumerate(program):
        assembly.label(f"filter {index}")
        code, jt, jf, k = instruction
        if code & _CLASS == _RETURN:
            if code != RET:
                raise FilterError("this filter computes what it returns")
            assembly.go("filtered" if k else "rejected")
        elif code & _CLASS == _JUMP:
            yes = f"filter {index + 1 + (k if code == JA else jt)}"
            assembly.jump(code, k, yes, "" if code == JA else f"filter {index + 1 + jf}")
        elif link_type == LINUX_SLL2 and code & _CLASS in _LOADS:
            _add_load_without_sll2(assembly, code, k)
        else:
            assembly.add(code, k)
    assembly.label("filtered")


def _add_load_without_sll2(assembly: Assembly, code: int, k: int) -> None:
    """A load as if the SLL2 header were before the packet."""
    if code == LD_LENGTH:
        assembly.add(LD_LENGTH)
        assembly.add(ADD, SLL2_BYTES)
        return
    if code & _MODE in (_ABSOLUTE, _INDIRECT, _MSH) and k < 1 << 31:
        if k >= SLL2_BYTES:
            k -= SLL2_BYTES
        elif code & _MODE == _ABSOLUTE and k in _SLL2_FIELDS:
            k = _SLL2_FIELDS[k]
        else:
            raise FilterError("this filter reads link-layer addresses, which packets of several interfaces don't have")
    assembly.add(code, k)


def add_end(assembly: Assembly, keep: int = WHOLE) -> None:
    """Accept with so many bytes what came so far."""
    assembly.add(RET, keep)
    add_rejected(assembly)


def add_rejected(assembly: Assembly) -> None:
    """The end of every program: where rejected packets go."""
    assembly.label("rejected")
    assembly.add(RET, 0)


def reject_all() -> list[Instruction]:
    """Accepts nothing."""
    return [Instruction(RET, 0, 0, 0)]
