"""The residual quantiser: shapes, masking and losses against values worked out by hand."""

import pytest
import torch

from models.semantic_ids.rqvae import Rqvae, contrastive_loss, reconstruction_losses


def tiny(codebooks: tuple[int, ...] = (4, 2), widths: tuple[int, ...] = (3, 5), latent: int = 2) -> Rqvae:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Rqvae(widths, codebooks, hidden=8, latent=latent, beta=0.25)
        for codebook in model.codebooks:
            codebook.data.normal_()
    return model


def test_quantise_by_hand() -> None:
    model = tiny(codebooks=(2, 2), widths=(2,))
    model.codebooks[0].data = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    model.codebooks[1].data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    z = torch.tensor([[9.0, 1.5], [1.5, 0.0]])
    result = model.quantise(z)
    assert result.codes.tolist() == [[1, 1], [0, 0]]
    assert result.quantised.tolist() == [[10, 1], [1, 0]]
    # Level 1: ‖(-1, 1.5)‖² = 3.25 and 2.25; level 2: ‖(-1, .5)‖² = 1.25 and .25; each counts 1 + β times.
    assert result.loss.item() == pytest.approx(1.25 * ((3.25 + 2.25) / 2 + (1.25 + 0.25) / 2))


def test_progressive_masking_sums_the_first_levels_only() -> None:
    model = tiny()
    z = torch.randn(6, 2, generator=torch.Generator().manual_seed(1))
    first, both = (model.quantise(z, torch.full((len(z),), levels)) for levels in (1, 2))
    assert torch.allclose(first.quantised, model.codebooks[0][first.codes[:, 0]])
    assert torch.allclose(both.quantised - first.quantised, model.codebooks[1][first.codes[:, 1]], atol=1e-6)
    assert torch.equal(first.codes, both.codes)  # the mask hides levels, it does not skip them
    assert first.loss.item() == both.loss.item()


def test_gradients_pass_straight_through_and_each_code_learns_from_its_own_residual() -> None:
    model = tiny()
    z = torch.randn(6, 2, generator=torch.Generator().manual_seed(1)).requires_grad_()
    result = model.quantise(z)
    result.quantised.sum().backward(retain_graph=True)
    assert z.grad is not None
    assert torch.equal(z.grad, torch.ones_like(z))
    assert model.codebooks[0].grad is None
    result.loss.backward()
    gradient = model.codebooks[0].grad
    assert gradient is not None
    used = torch.zeros(4, dtype=torch.bool)
    used[result.codes[:, 0]] = True
    assert torch.equal(gradient.abs().sum(1) > 0, used)


def test_missing_modality_changes_neither_latent_nor_loss() -> None:
    model = tiny()
    a, b = torch.randn(4, 3), torch.randn(4, 5)
    there, missing = torch.ones(4, dtype=torch.bool), torch.tensor([True, True, False, False])
    one = model.encode([a, b], [there, missing])
    noise = b.clone()
    noise[2:] += 100
    assert torch.equal(one, model.encode([a, noise], [there, missing]))
    outputs = model.decode(one)
    losses = reconstruction_losses([a, b], [there, missing], outputs)
    again = reconstruction_losses([a, noise], [there, missing], outputs)
    assert losses[1].item() == again[1].item() == pytest.approx((b[:2] - outputs[1][:2]).square().sum().item() / 2)
    nothing = reconstruction_losses([a], [torch.zeros(4, dtype=torch.bool)], [outputs[0]])
    assert nothing[0].item() == 0


def test_contrastive_loss_by_hand() -> None:
    anchors, partners = torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    fair = torch.tensor([[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]], dtype=torch.bool)
    # Of unit vectors: the positive has similarity 1, the two negatives 0, whatever the lengths.
    expected = -torch.log(torch.e**1 / (torch.e**1 + 2 * torch.e**0 * torch.ones(())))
    assert contrastive_loss(anchors, partners, fair, 1.0).item() == pytest.approx(expected.item(), rel=1e-5)
    none_fair = torch.zeros(4, 4, dtype=torch.bool)
    assert contrastive_loss(anchors, partners, none_fair, 1.0).item() == pytest.approx(0, abs=1e-6)


def test_contrastive_loss_pulls_partners_together() -> None:
    generator = torch.Generator().manual_seed(3)
    anchors = torch.randn(8, 4, generator=generator).requires_grad_()
    partners = torch.randn(8, 4, generator=generator)
    fair = ~torch.eye(16, dtype=torch.bool)
    before = contrastive_loss(anchors, partners, fair, 0.2)
    (gradient,) = torch.autograd.grad(before, anchors)
    after = contrastive_loss(anchors.detach() - 0.05 * gradient, partners, fair, 0.2)
    assert after.item() < before.item()


def test_loss_falls_on_one_batch() -> None:
    model = tiny(codebooks=(16, 8), latent=8)
    generator = torch.Generator().manual_seed(5)
    inputs = [torch.randn(32, 3, generator=generator), torch.randn(32, 5, generator=generator)]
    masks = [torch.ones(32, dtype=torch.bool)] * 2
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(150):
        result = model.quantise(model.encode(inputs, masks))
        loss = result.loss + sum(reconstruction_losses(inputs, masks, model.decode(result.quantised)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
