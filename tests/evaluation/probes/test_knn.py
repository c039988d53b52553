"""Claim: the weighted kNN is DINO's rule. Compared with a plain float64 recomputation in NumPy, and with sklearn."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from mmssl.evaluation.probes import knn


def recompute(bank, labels, queries, classes, k, temperature):
    bank = bank / np.linalg.norm(bank, axis=1, keepdims=True)
    predicted = []
    for query in queries / np.linalg.norm(queries, axis=1, keepdims=True):
        cosine = bank @ query
        votes = np.zeros(classes)
        for i in np.argsort(-cosine)[:k]:
            votes[labels[i]] += np.exp(cosine[i] / temperature)
        predicted.append(votes.argmax())
    return np.array(predicted)


@pytest.fixture
def data():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 7, 300)
    centres = rng.normal(size=(7, 24))
    bank = centres[labels] + 2.5 * rng.normal(size=(300, 24))
    queries = centres[rng.integers(0, 7, 111)] + 2.5 * rng.normal(size=(111, 24))
    return bank, labels, queries


@pytest.mark.parametrize("temperature", [0.07, 0.1, 1.0])
def test_equals_float64_recomputation_for_every_k(data, temperature):
    bank, labels, queries = data
    found = knn.knn_predict(
        torch.tensor(bank), torch.tensor(labels), torch.tensor(queries), classes=7, temperature=temperature
    )
    assert sorted(found) == [10, 20, 100, 200]
    answers = [recompute(bank, labels, queries, 7, k, temperature) for k in (10, 20, 100, 200)]
    for k, expected in zip((10, 20, 100, 200), answers, strict=True):
        assert (found[k].numpy() == expected).all()
    assert any((a != answers[0]).any() for a in answers[1:]), "k must matter here, or the comparison shows nothing"


def test_equals_sklearn_with_the_same_weights(data):
    bank, labels, queries = data
    sk = KNeighborsClassifier(20, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07)).fit(bank, labels)
    found = knn.knn_predict(torch.tensor(bank), torch.tensor(labels), torch.tensor(queries), classes=7)
    assert (found[20].numpy() == sk.predict(queries)).all()


def test_chunks_change_nothing(data, monkeypatch):
    bank, labels, queries = map(torch.tensor, data)
    whole = knn.knn_predict(bank, labels, queries, classes=7)
    monkeypatch.setattr(knn, "CHUNK", 300 * 10)
    parts = knn.knn_predict(bank, labels, queries, classes=7)
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


def test_a_small_bank_serves_the_k_it_can():
    bank = torch.eye(4)
    found = knn.knn_predict(bank, torch.arange(4), bank, classes=4)
    assert list(found) == [4]
    assert found[4].tolist() == [0, 1, 2, 3]


def test_low_temperature_stays_finite():
    bank = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    found = knn.knn_predict(bank, torch.tensor([1, 0, 0]), bank[:1], classes=2, neighbours=(3,), temperature=1e-3)
    assert found[3].item() == 1
