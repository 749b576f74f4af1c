"""The distance to the anchor, written out, and where an averaging leaves the weights."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models.training.orbit import Orbit
from plumline.errors import InputError


def parameters() -> dict[str, torch.nn.Parameter]:
    torch.manual_seed(0)
    return {"a": torch.nn.Parameter(torch.randn(3, 4)), "b": torch.nn.Parameter(torch.randn(5))}


def anchored(folder: Path, values: dict[str, torch.Tensor], limit: float | None) -> Orbit:
    folder.mkdir(exist_ok=True)
    for number, (name, value) in enumerate(values.items()):  # in two files, as large models are
        save_file({name: value.detach().clone()}, folder / f"model-{number}.safetensors")
    return Orbit(folder, values, limit)


def test_distance_is_relative_and_over_all_weights(tmp_path: Path) -> None:
    now = parameters()
    orbit = anchored(tmp_path / "anchor", now, None)
    assert orbit.hold(now) == (0.0, False)
    first = torch.cat([p.detach().flatten() for p in now.values()])
    with torch.no_grad():
        now["a"] += 0.3
        now["b"] -= 0.1
    moved = torch.cat([p.detach().flatten() for p in now.values()])
    expected = float((moved - first).norm() / first.norm())
    assert orbit.distance(now) == pytest.approx(expected, rel=1e-6)
    assert orbit.hold(now) == (orbit.distance(now), False)  # without a limit it is measured only
    assert torch.equal(torch.cat([p.detach().flatten() for p in now.values()]), moved)


def test_weights_beyond_the_limit_come_back_on_the_straight_line(tmp_path: Path) -> None:
    now = parameters()
    orbit = anchored(tmp_path / "anchor", now, 0.1)
    first = {name: p.detach().clone() for name, p in now.items()}
    with torch.no_grad():
        now["a"] += 0.5
        now["b"] += torch.linspace(-1, 1, 5)
    moved = {name: p.detach().clone() for name, p in now.items()}
    before = orbit.distance(now)
    assert before > 0.1
    distance, shortened = orbit.hold(now)
    assert shortened
    assert distance == pytest.approx(0.5 * 0.1, rel=1e-5)
    for name, parameter in now.items():
        expected = first[name] + 0.5 * 0.1 / before * (moved[name] - first[name])
        assert torch.allclose(parameter.detach(), expected, atol=1e-6)
    assert orbit.hold(now) == (distance, False)
    assert math.isfinite(distance)


def test_an_anchor_of_another_model_is_refused(tmp_path: Path) -> None:
    now = parameters()
    anchored(tmp_path / "anchor", now, None)
    with pytest.raises(InputError, match=r"anchor .*no such weight for c"):
        Orbit(tmp_path / "anchor", {**now, "c": torch.zeros(2)}, None)
    with pytest.raises(InputError, match=r"shape \(5,\) for b \(6,\)"):
        Orbit(tmp_path / "anchor", {"b": torch.zeros(6)}, None)
