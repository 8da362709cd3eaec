"""The tree speaks of the product alone: no machine's paths, no registry's address, no ticket's number."""

import re
import subprocess

from scripts.reference import ROOT

# A letter in brackets keeps each pattern from finding itself in this file.
FOREIGN = {
    "the address of a package registry": r"p[y]pi\.org|p[y]thonhosted|/p[y]pi/|/s[i]mple/|--(extra-)?[i]ndex-url[ =]",
    "a path of one machine": r"(?<![\w.])/(w[o]rk|r[o]ot|h[o]me|o[p]t|U[s]ers)/|/t[m]p/kw|[A-Z]:\\\\U[s]ers",
    "a ticket's number": r"\b(?:[i]ssue|t[i]cket|PR|GH)[ -]?#?\d+\b",
}


def foreign(text):
    """What in a text belongs to somebody's machine or tools, with its line."""
    return [
        f"{number}: {what}: {line.strip()[:120]}"
        for number, line in enumerate(text.splitlines(), 1)
        for what, pattern in FOREIGN.items()
        if re.search(pattern, line)
    ]


def tracked():
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True,
    )  # fmt: skip
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name]


def test_nothing_in_the_tree_belongs_to_one_machine():
    files = [path for path in tracked() if path.is_file()]
    assert len(files) > 200
    texts = {}
    for path in files:
        try:
            texts[str(path.relative_to(ROOT))] = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            assert path.suffix in {".binpb", ".png", ".onnx", ".parquet"}, f"{path} is no text"
    assert "requirements/dev.lock" in texts
    assert {path: found for path, text in texts.items() if (found := foreign(text))} == {}


def test_a_foreign_word_would_be_found():
    assert foreign("x = '/ho" + "me/ann/data'") != []
    assert foreign("https://py" + "pi.org/project/x") != []
    assert foreign("see iss" + "ue #12") != []
    assert foreign("a path such as state/home/x, /docs/howto/ and 12 issues") == []
