"""What would unpickling call? Read from the opcodes, without running one of them."""

from __future__ import annotations

import pickletools

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
