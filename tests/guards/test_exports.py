"""``__all__`` says what is there, each name once and in order."""

import types

import pytest
from tests.guards.test_catalogs import modules

import keepwell


def kind(name):
    return 0 if name.isupper() else 1 if name[:1].isupper() else 2


def wrong_exports(module):
    names = list(module.__all__)
    wrong = [name for name in names if not hasattr(module, name)]
    wrong += [name for name in set(names) if names.count(name) > 1]
    return wrong + (
        ["order"] if names != sorted(names, key=lambda name: (kind(name), name)) else []
    )


EXPORTING = [module for module in (keepwell, *modules()) if hasattr(module, "__all__")]


@pytest.mark.parametrize("module", EXPORTING, ids=lambda module: module.__name__)
def test_what_a_module_exports_is_there_and_in_order(module):
    assert wrong_exports(module) == []


def test_a_wrong_export_would_be_found():
    assert keepwell in EXPORTING
    bad = types.ModuleType("bad")
    bad.__dict__.update(b=1, a=1, __all__=["b", "a", "ghost", "a"])
    assert set(wrong_exports(bad)) == {"ghost", "a", "order"}
