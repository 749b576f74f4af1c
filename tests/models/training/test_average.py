"""The moving average against its sum written out."""

import torch

from models.training.average import Average


def test_average_is_the_sum_written_out() -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(3, 4))
    parameters = {"w": weight}
    average = Average(parameters, 0.5)
    expected = weight.detach().double().clone()
    for step in range(1, 30):
        with torch.no_grad():
            weight += torch.randn(3, 4)
        average.update(parameters, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight.detach().double()
    assert torch.allclose(average.values["w"].double(), expected, atol=1e-5)
    assert not torch.allclose(weight.detach().double(), expected, atol=1e-1)
    average.copy_to(parameters)
    assert torch.equal(weight.detach(), average.values["w"])


def test_it_is_float32_whatever_the_weights_are() -> None:
    parameters = {"w": torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))}
    average = Average(parameters, 0.9999)
    for step in range(1, 4):
        with torch.no_grad():
            parameters["w"].fill_(1.0 + step / 4)
        average.update(parameters, step)
    assert average.values["w"].dtype == torch.float32
    assert 1.0 < float(average.values["w"][0]) < 1.75
