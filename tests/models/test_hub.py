"""Models in the hub's layout: small, with random weights, saved as timm and transformers save what is published."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from surm.models import check_model, load_backbone, model_modality, model_revision, model_width, skeleton, weights_hash
from surm.models.tiny import character_tokenizer

BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 150}
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    """No test below may reach a network or the machine's own cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def vit(tmp_path):
    """A timm ViT with a head of 11 classes, and its folder."""
    torch.manual_seed(1)
    module = timm.create_model("vit_tiny_patch16_224", num_classes=11, **VIT)
    torch.nn.init.normal_(module.pos_embed)
    save_for_hf(module, tmp_path / "vit", safe_serialization=True, model_args=VIT, data_config={"crop_pct": 0.8})
    return module.eval(), str(tmp_path / "vit")


@pytest.fixture
def bert(tmp_path):
    """A BERT as published: pretraining heads, old names of the LayerNorm's tensors; and its folder."""
    torch.manual_seed(1)
    module = BertForMaskedLM(BertConfig(**BERT))
    module.bert.pooler = BertModel(module.config).pooler
    module.config.save_pretrained(tmp_path / "bert")
    state = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor.clone()
        for name, tensor in module.state_dict().items()
    }
    save_file(state, tmp_path / "bert/model.safetensors", metadata={"format": "pt"})
    character_tokenizer().save_pretrained(tmp_path / "bert")
    return module.eval(), str(tmp_path / "bert")


def save(module, folder, tokenizer=True, **options):
    module.save_pretrained(folder, **options)
    if tokenizer:
        character_tokenizer().save_pretrained(folder)
    return str(folder)


# --- timm -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [{"name": "vit_tiny_patch16_224", "source": "timm"}, {"name": "a", "source": "local"}]
)
def test_timm_folder_gives_the_saved_features_under_a_new_head(vit, arguments):
    original, path = vit
    backbone = load_backbone(**arguments, path=path, num_labels=5)
    images = torch.randn(2, 3, 32, 32)
    module = backbone.module.eval()
    torch.testing.assert_close(module.forward_features(images), original.forward_features(images), rtol=0, atol=0)
    assert module(x=images).shape == (2, 5)
    assert (backbone.head, backbone.image_size, backbone.crop, backbone.interpolation, backbone.input_name) == (
        ("head",),
        32,
        0.8,
        "bicubic",
        "x",
    )
    assert backbone.mean == (0.5, 0.5, 0.5)  # of AugReg's models, which Google normalised to [-1, 1]
    assert model_modality(**arguments, path=path) == "image"
    assert model_width(**arguments, path=path) == 48


def test_position_embedding_is_resampled_as_timm_resamples_it(vit):
    original, path = vit
    positions = load_backbone("a", source="local", path=path, num_labels=2, image_size=48).module.pos_embed
    original.set_input_size(img_size=48)
    torch.testing.assert_close(positions, original.pos_embed, rtol=0, atol=1e-6)
    assert positions.shape == (1, 1 + 6 * 6, 48)


def test_head_of_a_pretrained_model_is_the_first_draw_after_the_seed_and_the_only_one(vit, bert):
    for path, width in ((vit[1], 48), (bert[1], 32)):
        torch.manual_seed(7)
        backbone = load_backbone("a", source="local", path=path, num_labels=5)
        next_draw = torch.rand(3)
        torch.manual_seed(7)
        head = backbone.module.get_submodule(backbone.head[0])
        torch.testing.assert_close(head.weight, torch.empty(5, width).normal_(std=0.02), rtol=0, atol=0)
        assert head.bias.tolist() == [0.0] * 5
        assert torch.rand(3).equal(next_draw)


