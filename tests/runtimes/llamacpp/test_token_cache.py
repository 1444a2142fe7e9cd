from qwen_service.runtimes.llamacpp.tokenizer import TokenCache


def test_only_texts_that_were_put_are_known() -> None:
    cache = TokenCache()
    cache.put({"a": [1], "": []})
    assert {text: list(ids) for text, ids in cache.known(["a", "b", "", "a"]).items()} == {"a": [1], "": []}


def test_the_text_whose_last_use_is_longest_ago_goes_first() -> None:
    cache = TokenCache(characters=6)
    cache.put({"aaa": [1], "bbb": [2]})
    cache.known(["aaa"])
    cache.put({"ccc": [3]})
    assert set(cache.known(["aaa", "bbb", "ccc"])) == {"aaa", "ccc"}


def test_a_text_longer_than_the_whole_cache_is_not_kept_and_leaves_room_for_others() -> None:
    cache = TokenCache(characters=6)
    cache.put({"a" * 100: [1]})
    cache.put({"bbb": [2]})
    cache.put({"bbb": [2]})
    cache.put({"ccc": [3]})
    assert set(cache.known(["a" * 100, "bbb", "ccc"])) == {"bbb", "ccc"}
