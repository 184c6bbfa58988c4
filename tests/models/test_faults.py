"""Folders of models from other hands: every fault of a kind is one sentence, before anything is written."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from surm.config.compose import compose_run, composer
from surm.config.signature import asked
from surm.models import check_model, load_backbone, model_image_size
from surm.models.tiny import character_tokenizer
from surm.shared.errors import ModelError

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each kind: text and images of transformers, images of timm."""
    root = tmp_path_factory.mktemp("models")
    BertForSequenceClassification(BertConfig(**SMALL, vocab_size=150)).save_pretrained(root / "text")
    character_tokenizer().save_pretrained(root / "text")
    ViTForImageClassification(ViTConfig(**SMALL, image_size=32, patch_size=8)).save_pretrained(root / "image")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(root / "image")
    module = timm.create_model("vit_tiny_patch16_224", num_classes=3, **VIT)
    save_for_hf(module, root / "timm", safe_serialization=True, model_args=VIT)
    return root


@pytest.fixture
def copy(folders, tmp_path):
    return lambda kind: Path(shutil.copytree(folders / kind, tmp_path / kind))


def refused(folder):
    """The sentence with which the model is refused before it is loaded; loading refuses it too."""
    before = {file: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    arguments = {"name": "own", "source": "local", "path": str(folder)}
    sentences = []
    for read in (lambda: check_model(**arguments), lambda: load_backbone(**arguments, num_labels=2)):
        with pytest.raises(ModelError) as error:
            read()
        sentences.append(str(error.value))
    assert {file: file.read_bytes() for file in folder.iterdir() if file.is_file()} == before
    for sentence in sentences:
        assert "\n" not in sentence
        assert sentence.endswith(".")
    return sentences[0]


TEXT_SETTINGS = [
    *({"hidden_size": value} for value in ("a", -1, 0, 33, 1.5, [32], None, 10**12)),
    *({"num_attention_heads": value} for value in (0, "2", -1, 3)),
    *({"num_hidden_layers": value} for value in (1.5, -1, 10**7, "two", [2])),
    *({"vocab_size": value} for value in (None, "many", -1, 10**9)),
    *({"intermediate_size": value} for value in ([], -3, "x")),
    *({"max_position_embeddings": value} for value in (-5, "x", 10**9)),
    *({"hidden_act": value} for value in ("nope", 3, None)),
    *({"model_type": value} for value in (["bert"], {}, None, 3, "", "timm", "berty")),
    *({"id2label": value} for value in ("x", [1])),
    {"layer_norm_eps": "x"},
    {"pad_token_id": 10**6},
    {"dtype": "nope"},
    {"attention_probs_dropout_prob": "x"},
    {"type_vocab_size": -1},
]


@pytest.mark.sample(6)
@pytest.mark.parametrize("change", TEXT_SETTINGS, ids=str)
def test_settings_of_wrong_types_and_sizes_are_refused(change, copy):
    folder = copy("text")
    config = folder / "config.json"
    settings = {key: value for key, value in (json.loads(config.read_text()) | change).items() if value is not None}
    if None in change.values() and "model_type" not in change:
        settings |= change
    config.write_text(json.dumps(settings))
    refused(folder)


@pytest.mark.sample(6)
@pytest.mark.parametrize("content", ["", "{", "[]", "3", '"bert"', "null", "[" * 100_000, "{}", "\x00", '{"a": NaN}'])
@pytest.mark.parametrize("kind", ["text", "image", "timm"])
def test_descriptions_that_are_no_settings_are_refused(content, kind, copy):
    folder = copy(kind)
    (folder / "config.json").write_text(content)
    refused(folder)


TIMM_SETTINGS = [
    *({"architecture": value} for value in ("nope", 3, [], "vit_tiny_patch16_224; rm")),
    *({"model_args": value} for value in ("x", [1], {"depth": 10**7}, {"depth": -1}, {"embed_dim": "a"}, {"nope": 1})),
    *({"pretrained_cfg": {"mean": value}} for value in ("abc", [0.5], [0.5, 0.5, float("inf")])),
    *({"pretrained_cfg": {"std": value}} for value in ([0.0, 1.0, 1.0], "abc", [-1.0, 1.0, 1.0])),
    *({"pretrained_cfg": {"crop_pct": value}} for value in (-1, "x", 7)),
    *({"pretrained_cfg": {"interpolation": value}} for value in ("lanczos", "random", 3)),
    {"pretrained_cfg": "x"},
]


@pytest.mark.sample(6)
@pytest.mark.parametrize("change", TIMM_SETTINGS, ids=str)
def test_settings_of_timm_that_are_impossible_are_refused(change, copy):
    folder = copy("timm")
    config = json.loads((folder / "config.json").read_text())
    for key, value in change.items():
        both = isinstance(value, dict) and isinstance(config.get(key), dict)
        config[key] = {**config[key], **value} if both else value
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder)


