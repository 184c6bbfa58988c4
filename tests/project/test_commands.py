"""Every shell command of README.md and docs/*.md is run as a reader would, with a smaller model and fewer steps."""

import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models import save_for_hf
from transformers import BertConfig, BertModel

from surm.config.command import check_command
from surm.config.compose import TRAIN
from surm.models.tiny import character_tokenizer
from tests.data.hub_layout import GLUE, write_tiny

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}

SHORT = ["trainer.epochs=1", "trainer.max_steps=1"]
TINY = ["--seeds", "1", "--only", "digits", "--set", "model=tiny_vit", *SHORT]
RUN: dict[str, list[str]] = {  # command -> what makes it small; `model=builtin_vit` becomes `model=tiny_vit`
    "python scripts/train.py model=builtin_vit dataset=digits structure=circulant seed=0": SHORT,
    "python scripts/approximate.py study=psd_fit": ["study.draws=1"],
    "python scripts/analyse.py run=<signature>": [],
    "make status": ["--only", "digits"],
    "make tune": ["--dry"],
    "make tune ONLY=digits SET=structure=lora,circulant": ["--dry"],
    "python scripts/tune.py --only digits --set structure=lora,circulant --wandb-sweep outputs/sweeps": [],
}
RUN_SLOWLY: dict[str, list[str]] = {
    "make reproduce": TINY,
    "python scripts/train.py -m structure=circulant,kronecker,lora,full seed=0,1,2": ["model=tiny_vit", *SHORT],
    "make reproduce SCALE=paper DRY=1": [],
    "make tune SCALE=paper ONLY=table5_glue": ["--dry"],
    "make reproduce SCALE=paper ONLY=table5_glue": ["--dry"],
    "make reproduce SCALE=paper ONLY=table7_qv_qkv SET='model.path=bert dataset.path=data/${dataset.name}'": ["--dry"],
}
CHECKED: dict[str, str] = {  # command -> why its configuration alone is looked at
    "python scripts/train.py model=bert_base dataset=glue/mrpc structure=kronecker "
    "placement=adapter_houlsby": "the hub's weights",
    "python scripts/train.py model.source=timm model.name=vit_small_patch16_224 dataset=image_folder "
    "dataset.path=photos": "the hub's weights",
    "python scripts/train.py model=builtin_llama dataset=sums structure=ldr_r4 placement=weight_qkvo": "an hour",
    "python scripts/train.py -m experiment=paper/table5_glue hydra/launcher=joblib": "hours, the hub",
    "python scripts/train.py -m experiment=paper/table1_images hydra/launcher=joblib hydra.launcher.n_jobs=4": "GPUs",
    "python scripts/train.py -m experiment=paper/table5_glue hydra/launcher=submitit_slurm "
    "hydra.launcher.partition=gpu hydra.launcher.timeout_min=240 hydra.launcher.mem_gb=32 "
    "hydra.launcher.array_parallelism=64": "a Slurm cluster",
    "python scripts/train.py -m experiment=laptop/digits hydra/launcher=submitit_local": "half an hour",
    "python scripts/train.py -m experiment=laptop/digits hydra/launcher=ray": "a Ray cluster",
    "python scripts/train.py -m experiment=paper/table5_glue hydra/launcher=ray hydra.launcher.ray.init.address=auto "
    "hydra.launcher.ray.remote.num_gpus=1 hydra.launcher.ray.remote.num_cpus=4": "a Ray cluster",
    "accelerate launch --num_processes 4 scripts/train.py model=vit_b16 dataset=cifar10 structure=circulant": "GPUs",
    "accelerate launch --multi_gpu --num_processes 2 scripts/train.py structure=circulant": "several processes",
    "python scripts/train.py -m experiment=laptop/digits tracking=wandb tracking.project=surm "
    "tracking.entity=my-team": "W&B's servers",
}
NOT_RUN: dict[str, str] = {
    "make test": "tests",
    "make reproduce SCALE=paper ONLY=table5_glue LAUNCHER=joblib": "GPUs, the hub; installs the launchers",
    "make wandb-sync ONLY=digits SET='tracking.project=surm tracking.entity=my-team'": "W&B's servers",
    "make wandb-sync RECORDS=results/runs": "W&B's servers",
    "wandb sweep outputs/sweeps/builtin_vit_digits_lora.yaml": "W&B's servers",
}


