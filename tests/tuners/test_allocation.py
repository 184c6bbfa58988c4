"""Allocators against their papers' worked examples, schedules and PEFT's AdaLoRA."""

import numpy as np
import pytest
import torch
from peft import AdaLoraConfig, get_peft_model
from torch import nn
from torch.nn.functional import cross_entropy

from surm.structures import Structure, build
from surm.structures.gated import Gated, GatedLowRank
from surm.tuners.allocation import AdaLora, DynamicRank, LoraSquared
from tests.tuners.helpers import TWO, X, adapt, net

LABELS = torch.arange(5) % 3


def member(name: str, m: int, n: int, **values: list) -> Structure:
    options = {"rank": len(values["c"])} | ({"outer_rank": len(values["V"])} if "V" in values else {})
    structure = build(name, m, n, dtype=torch.float64, **options)
    with torch.no_grad():
        for parameter, value in values.items():
            getattr(structure, parameter).copy_(torch.tensor(value, dtype=torch.float64))
    return structure


DORA = {"c": [1, 2], "B": [[1, 0], [1, 2]], "A": [[3, 4], [0, 1]]}
ADALORA = {"c": [2, 0], "B": [[1, 0], [0, 1], [1, 0]], "A": [[1, 1], [0, 1]]}
LORA2 = {"c": [2, 3], "U": [[1], [2]], "P": [[1, -1]], "Q": [[1], [1]], "V": [[1, 0, 2]]}


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("gated_low_rank", DORA, [[3, 4], [3, 8]]),
        ("gated_low_rank", ADALORA, [[2, 2], [0, 0], [2, 2]]),
        ("gated_chain", LORA2, [[-1, 0, -2], [-2, 0, -4]]),
    ],
)
def test_the_matrices_of_the_worked_examples(name, values, expected):
    structure = member(name, len(expected), len(expected[0]), **values)
    assert structure.dense().tolist() == expected
    assert structure(torch.eye(len(expected[0]), dtype=torch.float64)).T.tolist() == expected
    torch.testing.assert_close(structure.collapse().dense(), structure.dense(), rtol=0, atol=1e-12)
    kept = structure.keep(torch.tensor([True, False]))
    dropped = member(name, structure.m, structure.n, **values | {"c": [values["c"][0], 0]})
    assert kept.options["rank"] == 1
    assert torch.equal(kept.dense(), dropped.dense())


def test_the_scores_and_penalties_of_the_worked_examples():
    dora = DynamicRank(member("gated_low_rank", 2, 2, **DORA), 100, target=1, smoothing=0.0, weight=1.0)
    assert dora.penalty().item() == 0.75
    dora.after_step(0)
    [scores] = dora.scores().values()
    assert scores.tolist() == pytest.approx([0.714286, 0.404061], abs=1e-6)
    outer = [np.outer(np.array(DORA["B"])[:, i], DORA["A"][i]) * DORA["c"][i] for i in range(2)]
    norms = [np.linalg.norm(one) / np.linalg.norm(sum(outer)) for one in outer]
    assert scores.tolist() == pytest.approx(norms, abs=1e-7)
    adalora = member("gated_low_rank", 3, 2, **ADALORA)
    assert AdaLora(adalora, 100, weight=1.0).penalty().item() == pytest.approx((1 + 1.7320508) / 2, abs=1e-7)
    assert AdaLora(adalora, 100, weight=1.0, squared=True).penalty().item() == pytest.approx(4)


def test_the_penalty_of_lora_squared_is_that_of_dense_matrices():
    """The mean of all its terms, as in the authors' code, which divides their sum by their number."""
    chains = nn.ModuleList(build("gated_chain", 5, 6, rank=3, outer_rank=2, dtype=torch.float64) for _ in range(2))
    gaps, crosses = [], []
    for chain in chains:
        U, P, Q, V = (getattr(chain, name).detach().numpy() for name in "UPQV")
        gaps += [np.linalg.norm(F - np.eye(len(F))) for F in (V @ V.T, Q.T @ Q, P @ P.T, U.T @ U)]
        crosses.append(np.linalg.norm(U @ P @ Q @ V))
    assert LoraSquared(chains, 100, weight=0.3).penalty().item() == pytest.approx(0.3 * sum(gaps + crosses) / 10)
    assert LoraSquared(chains, 100, weight=0.3, cross=False).penalty().item() == pytest.approx(0.3 * sum(gaps) / 8)
    with pytest.raises(ValueError, match="the outer pair is missing"):
        LoraSquared(build("gated_low_rank", 4, 4), 100)


