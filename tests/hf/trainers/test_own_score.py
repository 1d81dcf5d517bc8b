"""A score of your own: what it costs, and what is refused before any training."""

import pytest
from small_searches import equal, state
from small_task import Points, arguments, net

from hf_lottery import LotteryTrainer, magnitude


class Counted(Points):
    """Points that count how often one of them is read."""

    read = 0

    def __getitem__(self, i):
        self.read += 1
        return super().__getitem__(i)


def plain(weight, evidence):
    return weight.detach().abs()


def search(folder, score, data, model=None):
    args = arguments(folder, sparsity=0.5, schedule="one_shot", num_train_epochs=1, save_strategy="no")
    return LotteryTrainer(model=model or net(), args=args, train_dataset=data, score=score)


def frozen():
    model = net()
    model.inner.weight.requires_grad_(False)
    return model


def test_a_plain_score_reads_no_more_data_than_magnitude(tmp_path):
    by_magnitude, own = Counted(), Counted()
    expected = search(tmp_path / "magnitude", magnitude, by_magnitude)
    expected.train()
    ours = search(tmp_path / "own", plain, own)
    ours.train()
    # Each level reads every sample once; 16 are read twice to know the data again.
    assert own.read == by_magnitude.read == 2 * 48 + 2 * 16
    assert ours.mask == expected.mask
    assert equal(state(ours.model), state(expected.model))


@pytest.mark.filterwarnings("ignore:1 frozen parameters are covered")
def test_a_search_refuses_a_frozen_weight(tmp_path):
    data = Counted()
    with pytest.raises(ValueError, match=r"must train every weight .* received inner\.weight, which are frozen"):
        search(tmp_path, plain, data, frozen()).train()
    assert data.read == 0 and not list(tmp_path.iterdir())


def by_attribute(weight, evidence):
    return weight * evidence.gradient


def by_unpacking(weight, evidence):
    gradient, _, _ = evidence
    return weight * gradient


def by_index(weight, evidence):
    return weight * evidence[0]


@pytest.mark.parametrize("score", [by_attribute, by_unpacking, by_index])
def test_an_undeclared_read_is_refused_before_any_training(tmp_path, score):
    data = Counted()
    with pytest.raises(ValueError, match=r"reads gradient undeclared\. Decorate it with @needs\('gradient'\)"):
        search(tmp_path, score, data).train()
    assert data.read == 0 and not list(tmp_path.iterdir())