def commands(page: Path) -> list[str]:
    """The commands of a page's shell blocks, without their comments."""
    blocks = re.findall(r"```(?:sh|bash|shell|console)\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [" ".join(re.sub(r"(^|\s)#.*", "", line).split()) for line in lines if line.split("#")[0].strip()]


def test_every_command_is_run_or_listed_with_the_reason() -> None:
    known = [*RUN, *RUN_SLOWLY, *CHECKED, *NOT_RUN]
    written = {command for page in PAGES for command in commands(page)}
    assert len(known) == len(set(known))
    assert written == set(known)


def test_every_block_is_python_or_shell_or_shows_a_reference() -> None:
    """No block of another language slips through."""
    for page in PAGES:
        languages = re.findall(r"^```(\S*)\n", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert set(filter(None, languages)) <= {"python", "sh", "bash", "bibtex"}, page


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader's folder with all that the commands read: pictures, texts, models of the hub, `scripts`, `conf`."""
    desk = tmp_path_factory.mktemp("desk")
    for name in ("scripts", "conf", "Makefile", "results"):
        (desk / name).symlink_to(REPOSITORY / name)
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            folder = desk / "photos" / split / label
            folder.mkdir(parents=True)
            for number in range(4):
                pixels = generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    torch.manual_seed(0)
    module = timm.create_model("vit_small_patch16_224", num_classes=11, **VIT)
    save_for_hf(module, desk / "vit", safe_serialization=True, model_args=VIT)
    write_bert(desk / "bert")
    character_tokenizer().save_pretrained(desk / "bert")
    for task in GLUE:
        write_tiny(f"glue/{task}", desk / "data")
    return desk


def write_bert(folder: Path) -> None:
    """BERT-base with weights of zero, which a file with a hole takes no room for."""
    BertConfig().save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: list(value.shape) for name, value in BertModel(BertConfig()).state_dict().items()}
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def run(desk: Path, command: str, more: list[str]) -> str:
    """What a command prints, with `more` at its end; `make` says what it would start, and that is started."""
    if command.startswith("make"):
        make = ["make", "-n", "--no-print-directory", "PY=python", "ASSETS=", "PACKAGES=", "LAUNCHERS="]
        done = subprocess.run([*make, *shlex.split(command)[1:]], cwd=desk, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        command = next(line for line in done.stdout.splitlines() if line.startswith("python "))
    words = [word.replace("model=builtin_vit", "model=tiny_vit") for word in shlex.split(command)]
    assert words[0] == "python"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *words[1:], *more], cwd=desk, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.sample(2)
@pytest.mark.parametrize("command", RUN)
def test_a_quick_command_runs(desk: Path, command: str) -> None:
    more, first = RUN[command], next(iter(RUN))
    if "<signature>" in command:
        printed = run(desk, first, RUN[first])  # its own run: found, where it was done
        command = command.replace("<signature>", re.findall(r"outputs/runs/(\w{12})", printed)[-1])
    assert run(desk, command, more)


@pytest.mark.slow
@pytest.mark.parametrize("command", RUN_SLOWLY)
def test_a_longer_command_runs(desk: Path, command: str) -> None:
    assert run(desk, command, RUN_SLOWLY[command])


@pytest.mark.parametrize(
    "command", [pytest.param(command, marks=[pytest.mark.slow] * ("experiment=" in command)) for command in CHECKED]
)
def test_a_command_that_needs_more_than_a_machine_is_checked(
    desk: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(desk)
    words = shlex.split(command)
    settings = words[words.index("scripts/train.py") + 1 :]
    settings = [word for word in settings if not word.startswith("hydra")]  # the launchers have their own tests
    if "photos" in command:
        settings.append("model.path=vit")
    before = sorted(desk.rglob("*"))
    assert check_command(settings, TRAIN)
    assert sorted(desk.rglob("*")) == before


def test_the_readmes_own_model_and_pictures_train(desk: Path) -> None:
    """The command for one's own pictures, with the model's files from a folder in place of the hub."""
    (command,) = (command for command in CHECKED if "photos" in command)
    more = ["model.path=vit", *SHORT, "trainer.batch_size=4"]
    printed = run(desk, command, more)
    assert "accuracy" in printed
    shutil.rmtree(desk / "outputs" / "runs" / re.findall(r"outputs/runs/(\w{12})", printed)[-1])
