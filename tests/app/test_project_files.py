"""What is wrong with a project's own files is said with the file, the line and the way out."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from tests.app.projects import Commands

from keepwell.app.config import read_settings
from keepwell.core.errors import InvalidInput


def test_outside_a_project_every_command_says_where_to_go(tmp_path, capsys, monkeypatch):
    commands = Commands(tmp_path, capsys, monkeypatch)
    for arguments in (
        ("status",),
        ("train",),
        ("release", "m/1"),
        ("approve", "m/1", "--reason", "x"),
        ("activate", "m/1"),
        ("rollout",),
        ("rollback", "m", "--reason", "x"),
        ("evidence", "list"),
        ("audit", "verify"),
        ("up",),
        ("users",),
        ("token", "create", "me"),
    ):
        commands.fails(*arguments, status=3, says=f"{tmp_path}.*no keepwell.toml.*keepwell init")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("old", "new", "status", "says"),
    [
        ("[policy]", "[policy", 2, r"keepwell.toml: .*not valid TOML.*line \d+"),
        ("approvals = 1", "aprovals = 1", 2, r"policy.*aprovals.*Did you mean 'approvals'\?"),
        ("[policy]", "[polcy]", 2, r"polcy.*Did you mean 'policy'\?"),
        ("approvals = 1", "approvals = 'one'", 2, r"policy\.approvals: Expected `int`, got `str`"),
        ("approvals = 1", "approvals = -1", 2, r"policy\.approvals: .*>= 0"),
        ("approvals = 1", "validation_share = 1.5", 2, r"policy\.validation_share"),
        ("approvals = 1", "approval_expires = 'soon'", 2, r"policy\.approval_expires.*'soon'.*duration"),
        ("gateway_port = 0", "gateway_port = 70000", 2, r"server\.gateway_port: .*65535"),
        ("[policy]", "[monitors]\nwindow = '7 days'\n[policy]", 2, r"monitors\.window.*'7 days'.*duration"),
        ("[policy]", "[rollout]\nstrategy = 'canery'\n[policy]", 2, r"rollout\.strategy.*'canery'.*Did you mean 'canary'\?"),
        ("[policy]", "[rollout]\nalpha = 2\n[policy]", 2, r"rollout\.alpha"),
        ('roles = ["approver"]', 'roles = ["aprover"]', 2, r"users.*roles.*'aprover'.*Did you mean 'approver'"),
        ('model = "tumour"', 'model = "tumor"', 2, r"'tumor'.*Did you mean 'tumour'\?"),
        ('module = "tumours"', 'module = "tumors"', 3, r"'tumors' does not exist.*Did you mean 'tumours'\?"),
        ('model = "tumour"', 'model = "tumour"\noutcome_expires = "soon"', 2, r"tumour\.outcome_expires.*'soon'.*duration"),
        ('model = "tumour"', 'model = "tumour"\ndefault_outcome = 0', 2, r"tumour\.outcome_expires.*no decision would ever get"),
        ("[policy]", "[store]\nurl = 'mysql://x'\n[policy]", 2, r"mysql.*sqlite"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_its_field(fresh, old, new, status, says):
    fresh.edit(old, new, "keepwell.toml").fails("train", "--as", "me", status=status, says=says)


def test_a_settings_file_that_is_no_text_is_refused(fresh):
    (fresh.folder / "keepwell.toml").write_bytes(b"\xff\xfe\x00[project]")
    fresh.fails("train", "--as", "me", status=2, says=r"keepwell.toml: .*cannot be read")


def test_a_settings_file_that_is_a_folder_is_refused(fresh):
    (fresh.folder / "keepwell.toml").unlink()
    (fresh.folder / "keepwell.toml").mkdir()
    fresh.fails("train", "--as", "me", status=3, says="no keepwell.toml")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("import numpy as np", "import numpy as", r"tumours\.py:3: .*SyntaxError"),
        ("import numpy as np", "import nunpy as np", r"tumours\.py:3: .*No module named 'nunpy'"),
        ("FEATURES = [", "oops = 1 / 0\nFEATURES = [", r"tumours\.py:\d+: .*ZeroDivisionError"),
        ("FEATURES = [", "import sys\nsys.exit(3)\nFEATURES = [", r"tumours\.py:\d+: .*SystemExit"),
        ('@tumour.candidate("linear"', '@tumour.candidate("boosting"', r"tumours\.py:\d+: .*'boosting' is declared twice"),
        ('task="binary"', 'task="binry"', r"tumours\.py:\d+: .*'binry' is unknown.*Did you mean 'binary'\?"),
        ('risk="high"', 'risk="hihg"', r"tumours\.py:\d+: .*'hihg' is unknown.*Did you mean 'high'\?"),
        ('label_delay="2d"', 'label_delay="2 days"', r"tumours\.py:\d+: .*'2 days' is not a duration"),
        ("features=FEATURES", "features=[]", r"tumours\.py:\d+: .*no features"),
        ("@tumour.baseline\n", "", r"model 'tumour': .*no baseline.*@<model>\.baseline"),
        ('@tumour.kpi(unit="EUR")\n', "", r"model 'tumour': .*no KPI"),
    ],
)  # fmt: skip
def test_a_wrong_module_is_named_with_its_line(fresh, old, new, says):
    fresh.edit(old, new).fails("train", "--as", "me", status=2, says=says)


def test_a_module_without_a_model_is_refused_when_something_needs_one(fresh):
    (fresh.folder / "tumours.py").write_text("import keepwell as kw\n")
    fresh.edit('[endpoints.tumour]\nmodel = "tumour"', "", "keepwell.toml")
    fresh.fails(
        "train", "--as", "me", status=2, says=r"tumours\.py: .*declares no model.*keepwell\.model"
    )


def test_two_models_need_a_name_and_two_of_one_name_are_refused(fresh):
    module = fresh.folder / "tumours.py"
    text = module.read_text()
    second = text[text.index("tumour = kw.model(") :].replace("tumour", "growth")
    module.write_text(text + "\n\n" + second)
    fresh.fails("train", "--as", "me", status=2, says="several models.*'growth', 'tumour'")
    module.write_text(text + "\n\n" + second.replace('"growth"', '"tumour"'))
    fresh.fails(
        "train", "--as", "me", status=2, says=r"tumours\.py:\d+: .*'tumour' is declared twice"
    )


@pytest.fixture
def nobody():
    """Be somebody whom rights bind, where the tests run as root."""
    mine = os.geteuid()
    if mine == 0:
        os.seteuid(65534)
    yield
    os.seteuid(mine)


def test_a_settings_file_without_the_right_to_read_is_refused(nobody):
    folder = Path(tempfile.mkdtemp())  # a folder of his own: pytest's are closed to others
    (folder / "keepwell.toml").touch()
    (folder / "keepwell.toml").chmod(0)
    with pytest.raises(InvalidInput, match=r"cannot be read: .*Permission denied"):
        read_settings(folder)
    shutil.rmtree(folder)
