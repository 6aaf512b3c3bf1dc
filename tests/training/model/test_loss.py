"""Test the loss against scikit-learn's log loss and the competition's formula."""

import numpy as np
import torch
from sklearn.metrics import log_loss

from training.model.loss import image_losses

WEIGHTS = torch.tensor([1.0, 1, 1, 1, 1, 2])


def test_equals_the_competition_formula():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 3, (50, 6)), rng.integers(0, 2, (50, 6))
    p = 1 / (1 + np.exp(-logits))
    each = [log_loss(labels[:, k], p[:, k], labels=[0, 1]) for k in range(6)]
    expected = np.average(each, weights=WEIGHTS.numpy())
    losses = image_losses(torch.tensor(logits, dtype=torch.float32), torch.tensor(labels, dtype=torch.float32), WEIGHTS)
    assert losses.shape == (50,)
    np.testing.assert_allclose(losses.mean().item(), expected, rtol=1e-6)


def test_constant_prediction_of_the_prevalences():
    # The competition's known value: predicting these prevalences scores .2320.
    prevalence = np.array([0.00409, 0.04830, 0.03525, 0.04764, 0.06303, 0.14401])
    n = 100_000
    labels = (np.arange(n)[:, None] < np.round(prevalence * n)).astype(np.float32)
    logits = np.tile(np.log(prevalence / (1 - prevalence)), (n, 1)).astype(np.float32)
    mean = image_losses(torch.from_numpy(logits), torch.from_numpy(labels), WEIGHTS).double().mean().item()
    assert round(mean, 4) == 0.2320


def test_missing_labels_count_neither_in_the_loss_nor_in_the_gradient():
    labels = torch.tensor([[1.0, torch.nan, 0, torch.nan, 1, 0], [torch.nan] * 6])
    logits = torch.tensor([[0.3, 9.0, -1, -9, 2, 0.5], [1.0] * 6], requires_grad=True)
    losses = image_losses(logits, labels, WEIGHTS)
    losses.sum().backward()
    known = ~labels[0].isnan()
    alone = image_losses(logits.detach()[:1, known], labels[:1, known], WEIGHTS[known])
    assert losses[0].item() == alone.item()
    assert losses[1].item() == 0
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[labels.isnan()] == 0).all()
    assert (logits.grad[0, known] != 0).all()


def test_far_logits_stay_finite():
    logits = torch.tensor([[1e4, -1e4]], requires_grad=True)
    losses = image_losses(logits, torch.tensor([[0.0, 1.0]]), torch.ones(2))
    losses.sum().backward()
    assert losses.item() == 1e4
    assert torch.isfinite(logits.grad).all()
