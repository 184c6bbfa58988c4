"""What training did to the weights of a run (paper appendix B.4): size, rank and spectrum of each update."""

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import Tensor, nn

from surm.config.compose import compose_run, composer, groups
from surm.config.run import Run
from surm.data import Task, data_options, load_task
from surm.methods.registry import make_method, method_class
from surm.models import load_backbone, weights_hash
from surm.models.backbone import Backbone
from surm.records.record import Record, read_record
from surm.records.recorded import RunFolder, signature
from surm.shared.errors import ConfigError, RecordError, UserError, first_line
from surm.shared.paths import PUBLISHED
from surm.shared.threads import one_thread
from surm.tuners.targets import FUSED_PARTS as PARTS
from surm.tuners.targets import fused_parts, projection_names

EXAMPLES = 256  # of the evaluation split, for CKA
MEASURES = {
    "one_minus_cosine": "1 - cosine(W + update, W), both as vectors",
    "relative_norm": "Frobenius norm of the update over that of W",
    "rank": "singular values of the update above max(m, n) eps(float64) times the largest (torch.linalg.matrix_rank)",
    "rank_float32": "the same with eps(float32), below which trained weights are rounding",
    "largest_rank": "rank that members of the family have in general",
    "stable_rank": "squared Frobenius norm over the squared largest singular value",
    "cka": "linear CKA of the layer's output (W + update) x + b with that of the full fine-tuning run of the same "
    f"seed, over all tokens of the first {EXAMPLES} evaluation examples",
    "cka_before": "the same for the model before training",
}

Question = Mapping[str, Any]  # the `asked` block of a record
Projection = tuple[int, str]  # its layer, from 1, and its part: q, k or v
Outputs = dict[Projection, Tensor]


class Given(NamedTuple):
    """Folders with the hub's files, which no record holds."""

    model_path: str | None = None
    dataset_path: str | None = None


NOTHING_GIVEN = Given()


@one_thread()
def analyse(
    name: str,
    output_dir: str | Path = "outputs",
    say: Callable[[str], None] = print,
    given: Given = NOTHING_GIVEN,
) -> dict[str, Any]:
    """Compare the trained weights of a finished run with the backbone's, matrix by matrix, in float64.

    Args:
        name: the run's signature.
        output_dir: where runs lie.
        say: prints one line, where CKA is left out.
        given: the folders that the run had, if any.

    Returns:
        JSON-able: what was asked, and a row for each matrix with what `MEASURES` defines and its singular values,
        thinned.

    Raises:
        ConfigError: there is no such run, or its method updates no matrix.
        RecordError: the run's weights are not on this machine; the sentence holds the command that repeats it.
    """
    if not re.fullmatch("[0-9a-f]{12}", name):
        raise ConfigError(f"run={name}: a run's signature is 12 digits of 0-9 and a-f; `make status` lists runs.")
    folder = RunFolder.of(output_dir, name)
    with _whole(name, folder):
        return _analyse(name, output_dir, say, given, folder)


