"""Claim: a codebook comes back as it was written, and nothing else is taken for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.testing import assert_close

from mmssl.errors import UserError
from mmssl.targets.codebook import Codebook

BOOK = Codebook(torch.tensor([[0.0, 1.0], [2.0, -3.0], [5.0, 5.0]]), "two numbers")


def test_written_and_read(tmp_path: Path) -> None:
    file = tmp_path / "new" / "book.safetensors"
    BOOK.save(file)
    again = Codebook.load(file)
    assert_close(again.centroids, BOOK.centroids, rtol=0, atol=0)
    assert again.features == "two numbers"
    assert again.sha256 == BOOK.sha256
    assert len(again) == 3
    assert os.listdir(file.parent) == ["book.safetensors"]  # nothing half written beside
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata()["sha256"] == BOOK.sha256


def test_hash_is_of_what_matters() -> None:
    assert BOOK.sha256 == Codebook(BOOK.centroids.clone(), "two numbers").sha256
    for other in (
        Codebook(BOOK.centroids, "two other numbers"),
        Codebook(BOOK.centroids + 1e-6, "two numbers"),
        Codebook(BOOK.centroids.view(2, 3), "two numbers"),
    ):
        assert other.sha256 != BOOK.sha256


def test_assign() -> None:
    assert BOOK.assign(torch.tensor([[[4.0, 4.0], [0.0, 0.0]]])).tolist() == [[2, 0]]
    with pytest.raises(UserError, match=r"features of 2 values \(two numbers\), and these have 3"):
        BOOK.assign(torch.zeros(1, 3))


def test_damage_is_told(tmp_path: Path) -> None:
    file = tmp_path / "book.safetensors"
    with pytest.raises(UserError, match="There is no codebook"):
        Codebook.load(file)
    BOOK.save(file)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="other content than was written"):
        Codebook.load(file)
    file.write_bytes(content[:-3])
    with pytest.raises(UserError, match="is no codebook"):
        Codebook.load(file)
    save_file({"weight": torch.zeros(2)}, file)
    with pytest.raises(UserError, match="is no codebook"):
        Codebook.load(file)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        BOOK.save(tmp_path / "file" / "book.safetensors")
