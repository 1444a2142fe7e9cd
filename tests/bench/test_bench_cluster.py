import pytest

pytest.importorskip("ray")

from bench.cluster_simulation import by_ranking, simulate
from bench.cluster_talks import Asked, best

pytestmark = pytest.mark.ray


def asked(*talks: int) -> list[Asked]:
    """Each request could reuse ten ids of the one before it."""
    return [Asked(number, talk, 20, 0, 10 if talk in talks[:number] else 0) for number, talk in enumerate(talks)]


@pytest.mark.parametrize(
    ("talks", "cards", "found"),
    [
        ((1, 1, 1), 1, 20),
        ((1, 2, 1, 2), 1, 0),
        ((1, 2, 1, 2), 2, 20),
        ((1, 2, 3, 1, 2, 3), 2, 20),  # 3 takes the place of 2, then 2 that of 1
        ((1, 2, 3, 2, 1, 2), 2, 20),
    ],
)
def test_the_best_assignment_knows_the_future(talks: tuple[int, ...], cards: int, found: int) -> None:
    assert best(asked(*talks), cards) == found


def test_the_ranking_finds_nearly_what_the_best_assignment_finds() -> None:
    results = [simulate(by_ranking, talks=12, cards=4, seed=seed, pause=20, apart=60) for seed in range(4)]
    shares, tops = ([result.share for result in results], [result.best for result in results])
    assert sum(shares) / len(shares) > sum(tops) / len(tops) - 0.03
