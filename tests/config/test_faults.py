"""Overrides as people type them: what cannot be run is one sentence, and what is odd but legal works."""

import shlex
import types
from dataclasses import fields
from pathlib import Path
from typing import Union, get_args, get_origin

import pytest

from surm.config.bounds import BOUNDS, Bounds, settings
from surm.config.command import check_command, check_question
from surm.config.compose import TRAIN
from surm.config.schema import RunConfig
from surm.shared.errors import ConfigError
from surm.studies.entry import APPROXIMATE, STUDY_BOUNDS
from surm.studies.registry import STUDIES

BAD = r"""
seed=4294967296 | seed=-1 | seed=null | seed= | seed==3 | .seed=3 | seed.=3 | seed..x=3 | seed.x=3 | +seed=3
~seed
seed=0x10 | seed=1e2 | seed='3 4' | seed={ | seed=[ | seed=} | seed=( | seed=a:b | seed | =3 | seed=???
seed=[1] | seed=1.5
seed='${seed}' | seed='${' | seed='${eval:3}' | seed='${oc.env:HOME}' | seed='${oc.decode:a}'
seed='${optim.lr}'
optim.lr='${oc.env:NOPE}' | optim.lr='${nope}' | optim.lr='${nores:1}' | output_dir='${hydra:runtime.cwd}'
model.name='${model}' | model='${x}' | optim.lr='${structure.name}' | table.title='${table.title}'
optim.lr=1e400 | optim.lr=1e300 | optim.lr=0 | optim.lr=[1] | optim.lr={a:1} | optim.head_lr=0
optim.head_lr=nan
optim.max_grad_norm=0 | optim.max_grad_norm=inf | optim.weight_decay=nan | optim.weight_decay=-1
optim.weight_decay=1e308
optim.beta1=1 | optim.beta2=nan | optim.warmup_ratio=-0.1 | optim.warmup_ratio=1 | optim.schedule=null
placement.parts=[[q]] | placement.parts=q | placement.parts=[1] | placement.parts=[null] | placement.parts={q:1}
placement.parts=[] | tracking.tags=[[a]] | tracking.tags=a | tracking.tags=null | table.claims=[1,{a:2}]
model=null | dataset=null | structure=null | placement=null | optim=null | trainer=null | tracking=null
experiment=null
device=null | output_dir=null | model.name=null | dataset.name=null | structure.name=null | dataset.columns=null
model=[builtin_vit] | model=[builtin_vit,tiny_vit] | model={a:1} | model=../model/tiny_vit | model=tiny_vit.yaml
structure=
~model | ~model.name | ~structure | +model=vit_b16 | +x.y=3 | model@foo=tiny_vit | structure@model=lora
hydra=null
experiment=[laptop/digits] | experiment=../experiment/laptop/digits | experiment=~ | debug=nothing | local=x
structure.terms=1000000000 | structure.terms=0.5 | structure.rank=??? | structure=lora structure.rank=100000000
structure=lora structure.alpha=nan | structure=lora structure.alpha=1e300 | structure.block_size=-1
structure.blocks=0
structure=monarch structure.blocks=99999999999999999
structure=bottleneck placement=adapter_houlsby structure.size=10000000000
structure.factor_shape=[-1,-384] | structure.factor_shape=[a,b] | structure.factor_shape=[[1],[2]]
structure.dropout=nan
structure=peft_vera structure.arguments=[1] | structure=peft_vera structure.arguments=null | structure.name=+
structure=peft_vera +structure.arguments={1:2} | structure.name=peft_ | structure.name=
model.image_size=7000000 | model.image_size=0 | model.image_size=-14
trainer.threads=100000000 | trainer.threads=0 | trainer.workers=100000 | trainer.workers=-1
trainer.epochs=1000000000000000000000
trainer.batch_size=100000000000 | trainer.max_steps=99999999999999999999 | trainer.max_steps=0
trainer.epochs=3.5
trainer.eval_batch_size=0 | trainer.log_every=10000000000 | trainer.checkpoint_every=0
trainer.gradient_accumulation=0
trainer.epochs=true | trainer.compile=maybe | trainer.precision=fp8 | device=cuda:0 | device=
dataset.path=~user | output_dir=~user | 'output_dir="~user"' | output_dir=ü | table.title=Müller | output_dir=
output_dir=/dev/null
output_dir=/dev/null/deeper | table.name=../../x | table.name=/x | table.published=../../x
dataset.fraction=nan
dataset.columns={text:[a]} | dataset.columns.text=1 | dataset.columns=[a] | +dataset.columns.foo=a
-m seed=range(0,0) | -m seed=range(5,1) | -m seed=range(0,3,0) | -m seed=range(0,2000000000) | -m seed=choice()
-m seed=interval(0,1) | -m optim.lr=interval(0,1) | -m seed=glob(*) | -m structure=glob(*zz)
-m seed=shuffle(range(0,2000000000))
-m optim.lr=range(0.1,1,0) | -m seed=range(0,200) trainer.epochs=range(1,200) | -m structure=circulant,null
-m model=tiny_vit,null
-m seed=0,4294967296 | -m placement.parts=[q],[[q]] | -m structure=circulant,lora optim.lr='${oc.env:NOPE}'
-m structure=
-m hydra/launcher=nope | -m hydra/launcher=null | -m hydra.nope=3 | -m experiment=glob(*)
-x | -- | - | '' | ' ' | 'seed=0;rm'
"""

