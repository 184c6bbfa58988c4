"""PEFT's own tests, run on SURM: every structure in both forms, on tiny models with random weights.

python scripts/peft_conformance.py --processes 2
python scripts/peft_conformance.py --structure circulant --form weight --json outputs/peft_conformance.json
"""

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from surm.experiments.cli import command
from surm.records.storage import check_output
from surm.shared.errors import ConfigError, UserError
from surm.shared.options import Parser, count
from surm.shared.paths import REPOSITORY
from surm.structures import structure_class

FILES = (
    "custom_models",
    "config",
    "decoder_models",
    "encoder_decoder_models",
    "feature_extraction_models",
    "seq_classifier",
)
OUTCOMES = ("passed", "failed", "skipped", "refused", "excepted")


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, metavar="FOLDER", help="PEFT's unpacked source (default: downloaded)")
    parser.add_argument("--structure", action="append", default=[], type=structure, help="one; may be repeated")
    parser.add_argument("--form", action="append", default=[], choices=("weight", "adapter"), help="one form")
    parser.add_argument("--file", action="append", choices=FILES, help="one of PEFT's files; may be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table and the failures as JSON")
    parser.add_argument("--processes", type=count(64), metavar="N", help="share the tests among N processes")
    arguments = parser.parse_args()
    with command():
        run(arguments)


def structure(name: str) -> str:
    """The name of a structure, or of several joined by +."""
    try:
        structure_class(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from None
    return name


def run(arguments: argparse.Namespace) -> None:
    if arguments.json:
        check_output(arguments.json.parent)
        if arguments.json.is_dir():
            raise ConfigError(f"--json {arguments.json} is a folder: name a file in it.")
    try:
        folder = prepared(arguments.source)
    except (subprocess.CalledProcessError, tarfile.TarError) as error:
        said = str(getattr(error, "stderr", None) or error).strip().splitlines()[-1]
        raise UserError(f"PEFT's source cannot be downloaded ({said}): give --source.") from None
    table, failures = conformance(
        folder, arguments.structure, arguments.form, arguments.file or FILES, str(arguments.processes or 0)
    )
    print(f"\n{'structure/form':<24}" + "".join(f"{outcome:>10}" for outcome in OUTCOMES))
    for variant, counts in table.items():
        print(f"{variant:<24}" + "".join(f"{counts[outcome]:>10}" for outcome in OUTCOMES))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        report = {"peft": version(), "table": table, "failures": failures}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(1 if failures or not table else 0)


def version() -> str:
    return importlib.metadata.version("peft")


def prepared(source: Path | None) -> Path:
    """A folder with the tests of the installed PEFT as a package; its source is downloaded where `source` is None.

    Raises:
        subprocess.CalledProcessError: no package index can be reached.
        FileNotFoundError: `source` holds no tests.
    """
    folder = REPOSITORY / "build" / "peft" / version()
    package = folder / "peft_tests"
    if source is None and not (package / "__init__.py").exists():
        source = downloaded(folder)
    if source is not None:
        if not (source / "tests" / "testing_common.py").exists():
            raise FileNotFoundError(f"{source} has no tests/testing_common.py: give the unpacked source of PEFT.")
        package.mkdir(parents=True, exist_ok=True)
        for file in (source / "tests").glob("*.py"):
            (package / file.name).write_bytes(file.read_bytes())
        (package / "__init__.py").touch()
    return folder


def downloaded(folder: Path) -> Path:
    """The unpacked source distribution of the installed PEFT."""
    wanted = [f"peft=={version()}", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--dest", str(folder)]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "-q", "download", *wanted]
    subprocess.run(pip, check=True, capture_output=True, text=True)
    with tarfile.open(folder / f"peft-{version()}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / f"peft-{version()}"


def conformance(
    folder: Path, structures: list[str], forms: list[str], files: tuple[str, ...], processes: str
) -> tuple[dict[str, Counter[str]], list[str]]:
    """Run PEFT's tests; the number of each outcome by structure and form, and the names of the tests that failed."""
    report = folder / "report.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", str(folder), "-p", "tests.peft.plugin"]
    command += ["-p", "no:cacheprovider", "-q", "--tb=line", "-W", "ignore", f"--junitxml={report}", "-n", processes]
    command += [f"--structure={name}" for name in structures] + [f"--form={name}" for name in forms]
    command += [f"peft_tests/test_{name}.py" for name in files]
    own = {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(folder)]), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=folder, env=os.environ | own)
    if not report.is_file():
        raise UserError("pytest ended before it wrote a report: what it said above tells why.")
    table: dict[str, Counter[str]] = {}
    failures = []
    for case in ElementTree.parse(report).iter("testcase"):
        outcome, variant = outcome_of(case), case.find("properties/property[@name='variant']")
        name = "a file that cannot be read" if variant is None else variant.attrib["value"]
        table.setdefault(name, Counter())[outcome] += 1
        if outcome == "failed":
            failures.append(f"{case.attrib['classname']}::{case.attrib['name']}")
    return table, failures


def outcome_of(case: ElementTree.Element) -> str:
    """What a test case of a JUnit report came to."""
    if case.find("failure") is not None or case.find("error") is not None:
        return "failed"
    skipped = case.find("skipped")
    if skipped is None:
        return "passed"
    if skipped.attrib["type"] == "pytest.xfail":
        return "excepted"
    return "refused" if skipped.attrib["message"].startswith("refused") else "skipped"


if __name__ == "__main__":
    main()