WEIGHTS = {
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-100]),
    "cut in its head": lambda file: file.write_bytes(file.read_bytes()[:100]),
    "empty": lambda file: file.write_bytes(b""),
    "text": lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\nsize 440\n"),
    "no tensor": lambda file: save_file({}, file),
    "one tensor": lambda file: save_file({"x": torch.zeros(2)}, file),
    "half of the tensors": lambda file: save_file(dict(list(load_file(file).items())[:4]), file),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "a cut .bin": lambda file: (
        torch.save(load_file(file), file.with_name("pytorch_model.bin")),
        file.with_name("pytorch_model.bin").write_bytes(file.with_name("pytorch_model.bin").read_bytes()[:-300]),
        file.unlink(),
    ),
    "an empty .bin": lambda file: (file.with_name("pytorch_model.bin").write_bytes(b""), file.unlink()),
    "code in a .bin": lambda file: (torch.save({"x": Path}, file.with_name("pytorch_model.bin")), file.unlink()),
    "no tensors in a .bin": lambda file: (torch.save([1, 2], file.with_name("pytorch_model.bin")), file.unlink()),
    "a shard of two": lambda file: file.rename(file.with_name("model-00001-of-00002.safetensors")),
    "no weights": lambda file: file.unlink(),
}


@pytest.mark.sample(6)
@pytest.mark.parametrize("fault", WEIGHTS)
@pytest.mark.parametrize("kind", ["text", "image", "timm"])
def test_damaged_weights_are_named_before_they_are_read(fault, kind, copy):
    folder = copy(kind)
    WEIGHTS[fault](folder / "model.safetensors")
    assert str(folder) in refused(folder)


TOKENIZERS = {
    "none": lambda folder: [file.unlink() for file in folder.glob("tokenizer*")],
    "none but settings": lambda folder: (folder / "tokenizer.json").unlink(),
    "an empty vocabulary": lambda folder: (
        [file.unlink() for file in folder.glob("tokenizer*")],
        (folder / "vocab.txt").write_text(""),
    ),
    "special tokens alone": lambda folder: (
        [file.unlink() for file in folder.glob("tokenizer*")],
        (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n"),
    ),
    "a damaged file": lambda folder: (folder / "tokenizer.json").write_text("{"),
    "an empty file": lambda folder: (folder / "tokenizer.json").write_text(""),
    "a file of something else": lambda folder: (folder / "tokenizer.json").write_text('{"version": "1.0"}'),
    "damaged settings": lambda folder: (folder / "tokenizer_config.json").write_text("["),
    "another model's": lambda folder: (
        [file.unlink() for file in folder.glob("tokenizer*")],
        (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *map(str, range(900))])),
    ),
}


@pytest.mark.sample(6)
@pytest.mark.parametrize("fault", TOKENIZERS)
def test_no_text_model_trains_on_unknown_tokens(fault, copy):
    folder = copy("text")
    TOKENIZERS[fault](folder)
    assert "okenizer" in refused(folder)


PROCESSORS = [
    *({"image_mean": value} for value in ("abc", [0.5], None)),
    *({"image_std": value} for value in ([0.0, 1.0, 1.0], [1.0])),
    *({"size": value} for value in ({}, {"height": 0, "width": 0}, {"height": "x"}, {"height": 10**7, "width": 10**7})),
    *({"resample": value} for value in (99, 1, "x")),
]


@pytest.mark.sample(6)
@pytest.mark.parametrize("change", [*PROCESSORS, "{", "", "[]", "none"], ids=str)
def test_impossible_preprocessing_is_refused(change, copy):
    folder = copy("image")
    file = folder / "preprocessor_config.json"
    if change == "none":
        file.unlink()
    else:
        file.write_text(change if isinstance(change, str) else json.dumps(json.loads(file.read_text()) | change))
    refused(folder)


@pytest.mark.sample(6)
@pytest.mark.parametrize("kind", ["text", "image", "timm"])
def test_whole_folders_pass(kind, folders):
    check_model("own", source="local", path=str(folders / kind))
    assert load_backbone("own", source="local", path=str(folders / kind), num_labels=2).modality in ("text", "image")


# --- the size of the built-in model is no other's ---------------------------------------------------------------------


@pytest.mark.sample(6)
@pytest.mark.parametrize(
    ("kind", "dataset"), [("text", "dataset=valence"), ("image", "dataset=digits"), ("timm", "dataset=digits")]
)
def test_a_named_model_keeps_its_own_size(kind, dataset, folders):
    with composer():
        config = compose_run(["model.source=local", "model.name=own", f"model.path={folders / kind}", dataset])
    assert config.model.image_size is None
    assert "image_size" not in asked(config)["model"]


def test_the_built_in_size_is_part_of_a_run_s_identity_as_before():
    with composer():
        for given, size in (([], 42), (["model.image_size=42"], 42), (["model.image_size=56"], 56)):
            assert asked(compose_run(["dataset=digits", *given]))["model"]["image_size"] == size
        assert "image_size" not in asked(compose_run(["model=tiny_vit", "dataset=digits"]))["model"]
    assert model_image_size("builtin_vit") == load_backbone("builtin_vit", num_labels=2).image_size == 42


def test_readme_s_command_composes(tmp_path):
    """A model of timm by its name, on a folder of pictures: nothing of the default model stays."""
    from PIL import Image

    for split in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / split / label).mkdir(parents=True)
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / split / label / "0.png")
    name = "vit_small_patch16_224"
    with composer():
        config = compose_run(
            ["model.source=timm", f"model.name={name}", "dataset=image_folder", f"dataset.path={tmp_path}"]
        )
    assert asked(config)["model"] == {"name": name, "source": "timm", "revision": "main"}