@contextmanager
def _whole(name: str, folder: RunFolder) -> Iterator[None]:
    """Whatever a record or trained weights that do not fit raise, as one sentence."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise RecordError(f"run {name}: {error.filename or error} is not there; repeat the run.") from error
    except Exception as error:
        raise RecordError(
            f"run {name}: its record and the trained weights in {folder.path} do not fit ({type(error).__name__}: "
            f"{first_line(error)}); move that folder away and start the run again."
        ) from error


def _analyse(
    name: str, output_dir: str | Path, say: Callable[[str], None], given: Given, folder: RunFolder
) -> dict[str, Any]:
    record = _finished(name, output_dir)
    question = record.asked
    method = make_method(question["structure"])
    adapter = question.get("placement", {}).get("form") == "adapter"
    if not method.trains_matrices and (adapter or not method.uses_placement):
        raise ConfigError(
            f"run={name}: {question['structure']['name']} updates no query, key or value matrix; choose a run of "
            "another method."
        )
    if not _has_weights(folder):
        raise RecordError(
            f"the weights of run {name} are not in {folder.path}: move what is left of it away and repeat it with "
            f"`{train_command(question, output_dir)}`."
        )
    model = question["model"]
    started_from = record.where.get("content_hashes", {}).get("weights")
    if started_from != weights_hash(model["name"], **_origin(model, given.model_path)):
        raise RecordError(f"run {name} started from other weights of {question['model']['name']} than are given now.")

    parts = [part for part in question.get("placement", {}).get("parts", PARTS) if part in PARTS]
    backbone = _backbone(question, given)
    base = {
        projection: _weight(layer)[rows] for projection, (layer, rows) in projections(backbone.module, parts).items()
    }
    before = _outputs(backbone, backbone.module, question, parts, given)
    trained = _trained(backbone, question, folder)
    after = _outputs(backbone, trained, question, parts, given)
    trained.double()
    full = full_run(question)
    full_name = signature(full)
    target = after if full_name == name else _outputs_of_full(full, output_dir, parts, say, given)
    largest = {W.shape: method.largest_rank(*W.shape) for W in base.values()}
    rows = []
    for projection, (layer, its_rows) in projections(trained, parts).items():
        W = base[projection]
        adapted = isinstance(layer, BaseTunerLayer)
        update = layer.get_delta_weight("default")[its_rows] if adapted else _weight(layer)[its_rows] - W
        alike = {"cka": after, "cka_before": before}
        rows.append(
            {"layer": projection[0], "part": projection[1]}
            | compare(W, update)
            | {"largest_rank": largest[W.shape]}
            | {
                key: _digits(cka(outputs[projection], target[projection])) if target else None
                for key, outputs in alike.items()
            }
        )
    return {
        "signature": name,
        "asked": question,
        "measures": MEASURES,
        "full_run": full_name if target else None,
        "rows": rows,
        "where": record.where,
    }


# --- numbers ---------------------------------------------------------------------------------------------------------


def compare(W: Tensor, update: Tensor) -> dict[str, Any]:
    """The numbers of one matrix (m, n), float64."""
    values = torch.linalg.svdvals(update)
    relative, size = values / values[0], max(update.shape)
    cosine = torch.cosine_similarity((W + update).flatten(), W.flatten(), dim=0)
    shown = thinned(len(values))
    return {
        "one_minus_cosine": _digits(1 - cosine.item()),
        "relative_norm": _digits((update.norm() / W.norm()).item()),
        "rank": int((relative > size * torch.finfo(torch.float64).eps).sum()),
        "rank_float32": int((relative > size * torch.finfo(torch.float32).eps).sum()),
        "stable_rank": _digits(relative.square().sum().item()),
        "singular_values": {"index": shown, "value": [_digits(values[index - 1].item()) for index in shown]},
    }


def cka(X: Tensor, Y: Tensor) -> float:
    """Linear centred kernel alignment of two representations (N, m) and (N, n) (Kornblith et al. 2019)."""
    X, Y = ((Z - Z.mean(dim=0)) for Z in (X.double(), Y.double()))
    return float((X.T @ Y).norm() ** 2 / ((X.T @ X).norm() * (Y.T @ Y).norm()))


def thinned(count: int) -> list[int]:
    """Indices 1, 2, 3, 4, 6, 8, 12, ... and the last."""
    doubled = {step * 2**power for power in range(count.bit_length()) for step in (1, 3)}
    return sorted({count, *(index for index in doubled if index < count)})


def _digits(value: float) -> float:
    return float(f"{value:.6g}")


# --- which runs ------------------------------------------------------------------------------------------------------


def _finished(name: str, output_dir: str | Path) -> Record:
    """The record of a finished run, from this machine or as published."""
    record = read_record(RunFolder.of(output_dir, name).record) or read_record(PUBLISHED / f"{name}.json")
    if record is None or record.is_study:
        raise ConfigError(
            f"run={name}: there is no such run in {output_dir}/runs or among the published ones; give the signature of "
            "a training run that `make status` lists."
        )
    if not record.finished:
        command = train_command(record.asked, output_dir)
        raise RecordError(f"run {name} is {record.status}: finish it with `{command}`.")
    return record


def _has_weights(folder: RunFolder) -> bool:
    return folder.adapter.exists() or folder.trained.exists()


def full_run(question: Question) -> dict[str, Any]:
    """What the full fine-tuning run of the same model, data, trainer and seed is asked, at its own learning rate."""
    kept = {key: value for key, value in question.items() if key not in ("structure", "placement")}
    optim = {key: value for key, value in question["optim"].items() if key not in ("lr", "decay_structure")}
    with composer():
        return Run.of(compose_run(_overrides(kept | {"structure": {"name": "full"}, "optim": optim}))).asked


def train_command(question: Question, output_dir: str | Path = "outputs") -> str:
    """The shortest `scripts/train.py` command that asks the same question."""
    with composer():
        overrides = _overrides(question)
    folder = [] if str(output_dir) == "outputs" else [f"output_dir={output_dir}"]
    return shlex.join(["python", "scripts/train.py", *overrides, *folder])


def _overrides(question: Question) -> list[str]:
    """Names, and every setting that they do not bring by themselves; call inside `composer()`."""
    structure = question["structure"]["name"]
    chosen = [
        f"model={question['model']['name']}",
        f"dataset={question['dataset']['name']}",
        f"structure={structure}" if structure in groups()["structure"] else f"structure.name={structure}",
        f"seed={question['seed']}",
    ]
    if question.get("placement", {}).get("form") == "adapter":  # without which some methods cannot be composed
        chosen.append("placement.form=adapter")
    brought = Run.of(compose_run(chosen)).asked
    sections = ("model", "dataset", "structure", "placement", "optim", "trainer")
    differing = [
        (f"{section}.{key}", value)
        for section in sections
        for key, value in question.get(section, {}).items()
        if value != brought.get(section, {}).get(key) and key not in ("name", "revision")
    ]
    return chosen + [f"{key}={_written(value)}" for key, value in differing]


def _written(value: Any) -> str:
    """A value in Hydra's grammar."""
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{_written(entry)}' for key, entry in value.items())}}}"
    return "null" if value is None else str(value)


