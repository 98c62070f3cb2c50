"""What a kernel's machine code shows without running: spills, the length of the loop that counts, and two
faults of compilers that corrupt results on a Hopper GPU."""

import re
import subprocess
import tempfile

from triton import knobs

Code = list[tuple[int, str]]  # addresses, and instructions without them


def disassemble(cubin: bytes) -> tuple[Code, int]:
    """The instructions; and the bytes of stack that a thread needs for what does not fit into registers."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-sass", "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", text, re.MULTILINE)
    return [(int(address, 16), name) for address, name in found], int(re.search(r"STACK:(\d+)", text)[1])


def inner_loop(code: Code) -> Code:
    """The longest loop with matrix products in it and no other such loop inside; empty if there is none."""
    place = {address: n for n, (address, _) in enumerate(code)}
    loops = []
    for n, (address, name) in enumerate(code):
        jump = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", name)
        if jump and (start := int(jump[1], 16)) <= address:
            loops.append((place[start], n + 1))
    loops = [(a, b) for a, b in loops if any("MMA" in name for _, name in code[a:b])]
    inner = [x for x in loops if not any(x != y and x[0] <= y[0] and y[1] <= x[1] for y in loops)]
    return max((code[a:b] for a, b in inner), key=len, default=[])


def overwritten_operands(code: Code) -> list[str]:
    """Instructions that write a register which a running matrix product reads (ptxas before CUDA 13.3).

    An asynchronous product (HGMMA) that takes its left factor from registers reads four of them until the
    warpgroup has waited for it (triton pull request 11781).
    """
    reading, found = set(), []
    for address, name in code:
        product = re.search(r"HGMMA\S*\s+R\d+,\s*R(\d+),\s*gdesc", name)
        if product:
            reading |= set(range(int(product[1]), int(product[1]) + 4))
        elif re.search(r"WARPGROUP\.DEPBAR.*gsb0, 0x0\b", name):
            reading = set()
        elif reading & _written(name):
            found.append(f"{address:#x} {name}")
    return found


def _written(name: str) -> set[int]:
    """The registers that an instruction writes: its first operand after predicates, and those that follow."""
    operation, _, operands = re.sub(r"^@!?U?P\w+\s+", "", name).partition(" ")
    first = re.match(r"\s*(?:P\w+,\s*)*R(\d+)\b", operands)
    if not first or re.search(r"SETP|R2P|HGMMA|BAR|BRA|CALL|RET", operation):
        return set()
    n = 1
    if ".128" in operation or re.search(r"LDSM.*\.4$", operation):
        n = 4
    elif re.search(r"\.64|WIDE|^CS2R$|LDSM.*\.2$", operation):
        n = 2
    return set(range(int(first[1]), int(first[1]) + n))


EVENTS = {
    "products": r"wgmma\.commit_group",  # a group of them begins to run
    "wait": r"wgmma\.wait_group\S*\s+(\d+)",
    "barrier": r"bar\.sync|barrier\.",
    "copy": r"cp\.async\.c[ag]\.",
    "label": r"^(\$L__BB\w+):",
    "jump": r"\bbra\S*\s+(\$L__BB\w+)",
}


def early_copies(ptx: str) -> list[str]:
    """Copies into shared memory that another warpgroup's product may still be reading (triton issue 11047).

    In a loop, a copy must come after a wait for the products of the round before *and then* a barrier, which
    every warpgroup reaches only when it has waited itself. Stores are not looked at: the compiler uses them
    for exchanges between threads, in memory of their own.
    """
    events = []
    for line in ptx.splitlines():
        for kind, pattern in EVENTS.items():
            if match := re.search(pattern, line.strip()):
                events.append((kind, match[1] if match.groups() else line.strip()))
    labels = {name: n for n, (kind, name) in enumerate(events) if kind == "label"}
    found = []
    for n, (kind, name) in enumerate(events):
        body = events[labels.get(name, n) : n]
        if kind != "jump" or sum(kind == "label" for kind, _ in body) > 1:
            continue  # not a loop, or not an innermost one
        running, waited = [], []  # groups of products: is it this round's? running; waited for here alone
        for second, (kind, name) in [(x, event) for x in (False, True) for event in body]:
            if kind == "products":
                running.append(second)
            elif kind == "wait":
                done = max(len(running) - int(name), 0)
                running, waited = running[done:], waited + running[:done]
            elif kind == "barrier":
                waited = []
            elif kind == "copy" and second and False in running + waited:
                found.append(name)
    return found
