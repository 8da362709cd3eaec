"""A pickle is judged by what it would call, before anything is called."""

from __future__ import annotations

import os
import pickle
import pickletools
import subprocess
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from keepwell.checks.artefact.pickles import allowed_global, pickle_scan


class Evil:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


EVIL = {
    "system": Evil(os.system, "true"),
    "popen": Evil(subprocess.Popen, ["true"]),
    "eval": Evil(eval, "1"),
    "exec": Evil(exec, "1"),
    "getattr": Evil(getattr, "x", "upper"),
    "import": Evil(__import__, "os"),
    "open": Evil(open, "/dev/null"),
    "nested": [{"model": (1, Evil(os.getcwd))}],
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", EVIL)
def test_a_pickle_that_would_call_anything_is_refused(name, protocol):
    assert pickle_scan(pickle.dumps(EVIL[name], protocol=protocol)).verdict == "fail"


@pytest.mark.parametrize("protocol", range(3, 6))
def test_a_model_passes(protocol):
    fitted = LogisticRegression().fit(np.arange(20.0).reshape(10, 2), np.arange(10) % 2)
    assert (
        pickle_scan(pickle.dumps([fitted, OrderedDict(a=1)], protocol=protocol)).verdict == "pass"
    )


def test_names_hidden_behind_the_memo_are_not_passed_as_known():
    # STACK_GLOBAL with both names read back from the memo: what is called cannot be told from the last two strings.
    content = (
        b"\x80\x04" + b"\x8c\x05posix\x94" + b"\x8c\x06system\x94" + b"0" + b"0"
        + b"\x8c\x0bcollections\x94" + b"0" + b"\x8c\x0bOrderedDict\x94" + b"0"
        + b"h\x00h\x01\x93" + b"\x8c\x04true\x85R."
    )  # fmt: skip
    assert [o.name for o, _, _ in pickletools.genops(content)].count("STACK_GLOBAL") == 1
    assert pickle_scan(content).verdict == "fail"


@pytest.mark.parametrize("content", [b"", b"garbage", pickle.dumps([1])[:-1], b"\x80\x04\x93."])
def test_what_is_no_pickle_is_refused(content):
    assert pickle_scan(content).verdict == "fail"


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60))
def test_whatever_bytes_come_the_scan_judges_them(content):
    assert pickle_scan(content).verdict in {"pass", "fail"}
    assert pickle_scan(b"\x80\x04" + content + b".").verdict in {"pass", "fail"}


@pytest.mark.parametrize(
    ("module", "name", "allowed"),
    [
        ("sklearn.linear_model._logistic", "LogisticRegression", True),
        ("numpy", "ndarray", True),
        ("sklearnevil", "x", False),
        ("numpy.testing._private.utils", "runstring", False),
        ("sklearn.datasets", "load_files", False),
        ("builtins", "eval", False),
        ("builtins", "dict", True),
        ("numpy", "core.os.system", False),
        ("os", "system", False),
    ],
)
def test_names_are_allowed_by_the_package_they_come_from(module, name, allowed):
    assert allowed_global(module, name) is allowed


def test_the_projects_own_module_is_allowed_by_its_full_name():
    assert allowed_global("flights", "Rule", own=("flights",))
    assert not allowed_global("flights.evil", "Rule", own=("flights",))
