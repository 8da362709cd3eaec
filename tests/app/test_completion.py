"""The completions, in the shells themselves where they are installed."""

import shutil
import subprocess

import pytest

from keepwell.app.cli.completion import SHELLS, commands
from keepwell.app.cli.main import COMMANDS, main


def script(shell, capsys):
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("shell", SHELLS)
def test_every_command_and_option_is_in_the_script(shell, capsys):
    said = script(shell, capsys)
    for name, _ in COMMANDS:
        assert name in said
    for command in commands().values():
        for word in command.words:
            assert word.lstrip("-") in said


@pytest.mark.parametrize(("words", "expected"), [
    (["keepwell", "roll"], {"rollout", "rollback"}),
    (["keepwell", "activate", "--dr"], {"--dry-run"}),
    (["keepwell", "completion", "f"], {"fish"}),
    (["keepwell", "nothing", "--zz"], set()),
])  # fmt: skip
def test_bash_completes_commands_options_and_choices(words, expected, capsys, tmp_path):
    told = script("bash", capsys)
    ask = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _keepwell; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(
        ["bash", "-c", told + ask], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert set(done.stdout.split()) == expected
    assert done.stderr == ""


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_shell_reads_its_script(shell, capsys, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    path = tmp_path / "script"
    path.write_text(script(shell, capsys))
    done = subprocess.run([shell, "-n", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    if shell == "fish":
        ask = f"source {path}; complete -C 'keepwell roll'"
        said = subprocess.run(
            ["fish", "-c", ask],
            capture_output=True,
            text=True,
            check=True,
            env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        ).stdout
        assert {line.split("\t")[0] for line in said.splitlines()} == {"rollout", "rollback"}
