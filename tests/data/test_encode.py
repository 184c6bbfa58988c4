from copy import deepcopy
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torch.utils.data import DataLoader

from surm.data import Split
from surm.data import encode as encoding
from surm.data.encode import encode
from surm.models import load_backbone

WORDS = ["good", "awful", "so, so!"]


@pytest.fixture(scope="module")
def vit():
    return load_backbone("tiny_vit", num_labels=2)


@pytest.fixture(scope="module")
def bert():
    return load_backbone("tiny_bert", num_labels=2)


@pytest.fixture(scope="module")
def pair_bert(bert):
    """With BERT's own choice of inputs, which tells the two sentences apart."""
    tokenizer = deepcopy(bert.tokenizer)
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return replace(bert, tokenizer=tokenizer)


def picture(side, width=None):
    return np.random.default_rng(side).integers(256, size=(side, width or side, 3), dtype=np.uint8)


def png(image):
    stream = BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def split_of(*inputs):
    return Split(list(inputs), np.arange(len(inputs)))


@pytest.mark.parametrize("side", [8, 28, 250])
def test_images_are_resized_as_pillow_does_and_normalised(vit, side):
    image = picture(side)
    x = encode(split_of(image), vit)[0]["x"]
    resized = np.array(Image.fromarray(image).resize((28, 28), Image.Resampling.BICUBIC))
    grey_levels = x.permute(1, 2, 0).numpy() * np.array(vit.std) * 255 + np.array(vit.mean) * 255
    assert x.dtype == torch.float32
    assert np.abs(grey_levels - resized).max() < 1.01  # rounding may differ by one grey level


def test_image_files_are_read_as_rgb(vit, tmp_path):
    grey = Image.fromarray(picture(28)[..., 0])
    grey.save(tmp_path / "grey.png")
    expected = np.array(grey.convert("RGB"))
    from_file, from_array = (encode(split_of(raw), vit)[0]["x"] for raw in (tmp_path / "grey.png", expected))
    assert from_file.equal(from_array)


def test_bytes_of_an_image_file_are_read_as_the_file(vit, tmp_path):
    (tmp_path / "picture.png").write_bytes(png(picture(30, 40)))
    raws = (tmp_path / "picture.png", (tmp_path / "picture.png").read_bytes(), picture(30, 40))
    from_file, from_bytes, from_array = (encode(split_of(raw), vit)[0]["x"] for raw in raws)
    assert from_file.equal(from_bytes)
    assert from_file.equal(from_array)


@pytest.mark.parametrize("crop", [0.9, 0.875, 0.95])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (60, 91), (97, 50)])
def test_the_middle_is_cut_out_as_timm_does(vit, crop, interpolation, height, width):
    image = picture(height, width)
    settings = {"mean": vit.mean, "std": vit.std, "crop_pct": crop, "interpolation": interpolation}
    expected = create_transform(input_size=28, **settings)(Image.fromarray(image))
    x = encode(split_of(image), replace(vit, crop=crop, interpolation=interpolation))[0]["x"]
    assert x.shape == (3, 28, 28)
    assert ((x - expected) * torch.tensor(vit.std).view(3, 1, 1) * 255).abs().max() < 1.01  # one grey level


def test_the_pixels_have_the_name_that_the_model_gives_them(vit):
    example = encode(split_of(picture(8)), replace(vit, input_name="pixel_values"))[0]
    assert example.keys() == {"pixel_values", "labels"}


def test_a_batch_is_what_the_model_takes(vit):
    dataset = encode(split_of(picture(8), picture(9)), vit)
    batch = next(iter(DataLoader(dataset, 2, collate_fn=dataset.collate)))
    assert batch["labels"].tolist() == [0, 1]
    assert vit.module(batch["x"]).shape == (2, 2)


def test_text_is_padded_as_the_tokenizer_does(bert):
    dataset = encode(split_of(*WORDS), bert)
    batch = dataset.collate([dataset[index] for index in range(3)])
    expected = bert.tokenizer(WORDS, padding=True, return_tensors="pt")
    assert batch.pop("labels").tolist() == [0, 1, 2]
    assert batch.keys() == expected.keys()
    for key in batch:
        assert batch[key].equal(expected[key])


