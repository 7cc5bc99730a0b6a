"""Weights that are not what their JSON says are not used."""

import json

import pytest
import torch
from torch import nn

from models import weights
from models.training.export import export
from models.training.recipe import TrainConfig
from models.weights import WeightsError


class Tiny:
    name, config, split_sha256, preprocessing = "tiny", TrainConfig(), "0" * 64, "none/1"


@pytest.fixture
def checkpoint(tmp_path):
    return export(Tiny(), nn.Linear(3, 2), {"score": 0.5}, 0, tmp_path)


def test_round_trip_says_where_it_comes_from(checkpoint):
    loaded = weights.load(checkpoint)
    net = loaded.into(nn.Linear(3, 2))
    assert not net.training
    assert net.weight.dtype == torch.float32
    assert loaded.about["preprocessing"] == "none/1"
    assert loaded.about["parameters"] == 8
    assert {"config", "git_sha", "metrics", "split_sha256"} <= set(loaded.about)


def test_large_batch_norm_variances_survive_half_precision(tmp_path):
    net = nn.BatchNorm2d(2)
    net.running_var.fill_(1e8)
    loaded = weights.load(export(Tiny(), net, {}, 0, tmp_path)).into(nn.BatchNorm2d(2))
    assert torch.equal(loaded.running_var, net.running_var)
    net.weight.data.fill_(1e8)
    with pytest.raises(OverflowError, match="weight"):
        export(Tiny(), net, {}, 0, tmp_path)


def test_one_changed_byte_is_rejected(checkpoint):
    content = bytearray(checkpoint.read_bytes())
    content[-1] ^= 1
    checkpoint.write_bytes(content)
    with pytest.raises(WeightsError, match="SHA-256"):
        weights.load(checkpoint)


def test_missing_pickled_or_unsigned_files_are_rejected(checkpoint, tmp_path):
    with pytest.raises(WeightsError, match="missing"):
        weights.load(tmp_path / "nothing.safetensors")
    with pytest.raises(WeightsError, match="safetensors"):
        weights.load(tmp_path / "model.pt")
    checkpoint.with_suffix(".json").write_text("{}")
    with pytest.raises(WeightsError, match="sha256"):
        weights.load(checkpoint)


def test_a_damaged_file_with_a_right_hash_is_rejected(tmp_path):
    import hashlib

    path = tmp_path / "x.safetensors"
    path.write_bytes(b"not safetensors")
    path.with_suffix(".json").write_text(json.dumps({"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}))
    with pytest.raises(WeightsError, match="no valid safetensors"):
        weights.load(path)


def test_weights_of_another_network_are_rejected(checkpoint):
    with pytest.raises(WeightsError, match="do not fit"):
        weights.load(checkpoint).into(nn.Linear(4, 2))


def test_weights_that_learnt_from_other_preprocessing_are_rejected(checkpoint):
    assert weights.load(checkpoint, "none/1").name == "tiny"
    with pytest.raises(WeightsError, match=r"'none/1'.*'none/2'"):
        weights.load(checkpoint, "none/2")
