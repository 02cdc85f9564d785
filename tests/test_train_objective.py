"""Noising, targets and weights, by hand and against diffusers."""

from __future__ import annotations

import pytest
import torch

from lorasmith.lora_core.train.objective import Objective


def test_by_hand() -> None:
    a = torch.tensor([0.64])  # sqrt 0.8, the rest 0.6; SNR 16/9
    clean, noise, t = torch.tensor([[1.0]]), torch.tensor([[2.0]]), torch.tensor([0])
    epsilon, v = Objective(a, "epsilon", 1.0), Objective(a, "v_prediction", 1.0)
    assert epsilon.noisy(clean, noise, t).item() == pytest.approx(0.8 * 1 + 0.6 * 2)
    assert epsilon.target(clean, noise, t).item() == 2.0
    assert v.target(clean, noise, t).item() == pytest.approx(0.8 * 2 - 0.6 * 1)
    assert epsilon.weight(t).item() == pytest.approx(9 / 16)  # min(16/9, 1) / (16/9)
    assert v.weight(t).item() == pytest.approx(9 / 25)  # min(16/9, 1) / (16/9 + 1)
    assert epsilon.losses(torch.tensor([[5.0]]), clean, noise, t).item() == pytest.approx((5 - 2) ** 2 * 9 / 16)


def test_losses_are_per_sample_means() -> None:
    objective = Objective(torch.tensor([0.5, 0.1]), "epsilon")
    noise = torch.zeros(2, 3, 2, 2)
    predicted = torch.stack([torch.full((3, 2, 2), 2.0), torch.full((3, 2, 2), 3.0)])
    assert objective.losses(predicted, noise, noise, torch.tensor([0, 1])).tolist() == [4.0, 9.0]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_against_diffusers(prediction: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    training_utils = pytest.importorskip("diffusers.training_utils")
    scheduler = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    objective = Objective(scheduler.alphas_cumprod, prediction, 5.0)
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(4, 4, 8, 8, generator=generator) for _ in range(2))
    t = torch.tensor([0, 10, 500, 999])
    torch.testing.assert_close(objective.noisy(clean, noise, t), scheduler.add_noise(clean, noise, t))
    target = noise if prediction == "epsilon" else scheduler.get_velocity(clean, noise, t)
    torch.testing.assert_close(objective.target(clean, noise, t), target)
    snr = training_utils.compute_snr(scheduler, t)
    expected = snr.clamp(max=5.0) / (snr if prediction == "epsilon" else snr + 1)
    torch.testing.assert_close(objective.weight(t), expected)


def test_weights_stay_finite_where_the_schedule_ends_in_pure_noise() -> None:
    a = torch.tensor([1.0, 0.5, 0.0])  # the first has infinite SNR, the last none
    t = torch.tensor([0, 1, 2])
    assert Objective(a, "epsilon", 5.0).weight(t).tolist() == [0.0, 1.0, 1.0]
    assert Objective(a, "v_prediction", 5.0).weight(t).tolist() == [0.0, 0.5, 0.0]