def test_pairs_are_joined_and_padded_as_the_tokenizer_does(pair_bert):
    pairs = [("good", "so, so!"), ("awful", "good good good"), ("a b", "c")]
    dataset = encode(split_of(*pairs), pair_bert)
    batch = dataset.collate([dataset[index] for index in range(3)])
    expected = pair_bert.tokenizer([a for a, _ in pairs], [b for _, b in pairs], padding=True, return_tensors="pt")
    assert batch.pop("labels").tolist() == [0, 1, 2]
    assert batch.keys() == expected.keys()
    for key in batch:
        assert batch[key].equal(expected[key])
    assert set(batch["token_type_ids"][0].tolist()) == {0, 1}


def test_long_pairs_are_cut_at_128_tokens_and_keep_both(pair_bert):
    example = encode(split_of(("word " * 200, "other " * 200)), pair_bert)[0]
    assert len(example["input_ids"]) == 128
    assert min(torch.bincount(example["token_type_ids"])) > 60


def test_values_of_a_regression_are_float32(bert):
    dataset = encode(Split(WORDS, np.array([0.5, 2.0, 4.8])), bert)
    labels = dataset.collate([dataset[index] for index in range(3)])["labels"]
    assert labels.dtype == torch.float32
    assert labels.tolist() == pytest.approx([0.5, 2.0, 4.8])


def test_padding_does_not_change_the_logits(bert):
    dataset = encode(Split(WORDS, np.zeros(3, dtype=np.int64)), bert)
    module = bert.module.eval()
    with torch.no_grad():
        together = module(**dataset.collate([dataset[index] for index in range(3)])).logits
        alone = torch.cat([module(**dataset.collate([dataset[index]])).logits for index in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_text_is_cut_at_128_tokens(bert):
    tokens = encode(split_of("word " * 200), bert)[0]["input_ids"]
    assert len(tokens) == 128
    assert tokens[-1] == bert.tokenizer.sep_token_id


def test_each_example_is_encoded_once_while_the_split_fits_in_memory(vit, monkeypatch):
    kept = encode(split_of(picture(8)), vit).unfinished
    assert kept[0] is kept[0]
    monkeypatch.setattr(encoding, "CACHE_BYTES", 1000)
    kept = encode(split_of(picture(8)), vit).unfinished
    assert kept[0] is not kept[0]
    assert kept[0]["x"].equal(kept[0]["x"])


def test_pixels_are_kept_as_bytes_and_normalised_by_one_division(vit):
    """Every grey level in every channel, against the arithmetic in float32 on whole images."""
    levels = torch.arange(256, dtype=torch.uint8).reshape(16, 16).expand(2, 3, 16, 16)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (vit.mean, vit.std))
    dataset = encode(split_of(*(picture(side) for side in range(5, 15))), vit)
    assert dataset.finish({"x": levels})["x"].equal((levels / 255 - mean) / std)
    dataset.unfinished.fill()  # arrays: nothing to decode
    assert not dataset.cache
    inputs = [dataset[index]["x"] for index in range(10)]
    assert 4 * sum(kept["x"].nbytes for kept in dataset.cache.values()) == sum(x.nbytes for x in inputs)


def test_files_are_decoded_once_and_in_parallel(vit, monkeypatch):
    decoded, decode = [], encoding.decode
    monkeypatch.setattr(encoding, "decode", lambda raw: decoded.append(raw) or decode(raw))
    pictures = [picture(side) for side in range(5, 15)]
    dataset = encode(split_of(*map(png, pictures)), vit)
    first = dataset.unfinished.__getitems__([3, 1, 3])
    assert first[0]["labels"] == 3
    assert len(decoded) == 2
    dataset.unfinished.fill()
    again = list(DataLoader(dataset.unfinished, 4, collate_fn=dataset.collate))
    assert len(decoded) == 10
    plain = encode(split_of(*pictures), vit)
    assert torch.cat([dataset.finish(batch)["x"] for batch in again]).equal(
        torch.stack([plain[index]["x"] for index in range(10)])
    )