def test_orthonormal_factors_pay_nothing_and_have_no_gradient():
    low_rank = GatedLowRank.nearest(X[:, :5], rank=4)
    chain = build("gated_chain", 5, 6, rank=4, outer_rank=2, dtype=torch.float64)
    with torch.no_grad():
        for name in ("U", "P", "Q", "V"):
            nn.init.orthogonal_(getattr(chain, name))
        # Planes that are orthogonal to each other need rank >= 2 outer_rank.
        chain.P.copy_(torch.eye(2, 4))
        chain.Q.copy_(torch.eye(4, 2).roll(2, 0))
        for rows in (low_rank.B.T, low_rank.A):
            rows.copy_(torch.eye(*rows.shape))
    for allocator in (AdaLora(low_rank, 100), LoraSquared(chain, 100)):
        penalty = allocator.penalty()
        penalty.backward()
        assert penalty.item() == pytest.approx(0, abs=1e-6)
    gradients = [p.grad for p in (*low_rank.parameters(), *chain.parameters()) if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert all(p.grad.norm() == 0 for p in (low_rank.B, low_rank.A))


@pytest.mark.parametrize("name", ["gated_low_rank", "gated_chain"])
def test_at_the_start_only_the_gates_have_a_gradient_of_the_task(name):
    model = adapt(net(), structure=name, structure_options={"rank": 3}, target_modules=TWO)
    torch.testing.assert_close(model(X), net()(X), rtol=0, atol=0)
    cross_entropy(model(X), LABELS).backward()
    for parameter, value in ((n, p) for n, p in model.named_parameters() if p.requires_grad):
        assert value.grad.any() == parameter.endswith(".c"), parameter


# --- schedules --------------------------------------------------------------------------------------------------------


def test_the_budget_of_dynamic_rank():
    """Of 72 matrices from 12 to 8 components in 1,000 steps: cut after 150, 250, ... steps, as in the authors' code."""
    allocator = DynamicRank(
        nn.ModuleList(build("gated_low_rank", 1, 1, rank=12) for _ in range(72)), 1000, target=8, every=0.1
    )
    assert [t for t in range(1, 500) if allocator.prunes(t)] == [150, 250, 350, 450]
    assert [864 - allocator.budget(t) for t in (150, 250, 350, 450, 500, 600)] == [1, 6, 53, 181, 288, 288]
    allocator.averages = {
        key: torch.rand(12, generator=torch.Generator().manual_seed(i)) for i, key in enumerate(allocator.averages)
    }
    with torch.no_grad():
        for structure in allocator.structures.values():
            structure.gates().fill_(1.0)
    allocator.after_step(499)
    assert sum(allocator.ranks().values()) == 576
    assert len(set(allocator.ranks().values())) > 1


def test_the_budget_of_adalora():
    allocator = AdaLora(
        nn.ModuleList(build("gated_low_rank", 1, 1, rank=2) for _ in range(8)), 30, start=0.1, end=2 / 3
    )
    assert [allocator.budget(t) for t in range(13)] == [16, 16, 16, 16, 14, 13, 12, 11, 10, 10, 9, 9, 8]
    assert {allocator.budget(t) for t in range(13, 30)} == {8}
    assert [allocator.prunes(t) for t in (0, 3, 4, 19, 20, 29)] == [False, False, True, True, True, True]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": 5, "start": 0.3, "end": 0.35}, "5 steps leave none between 0.3 and 0.35 of them"),
        ({"steps": 1}, "train longer"),
        ({"steps": 100, "target": 3}, "target=3 is more than the 2 components"),
    ],
)
def test_a_schedule_that_is_impossible_is_one_sentence(settings, words):
    with pytest.raises(ValueError, match=words):
        DynamicRank(build("gated_low_rank", 3, 3, rank=2), **settings)
    with pytest.raises(ValueError, match="no gated structure is trained"):
        DynamicRank(build("low_rank", 3, 3), 100)


# --- training ---------------------------------------------------------------------------------------------------------


