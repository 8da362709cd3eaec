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
    strings: list[str] = []
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            found.append((module, name))
        elif opcode.name in {"INST"}:
            module, _, name = str(argument).partition(" ")
            found.append((module, name))
        elif opcode.name == "STACK_GLOBAL":
            # Without running it, the two strings pushed last are the names; memo reads may hide them,
            # so anything unclear counts as unknown and is refused.
            found.append((strings[-2], strings[-1]) if len(strings) > 1 else ("?", "?"))
        elif "UNICODE" in opcode.name or opcode.name == "STRING":
            strings.append(str(argument))
        elif opcode.name in {"BINGET", "LONG_BINGET", "GET"}:
            strings.append(f"memo:{argument}")
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
        {
            f"{module}.{name}"
            for module, name in names
            if not module.startswith("memo:")
            and not name.startswith("memo:")
            and not allowed_global(module, name, own=own)
        }
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
