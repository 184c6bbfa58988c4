"""A structure that the project does not have, added by the steps of CONTRIBUTING.md and by nothing else."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from surm.methods import names
from surm.shared.paths import CONFIG_DIRECTORY
from surm.structures import STRUCTURES, build, functional, structure_class
from surm.structures.base import Fit, Shape
from surm.structures.family import Family
from surm.structures.kernels import KERNELS
from tests.contract.cases import BACKENDS, draw
from tests.experiments.test_experiments import SHRUNK, reproduce

# --- step 1: the family -----------------------------------------------------------------------------------------------


class Hankel(Family):
    """W[i, j] = t[i + j]: a Toeplitz matrix upside down. t (m + n - 1,) starts at zero."""

    name = "hankel"
    equation = "none"
    option_rules: ClassVar = {}

    @classmethod
    def _parameter_shapes(cls, m: int, n: int, **options: Any) -> dict[str, Shape]:
        return {"t": (m + n - 1,)}

    def _product(self, x: Tensor) -> Tensor:
        return functional.toeplitz_product(self._factors(x.dtype)[0], x.flip(-1), self.m)

    @staticmethod
    def dense_form(generators: Sequence[Tensor], m: int, n: int) -> Tensor:
        return generators[0].unfold(0, n, 1)

    def _approximate(self, matrix: Tensor) -> Fit | None:
        flipped = matrix.flip(1).cpu().numpy()
        means = [flipped.diagonal(offset).mean() for offset in range(self.n - 1, -self.m, -1)]
        self._factors()[0].copy_(torch.tensor(means))
        return None


@pytest.fixture(autouse=True)
def _added(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(STRUCTURES, Hankel.name, Hankel)  # step 2: the registry
    hankel = names.Style("Hankel", names.BLUE, "8", filled=True)
    monkeypatch.setitem(names.METHODS, Hankel.name, hankel)  # step 3: what tables call it
    conf = tmp_path / "conf"
    shutil.copytree(CONFIG_DIRECTORY, conf)
    (conf / "structure" / "hankel.yaml").write_text("# Constant along antidiagonals.\nname: hankel\n")  # step 4
    for module in [module for name, module in sys.modules.items() if name.startswith("surm.")]:
        if hasattr(module, "CONFIG_DIRECTORY"):
            monkeypatch.setattr(module, "CONFIG_DIRECTORY", conf)


# --- step 5: a dense twin by SciPy ------------------------------------------------------------------------------------


def twin(t: np.ndarray, m: int, n: int) -> np.ndarray:
    return scipy.linalg.hankel(t[:m], t[m - 1 : m + n - 1])


@pytest.mark.parametrize(("m", "n"), [(4, 9), (7, 7)], ids=["rectangular", "prime"])
@pytest.mark.parametrize("multiply", BACKENDS.values(), ids=BACKENDS)
def test_products_and_gradients_are_those_of_the_twin(m: int, n: int, multiply) -> None:
    structure = build("hankel", m, n, dtype=torch.float64)
    assert not structure.dense().any()
    structure.reset_parameters(False)
    x, g = draw(5, n).requires_grad_(), draw(5, m, seed=1)
    W = twin(structure.t.detach().numpy(), m, n)
    np.testing.assert_allclose(structure.dense().detach(), W)
    y = multiply(structure, x)
    np.testing.assert_allclose(y.detach(), x.detach().numpy() @ W.T, atol=1e-12)
    x_gradient, t_gradient = torch.autograd.grad(y, [x, structure.t], g)
    np.testing.assert_allclose(x_gradient, g.numpy() @ W, atol=1e-12)
    H = g.numpy().T @ x.detach().numpy()
    expected = [(H * twin(unit, m, n)).sum() for unit in np.eye(m + n - 1)]
    np.testing.assert_allclose(t_gradient, expected, atol=1e-12)


def test_what_is_derived() -> None:
    structure = build("hankel", 6, 10)
    assert structure_class("hankel").num_parameters(6, 10) == 15
    # A transform of x and one back, both of length 15, and no other multiplication.
    assert structure.work == ("hankel", 6, 10, pytest.approx(2 * 15 * np.log2(15)), 0)
    assert KERNELS["hankel"].by_outer is None
    matrix = draw(6, 10)
    nearest = structure_class("hankel").nearest(matrix)
    basis = np.array([twin(unit, 6, 10).ravel() for unit in np.eye(15)]).T
    expected = basis @ np.linalg.lstsq(basis, matrix.numpy().ravel(), rcond=None)[0]
    np.testing.assert_allclose(nearest.dense().detach().numpy().ravel(), expected, atol=1e-12)


@pytest.mark.slow
def test_it_runs_to_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    reproduce("smoke/digits", ["model=tiny_vit", *SHRUNK, "structure=linear_probe,hankel"], monkeypatch)
    table = (tmp_path / "outputs" / "tables" / "smoke_digits.md").read_text()
    assert "| Hankel |" in table
