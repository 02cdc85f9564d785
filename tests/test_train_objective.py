"""Noising, targets, losses, weights, timesteps and noise: by hand, against diffusers, and as laws."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lorasmith.lora_core.errors import BadConfig
from lorasmith.lora_core.train import noise, timesteps
from lorasmith.lora_core.train.config import TrainConfig
from lorasmith.lora_core.train.objective import Objective
from lorasmith.lora_core.train.protocols import Schedule

BASE = {"model": "m", "data": "d", "out": "o"}
SHAPE = torch.Size((4, 8, 8))


def config(**settings: Any) -> TrainConfig:
    return TrainConfig.from_json({**BASE, **settings})


def discrete(a: torch.Tensor, prediction: str = "epsilon", **settings: Any) -> Objective:
    return Objective(Schedule(prediction, a), config(**settings))


def flow(shift: float = 1.0, tokens: Any = None, **settings: Any) -> Objective:
    return Objective(Schedule("flow", shift=shift, tokens=tokens, patch=2), config(**settings))


def drawn(objective: Objective, count: int = 2000, shape: torch.Size = SHAPE) -> torch.Tensor:
    return torch.stack([timesteps.draw(objective, shape, "train", step, 0) for step in range(count)]).double()


def test_by_hand() -> None:
    a = torch.tensor([0.64])  # sqrt 0.8, the rest 0.6; SNR 16/9
    clean, drawn_noise, t = torch.tensor([[1.0]]), torch.tensor([[2.0]]), torch.tensor([0])
    epsilon, v = (discrete(a, word, min_snr_gamma=1.0) for word in ("epsilon", "v_prediction"))
    assert epsilon.noisy(clean, drawn_noise, t).item() == pytest.approx(0.8 * 1 + 0.6 * 2)
    assert epsilon.target(clean, drawn_noise, t).item() == 2.0
    assert v.target(clean, drawn_noise, t).item() == pytest.approx(0.8 * 2 - 0.6 * 1)
    assert epsilon.weight(t).item() == pytest.approx(9 / 16)  # min(16/9, 1) / (16/9)
    assert v.weight(t).item() == pytest.approx(9 / 25)  # min(16/9, 1) / (16/9 + 1)
    assert epsilon.losses(torch.tensor([[5.0]]), clean, drawn_noise, t).item() == pytest.approx((5 - 2) ** 2 * 9 / 16)
    debiased = discrete(a, weighting="debiased")
    assert debiased.weight(t).item() == pytest.approx(3 / 4)  # 1 / sqrt(16/9)


def test_flow_by_hand() -> None:
    clean, drawn_noise, t = torch.tensor([[1.0]]), torch.tensor([[2.0]]), torch.tensor([250.0])
    plain = flow()
    assert plain.noisy(clean, drawn_noise, t).item() == pytest.approx(0.75 * 1 + 0.25 * 2)
    assert plain.target(clean, drawn_noise, t).item() == 1.0
    assert flow(weighting="sigma_sqrt").weight(t).item() == pytest.approx(16)
    assert flow(weighting="cosmap").weight(t).item() == pytest.approx(2 / (math.pi * (1 - 0.5 + 0.125)))


def test_losses_are_per_sample_means() -> None:
    objective = discrete(torch.tensor([0.5, 0.1]))
    zero = torch.zeros(2, 3, 2, 2)
    predicted = torch.stack([torch.full((3, 2, 2), 2.0), torch.full((3, 2, 2), 3.0)])
    assert objective.losses(predicted, zero, zero, torch.tensor([0, 1])).tolist() == [4.0, 9.0]
    mask = torch.ones(2, 1, 2, 2)
    mask[1, 0, 0] = 0.5
    assert objective.losses(predicted, zero, zero, torch.tensor([0, 1]), mask).tolist() == [4.0, 9.0 * 0.75]


def test_a_mask_hides_a_place_from_the_gradient() -> None:
    objective, zero = flow(), torch.zeros(1, 2, 3, 4, 4)  # of video
    predicted = torch.randn(zero.shape, requires_grad=True)
    mask = torch.ones(1, 1, 4, 4)
    mask[..., 0, :] = 0
    objective.losses(predicted, zero, zero, torch.tensor([500.0]), mask).sum().backward()
    assert predicted.grad is not None
    assert not predicted.grad[..., 0, :].any() and bool(predicted.grad[..., 1:, :].all())


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_against_diffusers(prediction: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    training_utils = pytest.importorskip("diffusers.training_utils")
    scheduler = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    objective = discrete(scheduler.alphas_cumprod, prediction, min_snr_gamma=5.0)
    generator = torch.Generator().manual_seed(0)
    clean, drawn_noise = (torch.randn(4, 4, 8, 8, generator=generator) for _ in range(2))
    t = torch.tensor([0, 10, 500, 999])
    torch.testing.assert_close(objective.noisy(clean, drawn_noise, t), scheduler.add_noise(clean, drawn_noise, t))
    target = drawn_noise if prediction == "epsilon" else scheduler.get_velocity(clean, drawn_noise, t)
    torch.testing.assert_close(objective.target(clean, drawn_noise, t), target)
    snr = training_utils.compute_snr(scheduler, t)
    expected = snr.clamp(max=5.0) / (snr if prediction == "epsilon" else snr + 1)
    torch.testing.assert_close(objective.weight(t), expected)


@pytest.mark.parametrize("scheme", ["sigma_sqrt", "cosmap"])
def test_flow_weights_against_diffusers(scheme: str) -> None:
    training_utils = pytest.importorskip("diffusers.training_utils")
    s = torch.tensor([0.01, 0.3, 0.9])
    expected = training_utils.compute_loss_weighting_for_sd3(scheme, s)
    torch.testing.assert_close(flow(weighting=scheme).weight(s * 1000), expected.float())


def test_zero_terminal_snr_against_diffusers() -> None:
    rescale = pytest.importorskip("diffusers.schedulers.scheduling_ddpm").rescale_zero_terminal_snr
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    ours = discrete(torch.cumprod(1 - betas, 0), "v_prediction", zero_terminal_snr=True).alphas_cumprod
    theirs = torch.cumprod(1 - rescale(betas), 0)
    torch.testing.assert_close(ours.double(), theirs, atol=1e-6, rtol=1e-5)
    assert ours[-1] == 0
    assert float(discrete(ours, "v_prediction").target(torch.ones(1, 1), torch.zeros(1, 1), torch.tensor([999]))) == -1


def test_weights_stay_finite_where_the_schedule_ends_in_pure_noise() -> None:
    a = torch.tensor([1.0, 0.5, 0.0])  # the first has infinite SNR, the last none
    t = torch.tensor([0, 1, 2])
    assert discrete(a, min_snr_gamma=5.0).weight(t).tolist() == [0.0, 1.0, 1.0]
    assert discrete(a, "v_prediction", min_snr_gamma=5.0).weight(t).tolist() == [0.0, 0.5, 0.0]


@pytest.mark.parametrize("loss", ["huber", "smooth_l1"])
def test_huber_is_square_near_zero_and_straight_far_away(loss: str) -> None:
    objective, t = discrete(torch.tensor([0.5]), loss=loss, huber_c=0.1), torch.tensor([0])
    near, far = torch.tensor([[1e-3]]), torch.tensor([[1e3]])
    zero = torch.zeros(1, 1)
    per_c = 1 if loss == "huber" else 1 / 0.1
    assert objective.errors(near, zero, t).item() == pytest.approx(1e-6 * per_c, rel=1e-2)
    assert objective.errors(far, zero, t).item() == pytest.approx(2 * 0.1 * (1e3 - 0.1) * per_c, rel=1e-4)


def test_huber_schedules_fall_with_the_noise() -> None:
    a, t = torch.linspace(0.999, 0.01, 100), torch.tensor([0, 50, 99])
    for word in ("exponential", "snr"):
        c = discrete(a, loss="huber", huber_c=0.1, huber_schedule=word).huber_c(t)
        assert c[0] > c[1] > c[2] and 0.1 <= float(c[2]) < 0.25 and float(c[0]) > 0.9
    assert discrete(a, loss="huber").huber_c(t).tolist() == pytest.approx([0.1] * 3)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: flow(min_snr_gamma=5), "config: 'min_snr_gamma' has no meaning for a flow model; leave it out"),
        (lambda: flow(weighting="debiased"), "config: 'weighting' has no meaning for a flow model; leave it out"),
        (
            lambda: discrete(torch.tensor([0.5]), shift=3),
            "config: 'shift' has no meaning for a model with discrete timesteps; leave it out",
        ),
        (
            lambda: discrete(torch.tensor([0.5]), zero_terminal_snr=True),
            "config: 'zero_terminal_snr' needs a v-prediction model: pure noise holds no noise to be told from it",
        ),
    ],
)
def test_settings_that_a_model_has_no_use_for(made: Any, message: str) -> None:
    with pytest.raises(BadConfig) as caught:
        made()
    assert caught.value.message == message


def test_discrete_timesteps_keep_to_their_range() -> None:
    a = torch.linspace(0.99, 0.01, 50)
    whole = drawn(discrete(a))
    assert set(whole.tolist()) == set(range(50))
    part = drawn(discrete(a, min_timestep=0.2, max_timestep=0.4))
    assert set(part.tolist()) == set(range(10, 20))
    middle = drawn(discrete(a, timesteps="logit_normal", logit_std=0.1))
    assert 20 <= float(middle.min()) and float(middle.max()) < 30


def test_densities_have_the_papers_distribution() -> None:
    normal = drawn(flow(timesteps="logit_normal", logit_mean=0.5, logit_std=0.8)) / 1000
    logits = torch.log(normal / (1 - normal))
    assert float(logits.mean()) == pytest.approx(0.5, abs=0.06) and float(logits.std()) == pytest.approx(0.8, abs=0.05)
    cosmap = drawn(flow(timesteps="cosmap")) / 1000  # its distribution function is 2 / pi atan(s / (1 - s))
    expected = 2 / math.pi * math.atan(0.25 / 0.75)
    assert float((cosmap < 0.25).double().mean()) == pytest.approx(expected, abs=0.03)
    mode = drawn(flow(timesteps="mode", mode_scale=1.29)) / 1000
    uniform = drawn(flow(timesteps="uniform")) / 1000
    assert float(((mode - 0.5).abs() < 0.2).double().mean()) > float(((uniform - 0.5).abs() < 0.2).double().mean())


def test_shifts() -> None:
    tokens = {"base_seq_len": 256, "max_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
    latents = torch.Size((16, 64, 64))  # 512 px: 1,024 tokens of 2 x 2
    assert timesteps.shift(flow(), latents) == 1.0
    assert timesteps.shift(flow(shift=3.0), latents) == 3.0
    assert timesteps.shift(flow(shift=3.0), latents) != timesteps.shift(flow(tokens=tokens), latents)
    mu = 0.5 + (1024 - 256) * 0.65 / 3840
    assert timesteps.shift(flow(tokens=tokens), latents) == pytest.approx(math.exp(mu))
    assert timesteps.shift(flow(), torch.Size((16, 2, 32, 32))) == 1.0
    objective = Objective(Schedule("flow", patch=2), config(shift="resolution"))
    assert timesteps.shift(objective, latents) == pytest.approx(math.exp(mu))
    fixed = Objective(Schedule("flow"), config(shift=3))
    once, thrice = (drawn(one, 200) / 1000 for one in (flow(), fixed))
    torch.testing.assert_close(thrice, 3 * once / (1 + 2 * once), atol=1e-5, rtol=1e-4)
    part = drawn(flow(min_timestep=0.5), 200)
    assert 500 <= float(part.min()) and float(part.max()) <= 1000


def test_shift_by_resolution_equals_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    for s in (0.1, 0.5, 0.9):
        ours = timesteps.shifted(s, math.exp(0.8))
        assert ours == pytest.approx(float(scheduler.time_shift(0.8, 1.0, torch.tensor(s, dtype=torch.float64))))


def test_noise_is_a_function_of_its_place() -> None:
    settings = {"noise_offset": 0.1, "noise_offset_random": True, "pyramid_noise": 6, "input_perturbation": 0.1}
    one = noise.draw(SHAPE, config(**settings), "train", 3, 1)
    assert torch.equal(one, noise.draw(SHAPE, config(**settings), "train", 3, 1))
    assert not torch.equal(one, noise.draw(SHAPE, config(**settings), "train", 3, 2))
    given = noise.perturbed(one, config(**settings), "train", 3, 1)
    assert float((given - one).std()) == pytest.approx(0.1, rel=0.3)
    assert noise.perturbed(one, config(), "train", 3, 1) is one


def test_pyramid_noise_is_smooth_and_of_unit_deviation() -> None:
    shape = torch.Size((4, 64, 64))
    plain = noise.draw(shape, config(), "train", 0, 0)
    pyramid = noise.draw(shape, config(pyramid_noise=6, pyramid_discount=0.8), "train", 0, 0)
    coarse = [float(torch.nn.functional.avg_pool2d(one[None], 8).std()) for one in (plain, pyramid)]
    assert float(pyramid.std()) == pytest.approx(1.0, rel=1e-4)
    assert coarse[1] > 3 * coarse[0]  # more of it is alike over large areas


def test_offset_noise_is_a_constant_per_channel() -> None:
    difference = noise.draw(SHAPE, config(noise_offset=0.5), "train", 0, 0) - noise.draw(SHAPE, config(), "train", 0, 0)
    assert float((difference - difference.mean((1, 2), keepdim=True)).abs().max()) < 1e-6
    assert len({round(float(value), 6) for value in difference.mean((1, 2))}) == 4