def test_weights_of_another_timm_model_are_refused(vit, tmp_path):
    file = f"{vit[1]}/model.safetensors"
    state = load_file(file)
    for changed in (
        {name: tensor for name, tensor in state.items() if name != "blocks.1.mlp.fc1.weight"},
        state | {"norm_pre.weight": torch.ones(48)},
        state | {"norm.weight": torch.ones(47)},
    ):
        save_file(changed, file)
        with pytest.raises(ValueError, match=r"The weights of model.path=.* are not those of the model") as error:
            load_backbone("a", source="local", path=vit[1], num_labels=2)
        assert "\n" not in str(error.value)


def test_a_folder_of_another_architecture_is_refused(vit, bert):
    for name, path, found in (
        ("vit_b16", vit[1], "architecture=vit_tiny_patch16_224, not vit_base_patch16_224"),
        ("bert_base", bert[1], "hidden_size=32, not 768"),
        ("roberta_base", bert[1], "model_type=bert, not roberta"),
    ):
        with pytest.raises(ValueError, match=f"holds another model: its config.json says {found}"):
            check_model(name, path=path)


# --- transformers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["transformers", "local"])
def test_published_bert_gives_its_features_under_a_new_head(bert, source):
    original, path = bert
    backbone = load_backbone("some/bert", source=source, path=path, num_labels=3)
    batch = backbone.tokenizer(["good", "bad!"], padding=True, return_tensors="pt")
    module = backbone.module.eval()
    expected = original.bert(**batch)
    found = module.bert(**batch)
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, rtol=0, atol=0)
    torch.testing.assert_close(found.pooler_output, expected.pooler_output, rtol=0, atol=0)
    assert module(**batch).logits.shape == (2, 3)
    assert (backbone.head, backbone.modality) == (
        ("classifier",),
        model_modality("some/bert", source=source, path=path),
    )
    assert model_width("some/bert", source=source, path=path) == 32


@pytest.mark.parametrize(
    ("module", "head"),
    [
        (RobertaForSequenceClassification(RobertaConfig(**BERT, num_labels=7)), ("classifier",)),
        (
            DistilBertForSequenceClassification(
                DistilBertConfig(vocab_size=150, dim=32, n_layers=1, n_heads=2, hidden_dim=64, num_labels=7)
            ),
            ("pre_classifier", "classifier"),
        ),
    ],
    ids=["roberta", "distilbert"],
)
def test_fine_tuned_head_is_replaced_whatever_its_shape(module, head, tmp_path):
    path = save(module, tmp_path / "model")
    torch.manual_seed(7)
    backbone = load_backbone("a", source="local", path=path, num_labels=2)
    assert backbone.head == head
    torch.manual_seed(7)
    for name in head:
        for layer in backbone.module.get_submodule(name).modules():
            if isinstance(layer, torch.nn.Linear):
                torch.testing.assert_close(layer.weight, torch.empty_like(layer.weight).normal_(std=0.02))
    stored, loaded = module.state_dict(), backbone.module.state_dict()
    assert all(loaded[name].equal(stored[name]) for name in loaded if not name.startswith(head))


def test_vision_model_of_transformers_comes_with_its_image_processor(tmp_path):
    torch.manual_seed(1)
    shape = {key: BERT[key] for key in BERT if key != "vocab_size"}
    original = ViTForImageClassification(ViTConfig(**shape, image_size=32, patch_size=8, num_labels=7)).eval()
    path = save(original, tmp_path / "vit", tokenizer=False)
    ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3]).save_pretrained(path)
    backbone = load_backbone("a", source="local", path=path, num_labels=2)
    images = {backbone.input_name: torch.randn(2, 3, 32, 32)}
    found, expected = backbone.module.eval().vit(**images), original.vit(**images)
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, rtol=0, atol=0)
    assert (backbone.image_size, backbone.crop, backbone.mean) == (32, 1.0, (0.1, 0.2, 0.3))
    assert (backbone.interpolation, backbone.input_name) == ("bilinear", "pixel_values")
    with pytest.raises(ValueError, match="image_size=64: a takes 32 pixels and no other size"):
        check_model("a", source="local", path=path, image_size=64)