def trained(model, allocator, steps):
    """The loss of each step, and all gates after it."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for step in range(steps):
        loss = cross_entropy(model(X), LABELS) + allocator.penalty()
        loss.backward()
        optimizer.step()
        allocator.after_step(step)
        optimizer.zero_grad()
        yield (
            loss.item(),
            torch.cat([structure.gates().detach().clone() for structure in allocator.structures.values()]),
        )


@pytest.mark.parametrize(
    ("allocator", "name"), [(DynamicRank, "gated_low_rank"), (AdaLora, "gated_low_rank"), (LoraSquared, "gated_chain")]
)
def test_what_is_cut_may_grow_again_until_the_choice_is_final(allocator, name):
    model = adapt(net(), structure=name, structure_options={"rank": 5}, target_modules=TWO)
    chosen = allocator(model, 20, target=2, every=0.1)
    gates = torch.stack([gates for _, gates in trained(model, chosen, 20)]) != 0
    final = chosen.end - chosen.first_step
    assert (~gates[2:final] & gates[3 : final + 1]).any()  # off, then on again
    assert (gates[final:] == gates[final]).all()
    assert gates[-1].sum() == 4 == sum(chosen.ranks().values())
    model.compact()
    left = [module for module in model.modules() if isinstance(module, Gated)]
    assert sum(len(structure.gates()) for structure in left) == 4


def test_adalora_makes_the_choices_of_pefts():
    """Equal factors, data and settings: equal losses and equal masks in every step of a schedule."""
    steps, rank, final, every = 30, 4, 20, 3
    config = AdaLoraConfig(
        target_modules=TWO, init_r=rank, target_r=2, tinit=3, tfinal=steps - final, deltaT=every,
        total_step=steps, lora_alpha=32, orth_reg_weight=0.5,
    )  # fmt: skip
    torch.manual_seed(3)
    theirs = get_peft_model(net(), config)
    alpha = 32 / (rank + 1e-5)  # PEFT's scale
    ours = adapt(net(), structure="gated_low_rank", structure_options={"rank": rank}, target_modules=TWO, alpha=alpha)
    names = {"lora_A": "A", "lora_B": "B", "lora_E": "c"}
    with torch.no_grad():
        for layer in TWO:
            structure = ours.base_model.model.get_submodule(layer).surm_update["default"]
            for factor, own in names.items():
                value = getattr(theirs.base_model.model.get_submodule(layer), factor)["default"]
                getattr(structure, own).copy_(value.view_as(getattr(structure, own)))
    allocator = AdaLora(ours, steps, target=2, start=0.1, end=final / steps, every=every / steps, weight=0.5)
    # PEFT 0.21 lets an optimiser move `ranknum` too, by which it divides; the authors' code keeps it.
    factors = {n: p for n, p in theirs.named_parameters() if any(f".{factor}." in n for factor in names)}
    optimizer = torch.optim.AdamW(factors.values(), lr=0.05)
    pruned = []
    for step, (own_loss, own_gates) in enumerate(trained(ours, allocator, steps)):
        rows = [p if ".lora_A." in n else p.T for n, p in factors.items() if ".lora_E." not in n]
        penalty = 0.5 * sum(torch.linalg.norm(F @ F.T - torch.eye(len(F))) for F in rows) / len(rows)
        loss = cross_entropy(theirs(X), LABELS) + penalty
        assert own_loss == pytest.approx(loss.item(), rel=1e-5)
        loss.backward()
        optimizer.step()
        theirs.base_model.update_and_allocate(step)
        optimizer.zero_grad()
        gates = torch.cat([theirs.base_model.model.get_submodule(layer).lora_E["default"].flatten() for layer in TWO])
        assert torch.equal(own_gates == 0, gates == 0), step
        torch.testing.assert_close(own_gates, gates.detach(), rtol=1e-5, atol=1e-9)
        pruned.append(int((gates == 0).sum()))
    assert pruned[-1] == 4
    assert len(set(pruned)) > 2


@pytest.mark.parametrize("allocator", [DynamicRank, AdaLora])
def test_state_of_other_structures_is_refused(allocator):
    model = adapt(net(), structure="gated_low_rank", structure_options={"rank": 2}, target_modules=TWO)
    chosen = allocator(model, 10)
    list(trained(model, chosen, 7))
    state = {key: value.clone() for key, value in chosen.state_dict().items()}
    with pytest.raises(ValueError, match="averages of other structures"):
        chosen.load_state_dict({key: value for key, value in state.items() if "first" not in key})
    key = next(iter(state))
    for wrong in (state[key][:1], state[key].half(), torch.full_like(state[key], torch.nan)):
        with pytest.raises(ValueError, match="does not fit"):
            chosen.load_state_dict(state | {key: wrong})
    chosen.load_state_dict(state)
    for key, value in chosen.state_dict().items():
        assert torch.equal(value, state[key])
