"""The built-in vision model against the ONNX file that its weights come from, run by onnxruntime."""

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from surm.models import MODELS, load_backbone
from tests.tools.skips import needs

SIZE = 224  # pixels, fixed in the ONNX graph: 16 x 16 patches
TOKENS, POSITIONS = "/backbone/layernorm/Add_1", "/backbone/embeddings/Concat_6"

pytestmark = needs("builtin_vit")


@pytest.fixture(scope="module")
def reference():
    """An image, the tokens after the last LayerNorm, and the position embedding as the graph resizes it."""
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = onnx.load(MODELS["builtin_vit"].weights.locate())
    outputs = {node.name: node.output[0] for node in model.graph.node if node.name in (TOKENS, POSITIONS)}
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(output) for output in outputs.values())
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)
    results = session.run([outputs[TOKENS], outputs[POSITIONS]], {"input_image": image})
    return [torch.from_numpy(array) for array in (image, *results)]


@pytest.fixture(scope="module")
def vit():
    return load_backbone("builtin_vit", num_labels=3, image_size=SIZE).module.eval()


@torch.no_grad()
def test_tokens_equal_the_onnx_file_s(reference, vit):
    """Measured: relative difference 6e-7 with the file's resized positions, 0.016 with timm's."""
    image, tokens, positions = reference
    with_own_positions = vit.forward_features(image)
    own_positions = vit.pos_embed.clone()
    vit.pos_embed.copy_(positions)
    with_file_positions = vit.forward_features(image)
    vit.pos_embed.copy_(own_positions)
    torch.testing.assert_close(with_file_positions, tokens, rtol=0, atol=1e-4)  # the largest token entry is about 8
    assert (with_own_positions - tokens).norm() < 0.05 * tokens.norm()


@torch.no_grad()
def test_resized_positions_differ_from_the_onnx_file_s_by_antialias_alone(reference, vit):
    """timm resizes with antialias, the exported graph without: that is the whole difference."""
    positions = reference[2]
    stored = load_backbone("builtin_vit", num_labels=3, image_size=37 * 14).module.pos_embed
    grid = stored[:, 1:].reshape(1, 37, 37, 384).permute(0, 3, 1, 2)
    for antialias, expected in ((False, positions), (True, vit.pos_embed)):
        patches = interpolate(grid, (16, 16), mode="bicubic", antialias=antialias).flatten(2).transpose(1, 2)
        torch.testing.assert_close(torch.cat([stored[:, :1], patches], dim=1), expected, rtol=0, atol=1e-6)
