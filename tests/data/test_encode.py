import numpy as np
import pytest
import torch
from PIL import Image
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


def picture(side):
    return np.random.default_rng(side).integers(256, size=(side, side, 3), dtype=np.uint8)


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
    dataset = encode(split_of(picture(8)), vit)
    assert dataset[0] is dataset[0]
    monkeypatch.setattr(encoding, "CACHE_BYTES", 1000)
    dataset = encode(split_of(picture(8)), vit)
    assert dataset[0] is not dataset[0]
    assert dataset[0]["x"].equal(dataset[0]["x"])