@pytest.mark.parametrize("left_out", ["bert.encoder.layer.1.output.dense.weight", "bert.pooler.dense.bias"])
def test_missing_tensors_are_refused(bert, left_out):
    file = f"{bert[1]}/model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if k != left_out}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"not those of the model: 1 tensors are missing .* {left_out}") as error:
        load_backbone("a", source="local", path=bert[1], num_labels=2)
    assert "\n" not in str(error.value)


# --- files ------------------------------------------------------------------------------------------------------------


def test_sharded_and_pickled_weights_are_read_and_hashed(bert, tmp_path):
    whole = load_backbone("a", source="local", path=bert[1], num_labels=2)
    module = BertForSequenceClassification(whole.module.config)
    module.load_state_dict(whole.module.state_dict())
    shards = save(module, tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 1
    torch_file = save(module, tmp_path / "torch")
    (tmp_path / "torch/model.safetensors").unlink()
    torch.save(module.state_dict(), tmp_path / "torch/pytorch_model.bin")
    hashes = set()
    for path in (bert[1], shards, torch_file):
        backbone = load_backbone("a", source="local", path=path, num_labels=2)
        assert all(
            tensor.equal(backbone.module.state_dict()[name])
            for name, tensor in module.state_dict().items()
            if not name.startswith("classifier")
        )
        hashes.add(backbone.content_hash)
        assert backbone.content_hash == weights_hash("a", source="local", path=path)
    assert len(hashes) == 3


def test_hash_of_a_folder_is_that_of_its_weight_file(vit):
    expected = hashlib.sha256(Path(vit[1], "model.safetensors").read_bytes()).hexdigest()
    assert weights_hash("a", source="local", path=vit[1]) == expected


def test_timm_reads_a_pickled_file_too(vit):
    original, path = vit
    Path(path, "model.safetensors").unlink()
    torch.save(original.state_dict(), Path(path, "pytorch_model.bin"))
    loaded = load_backbone("a", source="local", path=path, num_labels=2).module.state_dict()
    assert all(tensor.equal(loaded[name]) for name, tensor in original.state_dict().items() if "head" not in name)


@pytest.mark.parametrize("name", ["vit_b16", "bert_base"])
def test_without_a_network_the_sentence_says_how_to_fetch_the_files(name):
    for ask in (lambda: weights_hash(name), lambda: load_backbone(name, num_labels=2)):
        with pytest.raises(
            FileNotFoundError, match=r"cannot be fetched, HF_HUB_OFFLINE is set: `hf download "
        ) as error:
            ask()
        assert "model.path=<folder>" in str(error.value)
        assert "\n" not in str(error.value)


def test_a_cached_snapshot_is_enough(bert, tmp_path):
    """huggingface_hub's cache: refs/<branch> names the commit whose files lie in snapshots/<commit>."""
    repository = tmp_path / "cache/models--some--bert"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0" * 40)
    shutil.copytree(bert[1], repository / "snapshots" / ("0" * 40))
    backbone = load_backbone("some/bert", source="transformers", num_labels=2)
    assert backbone.content_hash == weights_hash("a", source="local", path=bert[1])
    assert model_revision("some/bert", source="transformers") == "main"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "bert_bse"}, "no model 'bert_bse'.*or say with model.source=.*did you mean bert_base"),
        ({"name": "a", "source": "locall"}, "model.source=locall: allowed are .*did you mean local"),
        ({"name": "a", "source": "local"}, "give the model's folder as model.path="),
        ({"name": "bert_base", "source": "timm"}, "bert_base has a source already; leave it out"),
        ({"name": "vit_bse_patch16_224", "source": "timm"}, "did you mean vit_base_patch16_224"),
        ({"name": "vit_base_patch16_224.augreg", "source": "timm"}, "no such weights; choose one of .*augreg_in21k"),
        ({"name": "builtin_vit", "path": "somewhere"}, "builtin_vit is not read from a folder"),
        ({"name": "vit_b16", "image_size": 43}, "image_size=43: .* 16 pixels wide"),
        ({"name": "builtin_vit", "image_size": 43}, "image_size=43: .* 14 pixels wide"),
        ({"name": "tiny_vit", "image_size": 43}, "image_size=43: .* 7 pixels wide"),
        ({"name": "vit_small_patch32_224", "source": "timm", "image_size": 80}, "image_size=80: .* 32 pixels wide"),
        ({"name": "bert_base", "image_size": 48}, "image_size=48: bert_base reads text"),
    ],
)
def test_impossible_models_are_one_sentence(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        check_model(**arguments)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith((".", "?"))


def test_missing_files_are_one_sentence(bert, tmp_path):
    folder = tmp_path / "empty"
    cases = [(str(folder), "is no folder: `hf download google-bert/bert-base-uncased --revision ")]
    for path, message in cases:
        with pytest.raises(FileNotFoundError, match=message):
            check_model("bert_base", path=path)
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty holds no config.json: `hf download google-bert"):
        check_model("bert_base", path=str(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is not valid JSON"):
        check_model("a", source="local", path=str(folder))
    (folder / "config.json").write_text(json.dumps({"model_type": "vits"}))
    with pytest.raises(ValueError, match=r"model_type=vits in config.json: transformers classifies neither"):
        check_model("a", source="local", path=str(folder))
    (folder / "config.json").write_text(BertConfig(**BERT).to_json_string())
    with pytest.raises(FileNotFoundError, match=r"empty holds no model.safetensors"):
        check_model("a", source="local", path=str(folder))


# --- skeletons --------------------------------------------------------------------------------------------------------


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Parameters without the head. BERT: transformers' BertModel with pooler, and the paper's "almost 2000x"
        # (section 6: 109,482,240 / 55,296); BERT-large likewise. RoBERTa: RobertaModel without pooler.
        ("bert_base", 109_482_240),
        ("bert_large", 335_141_888),
        ("roberta_base", 124_055_040),
        # By hand: patches 3 x 16^2 x d + d, class token d, positions 197 d, 12 or 24 layers of 12 d^2 + 13 d, norm 2 d.
        ("vit_b16", 85_798_656),
        ("vit_l16", 303_301_632),
        # As ViT-B/16, with a norm before the blocks (2 d) and no bias of the patches (d).
        ("clip_vit_b16", 85_798_656 + 768),
    ],
)
def test_skeletons_have_the_published_sizes(name, expected):
    state = torch.get_rng_state()
    backbone = skeleton(name, num_labels=2)
    head = sum(parameters(backbone.module.get_submodule(part)) for part in backbone.head)
    assert parameters(backbone.module) - head == expected
    assert {parameter.device.type for parameter in backbone.module.parameters()} == {"meta"}
    assert torch.get_rng_state().equal(state)
    assert model_modality(name) == backbone.modality


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_vit"])
def test_skeleton_is_the_loaded_module(name):
    loaded, bones = load_backbone(name, num_labels=3), skeleton(name, num_labels=3)
    shapes = [{key: value.shape for key, value in b.module.state_dict().items()} for b in (loaded, bones)]
    assert shapes[0] == shapes[1]
    assert (bones.head, bones.image_size, bones.mean, bones.crop) == (
        loaded.head,
        loaded.image_size,
        loaded.mean,
        loaded.crop,
    )
    assert bones.tokenizer is None


def test_skeleton_of_a_folder_is_the_loaded_module(vit, bert):
    for path, options in ((vit[1], {"image_size": 48}), (bert[1], {})):
        arguments = {"name": "a", "source": "local", "path": path, "num_labels": 3, **options}
        loaded, bones = (build(**arguments).module.state_dict() for build in (load_backbone, skeleton))
        assert {key: value.shape for key, value in loaded.items()} == {key: value.shape for key, value in bones.items()}


def test_clip_keeps_the_activation_of_its_pretraining():
    from timm.layers import QuickGELU

    assert isinstance(skeleton("clip_vit_b16", num_labels=2).module.blocks[0].mlp.act, QuickGELU)
