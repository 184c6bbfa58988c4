"""What a run is asked, as dataclasses; `conf/` holds their values."""

from dataclasses import dataclass, field
from typing import Any

from surm.methods.registry import AnyMethodConfig
from surm.methods.schema import PlacementConfig, StructureConfig


@dataclass
class ModelConfig:
    name: str = "builtin_vit"
    source: str | None = None  # timm | transformers | local, for a name that conf/model does not have
    revision: str | None = None  # of the hub; null: the pinned one, or main for a name with a source
    path: str | None = None  # folder with the hub's files, instead of the hub
    image_size: int | None = None  # pixels; null: the model's own
    dropout: float | None = None  # of the frozen model's own layers while training; null: the model's own

    def origin(self) -> dict[str, Any]:
        """What tells where the model comes from, beside its name, as `surm.models` takes it."""
        return {"source": self.source, "revision": self.revision, "path": self.path}


@dataclass
class DatasetConfig:
    name: str = "digits"
    path: str | None = None  # folder with the task's files, instead of the hub
    fraction: float = 1.0  # of the training split: nested, stratified subsets by seed
    columns: dict[str, str | None] = field(default_factory=dict)  # of dataset=table: text, text_pair, image, label
    pairs: int | None = None  # of dataset=uuid: how many
    block_size: int | None = None  # tokens; of dataset=text and docstrings a block's, of instruct the most
    evaluate_on: str = "test"  # test | selection (a fixed slice of the training split, for tuning)

    def origin(self) -> dict[str, Any]:
        """What tells where the data come from, beside their name, as `surm.data` takes it."""
        options = {"pairs": self.pairs, "block_size": self.block_size}
        return {
            "path": self.path,
            "columns": {key: name for key, name in self.columns.items() if name} or None,
            "options": {key: value for key, value in options.items() if value is not None} or None,
        }


@dataclass
class OptimConfig:
    lr: float | None = None  # null: the rate found by `make tune` for this model, dataset and method
    head_lr: float | None = None  # of the task head; null: the same rate
    weight_decay: float = 0.01
    decay_structure: bool = False  # the authors decay structure parameters too
    beta1: float = 0.9
    beta2: float = 0.999
    warmup_ratio: float = 0.06
    schedule: str = "linear"  # linear | cosine | constant
    max_grad_norm: float | None = 1.0


@dataclass
class SearchConfig:
    """How `make tune` searches the learning rate; no part of a run's identity, which holds the rate itself."""

    # family: one rate for a method's variants on a data set, and for the task head; run: a rate for each length, batch
    # and rank, and a common one for the head, chosen on the linear probe
    by: str = "family"
    values: int = 5  # of each method, at first; of by=run
    seeds: list[int] = field(default_factory=lambda: [100, 101])  # none that is reported; of by=run


@dataclass
class TrainerConfig:
    epochs: int = 3
    batch_size: int = 32
    gradient_accumulation: int = 1
    precision: str = "no"  # no | bf16 | fp16
    max_steps: int | None = None
    gradient_checkpointing: bool = False  # less memory, more time
    compile: bool = False  # torch.compile
    evaluate_every: int = 1  # epochs; always after the last
    eval_batch_size: int = 128
    log_every: int = 10  # steps
    checkpoint_every: int = 25  # steps
    threads: int | None = None
    workers: int = 0  # processes that decode images


@dataclass
class TrackingConfig:
    name: str = "none"  # none | wandb
    mode: str = "online"  # online | offline
    project: str = "surm"
    entity: str | None = None  # null: the account's own
    tags: list[str] = field(default_factory=list)
    log_adapter: bool = False  # the trained adapter as an artifact, too


@dataclass
class TableConfig:
    """The experiment, one table, that a run was started for; no part of its identity."""

    name: str | None = None
    title: str = ""
    claims: list[str] = field(default_factory=list)
    published: str = ""  # a file of results/papers/surm: rows that others published, shown below the table


@dataclass
class RunConfig:
    model: ModelConfig = field(default_factory=ModelConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    structure: StructureConfig = field(default_factory=AnyMethodConfig)
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    table: TableConfig = field(default_factory=TableConfig)
    seed: int = 0
    device: str = "auto"  # auto | cuda | mps | cpu
    output_dir: str = "outputs"