# --- their weights and outputs ---------------------------------------------------------------------------------------


def projections(model: nn.Module, parts: Sequence[str]) -> dict[Projection, tuple[Any, slice]]:
    """Layer and rows of each query, key and value projection, adapted or not, by layer and part."""
    layers: dict[Projection, tuple[Any, slice]] = {}
    for part in parts:
        endings = tuple(f".{ending}" for ending in projection_names(model, [part]))
        for name, layer in model.named_modules():
            if isinstance(layer, (nn.Linear, BaseTunerLayer)) and name.endswith(endings):
                sizes = fused_parts(name, cast(nn.Linear, layer))
                start = list(sizes).index(part) * sizes[part] if sizes else 0
                rows = slice(start, start + sizes[part]) if sizes else slice(None)
                number = re.search(r"\.(\d+)\.", name)
                assert number is not None
                layers[int(number[1]) + 1, part] = layer, rows
    return dict(sorted(layers.items(), key=lambda item: (item[0][0], PARTS.index(item[0][1]))))


def _weight(layer: Any) -> Tensor:
    return cast(Tensor, layer.weight).detach().double()


def _origin(model: Mapping[str, Any], path: str | None) -> dict[str, Any]:
    return {"source": model.get("source"), "revision": model["revision"] if "source" in model else None, "path": path}


def _task(dataset: Mapping[str, Any], path: str | None) -> Task:
    options = {key: dataset[key] for key in data_options(dataset["name"]) if key in dataset}
    return load_task(
        dataset["name"],
        evaluate_on=dataset["evaluate_on"],
        path=path,
        columns=dataset.get("columns"),
        options=options,
    )


def _backbone(question: Question, given: Given) -> Backbone:
    model, task = question["model"], _task(question["dataset"], given.dataset_path)
    backbone = load_backbone(
        model["name"],
        num_labels=task.num_labels,
        predicts=task.objective.predicts,
        image_size=model.get("image_size"),
        **_origin(model, given.model_path),
    )
    backbone.module.eval()
    return backbone


def _trained(backbone: Backbone, question: Question, folder: RunFolder) -> nn.Module:
    """The backbone, in place, with the weights of a run."""
    if not folder.adapter.exists():
        backbone.module.load_state_dict(load_file(folder.trained), strict=False)
        return backbone.module
    module = method_class(question["structure"]["name"]).prepare(backbone.module)
    model: nn.Module = PeftModel.from_pretrained(module, folder.adapter).eval()
    return model


def _outputs_of_full(
    full: dict[str, Any], output_dir: str | Path, parts: Sequence[str], say: Callable[[str], None], given: Given
) -> Outputs | None:
    name = signature(full)
    folder = RunFolder.of(output_dir, name)
    if not _has_weights(folder):
        say(
            f"CKA is left out: the full fine-tuning run {name} to compare with is not in {folder.path}; "
            f"`{train_command(full, output_dir)}` makes it."
        )
        return None
    backbone = _backbone(full, given)
    return _outputs(backbone, _trained(backbone, full, folder), full, parts, given)


@torch.no_grad()
def _outputs(backbone: Backbone, model: nn.Module, question: Question, parts: Sequence[str], given: Given) -> Outputs:
    """What each projection gives for the first evaluation examples: a row for each token that is no padding."""
    task = _task(question["dataset"], given.dataset_path)
    encoded = task.objective.examples(task.evaluation, backbone)
    kept_of_each: Any = encoded.unfinished
    batch = encoded.finish(encoded.collate([kept_of_each[i] for i in range(min(EXAMPLES, len(encoded)))]))
    del batch["labels"]
    kept: Outputs = {}
    with _hooks(projections(model, parts), kept):
        model(**batch)
    mask = batch.get("attention_mask")
    return {projection: (out if mask is None else out[mask.bool()]).flatten(0, -2) for projection, out in kept.items()}


@contextmanager
def _hooks(layers: Mapping[Projection, tuple[Any, slice]], kept: Outputs) -> Iterator[None]:
    def keep(projection: Projection, rows: slice) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, inputs, output: kept.__setitem__(projection, output[..., rows].clone())

    handles = [layer.register_forward_hook(keep(projection, rows)) for projection, (layer, rows) in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
