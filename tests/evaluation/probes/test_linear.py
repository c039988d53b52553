"""Claims: all heads of a grid train as each would alone under torch's own SGD; accuracy equals sklearn's logistic
regression on real data (sklearn digits); shuffled labels give chance; one seed gives one result; it is fast."""

import time

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from mmssl.errors import UserError
from mmssl.evaluation.labels import held_out
from mmssl.evaluation.probes import linear


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    test = held_out(range(len(x)), y, share=0.3, seed=0)
    return x[~test], y[~test], x[test], y[test]


def probe(x, y, **options):
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    return linear.linear_probe(x, y, classes=10, groups=np.arange(len(x)), **options)


FEW: dict = {"rates": (0.01, 0.1), "decays": (1e-3, 1e-2)}
"""A small grid, for claims that do not depend on it."""


def test_heads_in_parallel_equal_torch_sgd_one_by_one():
    torch.manual_seed(0)
    x, y = torch.randn(40, 6), torch.randint(0, 3, (40,))
    rates, decays = (0.01, 0.3), (0.0, 0.05)
    weight, bias = linear.train_heads(
        x, y, classes=3, rates=torch.tensor(rates), decays=torch.tensor(decays), steps=30, batch=40, seed=0
    )
    for head, (rate, decay) in enumerate(zip(rates, decays, strict=True)):
        layer = torch.nn.Linear(6, 3)
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
        groups: list[dict] = [{"params": [layer.weight], "weight_decay": decay}, {"params": [layer.bias]}]
        optimizer = torch.optim.SGD(groups, lr=rate, momentum=0.9)
        for step in range(30):
            for group in optimizer.param_groups:
                # torch multiplies the momentum buffer by the rate of the step, and so do the heads.
                group["lr"] = rate * 0.5 * (1 + np.cos(np.pi * step / 30))
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(layer(x), y).backward()
            optimizer.step()
        torch.testing.assert_close(weight[head].T, layer.weight.data, atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(bias[head], layer.bias.data, atol=2e-6, rtol=1e-5)


def test_as_good_as_logistic_regression(digits):
    x, y, test_x, test_y = digits
    found = probe(x, y)
    ours = (found.predict(torch.tensor(test_x)).numpy() == test_y).mean()
    scaler = StandardScaler().fit(x)
    theirs = LogisticRegression(max_iter=2000).fit(scaler.transform(x), y).score(scaler.transform(test_x), test_y)
    assert ours > theirs - 0.01, (ours, theirs)
    assert theirs > 0.95
    assert len(found.trials) == len(linear.RATES) * len(linear.DECAYS)
    best = max(t.validation_top1 for t in found.trials)
    assert next(t for t in found.trials if (t.rate, t.decay) == (found.rate, found.decay)).validation_top1 == best


def test_scale_of_the_features_does_not_matter(digits):
    """Standardisation makes one grid fit all encoders, also those whose features hardly vary."""
    x, y, test_x, _ = digits
    plain, small = (probe(values, y, **FEW) for values in (x, 5 + 1e-3 * x))
    a, b = plain.predict(torch.tensor(test_x)), small.predict(torch.tensor(5 + 1e-3 * test_x))
    assert (a == b).float().mean() > 0.99


def test_constant_features_are_harmless():
    x = np.concatenate([np.full((60, 3), 7.3), np.zeros((60, 2)), np.random.default_rng(0).normal(size=(60, 2))], 1)
    y = (x[:, 5] > 0).astype(int)
    found = probe(x, y)
    assert torch.isfinite(found.weight).all()
    assert (found.predict(torch.tensor(x)).numpy() == y).mean() > 0.9


def test_shuffled_labels_are_at_chance(digits):
    x, y, test_x, test_y = digits
    found = probe(x, np.random.default_rng(0).permutation(y), **FEW)
    accuracy = (found.predict(torch.tensor(test_x)).numpy() == test_y).mean()
    assert accuracy < 0.1 + 3 * np.sqrt(0.1 * 0.9 / len(test_y))


def test_one_seed_gives_one_result(digits):
    x, y, *_ = digits
    a, b, c = (probe(x[:200], y[:200], seed=seed, **FEW) for seed in (0, 0, 1))
    assert torch.equal(a.weight, b.weight)
    assert a.trials == b.trials
    assert a.trials != c.trials


def test_no_file_is_on_both_sides_of_the_validation_split():
    groups = np.repeat(np.arange(30), 3)
    labels = np.tile([0, 1, 2], 30)
    side = held_out(groups.tolist(), labels, share=0.2, seed=4)
    assert side.sum() == 18
    assert not set(groups[side]) & set(groups[~side])


def test_too_few_files_to_choose_on():
    with pytest.raises(UserError, match="mmssl evaluate knn"):
        linear.linear_probe(torch.randn(3, 4), torch.tensor([0, 1, 2]), classes=3, groups=np.arange(3))


def test_fast_enough_to_use_on_a_cpu():
    """5,000 x 512 features and the whole grid within seconds of processor time (about 4; limit 30)."""
    torch.manual_seed(0)
    y = torch.randint(0, 10, (5000,))
    x = torch.randn(5000, 512) + 0.5 * torch.randn(10, 512)[y]
    start = time.process_time()
    linear.linear_probe(x, y, classes=10, groups=np.arange(5000), epochs=20)
    assert time.process_time() - start < 30
