import random

from qwen_service.chat import ChatRequest, Message
from qwen_service.runtimes.axllm.slots import Conversations, Ids, Place, marked

HEAD = tuple(range(1000, 1040))


def talk(name: int, length: int, head: Ids = HEAD) -> Ids:
    return (*head, *range(name * 10_000, name * 10_000 + length - len(head)))


def test_conversations_with_one_head_get_slots_of_their_own() -> None:
    kept = Conversations(2)
    for turn in range(1, 5):
        for name in (1, 2):
            place = kept.place(talk(name, 200 * turn))
            assert place.slot == name - 1
            assert place.shared == (200 * (turn - 1) if turn > 1 else 0)
            kept.hold(place.slot, talk(name, 200 * turn))


def test_one_slot_is_all_there_is() -> None:
    kept = Conversations(1)
    kept.hold(0, talk(1, 200))
    assert kept.place(talk(2, 200)) == Place(0, 40, 160, (200 - 8 - 40) / 2)


def test_a_new_conversation_overwrites_the_one_that_has_rested_longest() -> None:
    kept = Conversations(3)
    for name in (1, 2, 3, 1):
        kept.hold(kept.place(talk(name, 300)).slot, talk(name, 300))
    assert kept.place(talk(4, 300)).slot == 1


def test_a_long_head_is_continued_where_little_is_lost() -> None:
    head = tuple(range(700))
    kept = Conversations(4)
    kept.hold(0, talk(1, 750, head))
    assert kept.place(talk(2, 750, head)) == Place(0, 700, 50, (750 - 8 - 700) / 2)


def test_a_reply_that_is_not_continued_is_no_loss() -> None:
    kept = Conversations(2)
    kept.hold(0, talk(1, 200), tuple(range(5000, 5400)))
    place = kept.place(talk(1, 200)[:-4] + tuple(range(7000, 7200)))  # without the empty thoughts that it ended with
    assert place == Place(0, 196, 200, 0)


def test_a_short_prompt_does_not_empty_the_slot_of_a_long_conversation() -> None:
    kept = Conversations(2)
    kept.hold(0, talk(1, 600))
    assert kept.place(talk(2, 100)) == Place(1, 0, 100, 0)


def test_nobody_waits_for_what_is_warmed_so_it_may_cost_more_and_lose_less() -> None:
    head = tuple(range(700))
    kept = Conversations(2)
    kept.hold(0, talk(1, 1000, head))
    assert kept.place(head).slot == 0
    assert kept.place(head, in_a_hurry=False) == Place(1, 0, 700, 0)


def test_marks_make_prompts_differ_at_the_first_text() -> None:
    request = ChatRequest("r", messages=(Message("system", "Be kind."), Message("user", "Hi")))
    assert marked(request, 0) is request
    assert [message.content for message in marked(request, 2).messages] == ["\n\nBe kind.", "Hi"]
    assert marked(ChatRequest("r"), 1) == ChatRequest("r")


def test_whatever_comes_a_place_is_one_of_the_slots_and_shares_what_they_hold() -> None:
    rng = random.Random(4)
    for _ in range(100):
        kept = Conversations(rng.randint(1, 5))
        held: dict[int, Ids] = {}
        for _ in range(30):
            ids = tuple(rng.choices(range(3), k=rng.randint(0, 300)))
            place = kept.place(ids, in_a_hurry=rng.random() < 0.7)
            before = held.get(place.slot, ())
            assert place.shared <= len(ids)
            assert before[: place.shared] == ids[: place.shared]
            assert place.loses <= len(before) / 2
            held[place.slot] = ids
            kept.hold(place.slot, ids)
