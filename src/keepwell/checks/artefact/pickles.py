"""What would unpickling call? Read from the opcodes, without running one of them."""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path

from keepwell.core.records.evidence import CheckResult

ALLOWED_MODULES = (
    "sklearn",
    "numpy",
    "scipy",
    "lightgbm",
    "xgboost",
    "polars",
    "collections",
    "copyreg",
)
"""Packages whose classes a model may be made of. ``builtins`` is allowed name by name."""
ALLOWED_BUILTINS = frozenset(
    {"list", "dict", "set", "frozenset", "tuple", "int", "float", "str", "bytes", "bool", "slice",
     "object", "complex", "range", "bytearray"}
)  # fmt: skip
FORBIDDEN = frozenset(
    {"numpy.testing", "numpy.distutils", "numpy.f2py", "scipy.io", "sklearn.datasets"}
)

_NEUTRAL = frozenset({"PROTO", "FRAME"})
_UNKNOWN = "?"
"""Stands for a name that the opcodes alone do not tell; no package has it, so it is refused."""


def allowed_global(module: str, name: str, *, own: tuple[str, ...] = ()) -> bool:
    """Tell whether a model may name this global: a class of a known package, or the project's own."""
    if module in {"builtins", "__builtin__"}:
        return name in ALLOWED_BUILTINS
    if module in own:
        return True
    if any(module == bad or module.startswith(f"{bad}.") for bad in FORBIDDEN):
        return False
    # A dotted name walks through attributes and could reach another module's functions.
    return "." not in name and module.partition(".")[0] in ALLOWED_MODULES


def globals_of(content: bytes) -> list[tuple[str, str]]:
    """List the globals that a pickle names. Raises ValueError if it cannot be read as one."""
    found: list[tuple[str, str]] = []
    memo: dict[int, str | None] = {}
    # The texts on top of the stack, as far as they are certain: anything but a text forgets them.
    top: list[str | None] = []
    for opcode, argument, _ in pickletools.genops(content):
        name = opcode.name
        if name in _NEUTRAL:
            continue
        if name == "MEMOIZE":
            memo[len(memo)] = top[-1] if top else None
        elif name in {"PUT", "BINPUT", "LONG_BINPUT"}:
            memo[int(str(argument))] = top[-1] if top else None
        elif name in {"GET", "BINGET", "LONG_BINGET"}:
            top.append(memo.get(int(str(argument))))
        elif "UNICODE" in name:
            top.append(str(argument))
        else:
            if name in {"GLOBAL", "INST"}:
                module, _, attribute = str(argument).partition(" ")
                found.append((module, attribute))
            elif name == "STACK_GLOBAL":
                named = [text or _UNKNOWN for text in top[-2:]]
                found.append((named[0], named[1]) if len(named) > 1 else (_UNKNOWN, _UNKNOWN))
            elif name in {"EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID"}:
                found.append((_UNKNOWN, name))
            top = []
    return found


def pickle_scan(content: bytes, *, own: tuple[str, ...] = ()) -> CheckResult:
    """Does a pickle name nothing but classes that a model may be made of?

    Weak spot: it judges names, not what an allowed class does with its state. The restricted loader
    (``keepwell.training.predictors.native``) holds the same list again while it loads.
    """
    try:
        names = globals_of(content)
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        return CheckResult(
            check="pickle scan", verdict="fail", message=f"it cannot be read as a pickle: {error}"
        )
    bad = sorted(
        {f"{module}.{name}" for module, name in names if not allowed_global(module, name, own=own)}
    )
    return CheckResult(
        check="pickle scan",
        verdict="fail" if bad else "pass",
        message=f"it would call {', '.join(bad)}"
        if bad
        else f"{len(names)} names, all of known packages",
        measured={"names": len(names), "forbidden": len(bad)},
        limits={"forbidden": 0},
    )


PICKLED = (".pkl", ".pickle", ".joblib")
"""Names by which a file says that it is one."""
MEMBER_BYTES = 1024 * 1024 * 1024
"""Members of an archive that would unpack to more are not looked into, and so refused."""


def pickles_in(name: str, content: bytes, *, depth: int = 0) -> Iterator[tuple[str, bytes]]:
    """Give each pickle in a file, by name and content: the file itself, members of an archive, an array of objects.

    By what the bytes are, not by what the name says: frameworks call their pickles ``.pt``, ``.bin`` or ``.npz``.
    Raises ValueError for an archive that cannot be read.
    """
    if name.endswith(PICKLED) or (content[:1] == b"\x80" and content[1:2] in b"\x02\x03\x04\x05"):
        yield name, content
    elif content[:6] == b"\x93NUMPY":
        head = content[:4096]
        if b"|O" in head or b"'O'" in head:
            yield name, content[content.find(b"\n") + 1 :]
    elif content[:4] == b"PK\x03\x04":
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                for member in archive.infolist():
                    if depth or member.file_size > MEMBER_BYTES:
                        raise ValueError(
                            f"{name} holds {member.filename[:80]!r}, too deep or too large"
                        )
                    inside = archive.read(member)
                    yield from pickles_in(f"{name}/{member.filename}", inside, depth=depth + 1)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
            raise ValueError(f"{name} cannot be read as an archive: {error}") from error


def scan_all(files: Iterator[tuple[str, bytes]], *, own: tuple[str, ...] = ()) -> CheckResult:
    """Do all pickles among some files, whatever they are called, name nothing but what a model may be made of?

    Weak spot: pickles inside a compressed stream without a name for it are not seen; only the model's own code, which
    is in the artefact, could load them.
    """
    found = 0
    bad: list[str] = []
    try:
        for name, content in files:
            for place, pickled in pickles_in(name, content):
                found += 1
                scan = pickle_scan(pickled, own=own)
                if scan.verdict != "pass":
                    bad.append(f"{place}: {scan.message}")
    except ValueError as error:
        bad.append(str(error))
    return CheckResult(
        check="pickle scan",
        verdict="fail" if bad else "pass",
        message="; ".join(bad)[:1000]
        if bad
        else f"{found} pickles, all of known names"
        if found
        else "the artefact contains no pickle",
        measured={"pickles": found, "forbidden": len(bad)},
        limits={"forbidden": 0},
    )


def scan_files(folder: Path, *, own: tuple[str, ...] = ()) -> CheckResult:
    """Ask ``scan_all`` of the files below a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return scan_all(((p.relative_to(folder).as_posix(), p.read_bytes()) for p in paths), own=own)
