"""Where a long text may be cut, so that the first sound comes soon."""

import random

import pytest

from qwen_service.audio.text_to_speech import FIRST, LONGEST, pieces


def test_a_short_text_is_one_piece() -> None:
    assert pieces("Hello there.") == ["Hello there."]
    assert pieces("  \n ") == []


def test_the_first_piece_is_the_first_sentence_and_later_ones_are_longer() -> None:
    text = "This is the first sentence of a long answer. " + "A short one. " * 30
    found = pieces(text)
    assert found[0] == "This is the first sentence of a long answer."
    assert all(len(piece) > FIRST * 3 for piece in found[1:-1])
    assert " ".join(found) == text.strip()


@pytest.mark.parametrize(
    "text",
    [
        "It costs 3.50 euro at Dr. Miller's shop in the old town, which is closed on the weekend.",
        "J. S. Bach wrote more music than most people will ever hear in their lives, they say.",
        "1. The first thing that you have to do is to open the lid of the box with both hands.",
    ],
)
def test_a_full_stop_within_a_sentence_ends_nothing(text: str) -> None:
    assert pieces(text) == [text]


def test_chinese_has_no_spaces_between_sentences() -> None:
    text = "今天天气很好，我们去公园散步，看看花，听听鸟叫，然后在湖边坐下来喝一杯茶，聊一聊最近的事情吧朋友们好。" * 2
    assert len(pieces(text)) == 2


def test_quotes_stay_with_their_sentence() -> None:
    assert pieces('"Is that really what you wanted to say to me?" "Yes, it is what I wanted to say."')[0].endswith(
        'me?"'
    )


@pytest.mark.parametrize("seed", range(50))
def test_nothing_is_lost_and_nothing_is_too_long(seed: int) -> None:
    rng = random.Random(seed)
    words = ["a", "word", "Dr.", "end.", "what?", "x" * 900, "。", "，", "\n\n", "1.", "…", ")", '"', "no:"]
    text = " ".join(rng.choice(words) for _ in range(rng.randrange(400)))
    found = pieces(text)
    assert all(0 < len(piece) <= LONGEST for piece in found)
    assert "".join("".join(found).split()) == "".join(text.split())