BAD_STUDIES = r"""
study=null | study=nope | study.name=nope | study.draws=0 | study.draws=-1 | study.draws=1000000000
study.size=3 | ~study
study=[psd_fit] | study={a:1} | study='${x}' | study.draws='${nope}' | -m study=glob(*zz) | +study.x=3
output_dir=null
study=pinwheel study.seeds=[] | study=pinwheel study.seeds=[a] | study=pinwheel study.seeds=[4294967296]
study.draws=??? | study=ldr_fit study.noise=nan
study=ldr_fit study.terms=[[1]] | study=ldr_fit study.tolerance=2 | study=pinwheel study.points=100000000
table.name=../x
"""

LEGAL = r"""
-m structure=glob(circ*) | 3
-m structure=glob([circ*,lo*],exclude=lor*) | 4
-m seed=range(0,3) | 3
-m seed=choice(0,1) | 2
-m seed=sort(2,1) | 2
-m seed=shuffle(0,1,2) | 3
-m seed=tag(a,choice(0,1)) | 2
-m placement.parts=[q],[q,k] | 2
-m structure=lora,circulant placement=adapter_houlsby,weight_qkv | 3
-m | 1
++seed=3 | 1
seed=4294967295 | 1
seed=1_000 | 1
optim.max_grad_norm=null | 1
trainer.max_steps=null | 1
'output_dir="ü mit Leerzeichen"' | 1
'table.title="a $ and <b>"' | 1
output_dir=a$b | 1
output_dir='${oc.env:HOME}' | 1
tracking.tags=[a,b] | 1
debug=tiny | 1
"""


def cases(text: str) -> list[str]:
    return [case.strip() for line in text.strip().splitlines() for case in line.split(" | ")]


def refused(command: str, entry: object) -> None:
    with pytest.raises(ConfigError) as caught:
        check_command(shlex.split(command), entry)  # type: ignore[arg-type]
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith((".", "?")), sentence
    assert "Traceback" not in sentence


@pytest.mark.sample(16)
@pytest.mark.parametrize("command", cases(BAD))
def test_a_bad_override_is_one_sentence(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NOPE", raising=False)
    refused(command, TRAIN)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.sample(16)
@pytest.mark.parametrize("command", cases(BAD_STUDIES))
def test_a_bad_override_of_a_study_is_one_sentence(command: str) -> None:
    refused(command, APPROXIMATE)


@pytest.mark.sample(16)
@pytest.mark.parametrize("case", LEGAL.strip().splitlines())
def test_an_odd_but_legal_override_works(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command, _, members = case.rpartition(" | ")
    assert len(check_command(shlex.split(command), TRAIN)) == int(members)
    assert list(tmp_path.iterdir()) == []


def test_a_setting_that_refers_to_a_swept_one_follows_it() -> None:
    members = check_command(["-m", "seed=1,2", "trainer.epochs=${seed}"], TRAIN)
    assert [(member.config.seed, member.config.trainer.epochs) for member in members] == [(1, 1), (2, 2)]


@pytest.mark.sample(16)
@pytest.mark.parametrize("question", [["--cfg", "job"], ["--cfg=job"], ["--help"]])
def test_a_question_is_checked_and_allowed(question: list[str]) -> None:
    check_question([*question, "seed=3"], TRAIN)
    with pytest.raises(ConfigError, match="did you mean circulant"):
        check_question([*question, "structure=circulnt"], TRAIN)
    with pytest.raises(ConfigError, match="seed=x"):
        check_question([*question, "seed=x"], TRAIN)


def kinds(hint: object) -> set[object]:
    """The kinds that a field's type is made of."""
    if get_origin(hint) in (list, Union, types.UnionType):
        return {kind for part in get_args(hint) for kind in kinds(part)}
    return {hint}


def test_every_number_of_the_schema_has_bounds() -> None:
    numbers = {setting.key for setting in settings(RunConfig()) if setting.kind in (int, float)}
    assert numbers == set(BOUNDS)
    # Counted in another way: every field of every node whose type mentions a number.
    config = RunConfig()
    nodes = {"": config} | {f"{f.name}.": getattr(config, f.name) for f in fields(RunConfig)}
    mentioned = {
        f"{prefix}{field.name}"
        for prefix, node in nodes.items()
        for field in getattr(node, "__dataclass_fields__", {}).values()
        if kinds(field.type) & {int, float}
    }
    assert mentioned == set(BOUNDS)
    for study in STUDIES.values():
        assert {s.key for s in settings(study.options(), "study.") if s.kind in (int, float)} <= set(STUDY_BOUNDS)


def test_bounds_hold_their_ends_as_they_say() -> None:
    closed, opened = Bounds(1, 3), Bounds(1, 3, above=True, below=True)
    assert [closed.hold(value) for value in (0, 1, 3, 4, float("nan"))] == [False, True, True, False, False]
    assert [opened.hold(value) for value in (1, 2, 3, float("nan"))] == [False, True, False, False]
    assert (str(closed), str(opened)) == ("of at least 1 and at most 3", "above 1 and below 3")
