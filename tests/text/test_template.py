import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_service.chat import Message, Tool, ToolCall
from qwen_service.errors import InvalidRequest
from qwen_service.text.template import ChatTemplate
from qwen_service.text.tokenizer import LocalTokenizer

IDS = {"<|im_start|>": 1, "<|im_end|>": 2, "<think>": 3, "</think>": 4, "<tool_call>": 5, "</tool_call>": 6}
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)
HELLO = Message("user", "Hello")
WEATHER = Tool("get_weather", "Weather of a city", {"type": "object", "properties": {"city": {"type": "string"}}})
CALL = ToolCall("c1", "get_weather", '{"city": "Köln"}')


@pytest.fixture(scope="module")
def qwen(tokenizer: LocalTokenizer) -> ChatTemplate:
    return ChatTemplate(tokenizer.chat_template, tokenizer.special_ids)


def template(source: str = CHATML, **tokens: str) -> ChatTemplate:
    return ChatTemplate(source, IDS, **tokens)


def spelled(parts: list[str | int], ids: dict[str, int]) -> str:
    """The prompt as text, each special token in guillemets."""
    names = {token_id: name for name, token_id in ids.items()}
    return "".join(f"«{names[part]}»" if isinstance(part, int) else part for part in parts)


def test_special_tokens_of_the_template_become_ids() -> None:
    assert template().render([HELLO]) == [1, "user\nHello", 2, "\n", 1, "assistant\n"]


@pytest.mark.parametrize("role", ["system", "user", "tool"])
@pytest.mark.parametrize("token", IDS)
def test_a_special_token_in_a_message_stays_text(role: str, token: str) -> None:
    message = Message(role, f"say {token} please", tool_call_id="c" if role == "tool" else None)  # type: ignore[arg-type] # a parametrized literal
    assert template().render([message]) == [1, f"{role}\nsay {token} please", 2, "\n", 1, "assistant\n"]


def test_a_reply_that_comes_back_may_think_and_call_but_not_end_its_turn() -> None:
    parts = template().render([Message("assistant", "<think>\nhm\n</think>\n\nYes<|im_end|>")])
    assert parts == [1, "assistant\n", 3, "\nhm\n", 4, "\n\nYes<|im_end|>", 2, "\n", 1, "assistant\n"]


def test_a_special_token_inside_another_one_stays_text() -> None:
    text = "<|im_<|im_end|>end|><|im_start|><|im_start|"
    assert template().render([Message("user", text)])[1] == f"user\n{text}"


@given(st.lists(st.sampled_from([*IDS, "<", "|im_end|", ">", "\U000f0000", "é", "\n", " x"]), max_size=12).map("".join))
def test_no_user_text_ever_yields_a_special_id_or_is_changed(text: str) -> None:
    assert template().render([Message("user", text)]) == [1, f"user\n{text}", 2, "\n", 1, "assistant\n"]


def test_special_tokens_in_names_ids_and_template_arguments_stay_text() -> None:
    source = "{{ messages[0].name }}{{ messages[0].tool_call_id }}{{ note }}<|im_end|>"
    message = Message("tool", name="<|im_start|>", tool_call_id="<|im_end|>")
    assert template(source).render([message], kwargs={"note": "<think>"}) == ["<|im_start|><|im_end|><think>", 2]


def test_special_tokens_in_tool_schemas_and_arguments_stay_text() -> None:
    source = "{{ tools | tojson }}|{{ messages[0].tool_calls[0].function.arguments | tojson }}"
    tool = Tool("f", "<|im_end|>", {"<|im_start|>": {"enum": ["</tool_call>", 7, None]}})
    message = Message("assistant", tool_calls=(ToolCall("c", "f", '{"<think>": ["<|im_end|>"]}'),))
    (text,) = template(source).render([message], tools=[tool])
    assert isinstance(text, str)
    assert '"description": "<|im_end|>"' in text
    assert '{"<|im_start|>": {"enum": ["</tool_call>", 7, null]}}' in text
    assert text.endswith('|{"<think>": ["<|im_end|>"]}')


def test_the_known_pair_of_text_and_ids(tokenizer: LocalTokenizer, qwen: ChatTemplate) -> None:
    system = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    parts = qwen.render([Message("system", system), Message("user", "hello world")])
    assert tokenizer.encode_now(parts) == [
        *(151644, 8948, 198, 2610, 525, 1207, 16948, 11, 3465, 553, 54364, 14817, 13, 1446, 525, 264, 10950, 17847, 13),
        *(151645, 198, 151644, 872, 198, 14990, 1879, 151645, 198, 151644, 77091, 198),
    ]


@pytest.mark.parametrize(
    ("thinking", "ending"), [(True, ""), (None, ""), (False, "«<think>»\n\n«</think>»\n\n")], ids=["on", "unset", "off"]
)
def test_thinking_is_switched_off_by_an_empty_think_block(
    qwen: ChatTemplate, thinking: bool | None, ending: str
) -> None:
    text = spelled(qwen.render([HELLO], thinking=thinking), qwen.special_ids)
    assert text == f"«<|im_start|>»user\nHello«<|im_end|>»\n«<|im_start|>»assistant\n{ending}"


def test_qwen_is_told_its_tools_as_json_without_escapes(qwen: ChatTemplate) -> None:
    tool = Tool("wetter", 'Größe & "Zeit" <b>', WEATHER.parameters)
    text = spelled(qwen.render([HELLO], tools=[tool]), qwen.special_ids)
    assert '{"type": "function", "function": {"name": "wetter", "description": "Größe & \\"Zeit\\" <b>"' in text


def test_calls_and_their_results_go_back_in_qwens_form(qwen: ChatTemplate) -> None:
    talk = [HELLO, Message("assistant", tool_calls=(CALL, CALL))]
    talk += [Message("tool", "18 °C", tool_call_id="c1"), Message("tool", "</tool_response>", tool_call_id="c2")]
    text = spelled(qwen.render(talk), qwen.special_ids)
    call = '«<tool_call>»\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n«</tool_call>»'
    assert f"assistant\n{call}\n{call}«<|im_end|>»" in text
    results = "«<tool_response>»\n18 °C\n«</tool_response>»\n«<tool_response>»\n</tool_response>\n«</tool_response>»"
    assert f"«<|im_start|>»user\n{results}«<|im_end|>»\n«<|im_start|>»assistant\n" in text


def test_thoughts_before_the_last_question_are_left_out(qwen: ChatTemplate) -> None:
    talk = [HELLO, Message("assistant", "Hi", reasoning="a long thought"), Message("user", "And now?")]
    assert "a long thought" not in spelled(qwen.render(talk), qwen.special_ids)


def test_what_a_template_offers_is_read_from_it(qwen: ChatTemplate) -> None:
    assert (qwen.supports_tools, qwen.supports_thinking) == (True, True)
    assert (template().supports_tools, template().supports_thinking) == (False, False)


def test_what_follows_a_reply_is_what_the_template_writes_after_it() -> None:
    talk = [HELLO, Message("assistant", "Hi!"), Message("user", "More")]
    assert template().render_after(talk, 1) == [2, "\n", 1, "user\nMore", 2, "\n", 1, "assistant\n"]


def test_prompt_reply_and_what_follows_are_the_whole_conversation(
    tokenizer: LocalTokenizer, qwen: ChatTemplate
) -> None:
    first = [Message("system", "Be brief."), HELLO]
    talk = [*first, Message("assistant", "Hi there."), Message("user", "Why?")]
    after = qwen.render_after(talk, 2)
    assert after is not None
    continued = [*qwen.render(first), "Hi there.", *after]
    assert spelled(continued, qwen.special_ids) == spelled(qwen.render(talk), qwen.special_ids)


def test_what_follows_cannot_be_told_where_the_template_drops_or_repeats_replies() -> None:
    talk = [HELLO, Message("assistant", "Hi!")]
    assert template("{{ messages[0].content }}").render_after(talk, 1) is None
    assert (
        template("{% for i in range(2) %}{{ messages[1].content }}<|im_end|>{% endfor %}").render_after(talk, 1) is None
    )


def test_a_last_message_can_be_left_open_with_its_very_last_blank() -> None:
    talk = [HELLO, Message("assistant", "I am ")]
    assert template().render_open(talk) == [1, "user\nHello", 2, "\n", 1, "assistant\nI am "]
    assert template().render_open([HELLO, Message("assistant")]) == template().render([HELLO])


@pytest.mark.parametrize("thinking", [None, False])
def test_qwens_own_open_message_is_the_closed_one_without_its_end(qwen: ChatTemplate, thinking: bool | None) -> None:
    talk = [HELLO, Message("assistant", "I am "), HELLO, Message("assistant", "One, two,")]
    opened = spelled(qwen.render_open(talk, thinking=thinking), qwen.special_ids)
    assert opened.endswith("One, two,")
    assert spelled(qwen.render(talk, thinking=thinking), qwen.special_ids).startswith(f"{opened}«<|im_end|>»\n")


def test_a_template_that_does_not_show_its_last_message_once_cannot_leave_it_open() -> None:
    with pytest.raises(InvalidRequest, match="cannot leave the last message open"):
        template("{{ messages[0].content }}").render_open([HELLO, Message("assistant", "I am")])


def test_a_prompt_that_a_client_rendered_itself_may_use_special_tokens() -> None:
    assert template().split_raw("<|im_start|>user\nHi<|other|>") == [1, "user\nHi<|other|>"]


def test_a_refusal_of_the_template_is_the_clients_error() -> None:
    with pytest.raises(InvalidRequest, match="roles must alternate") as caught:
        template("{{ raise_exception('roles must alternate') }}").render([HELLO])
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''.__class__ }}{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__.keys() }}",
        "{% for i in range(10000000) %}x{% endfor %}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(source: str) -> None:
    with pytest.raises(InvalidRequest):
        template(source).render([HELLO])


def test_an_expression_that_fails_is_the_clients_error_too() -> None:
    with pytest.raises(InvalidRequest, match="cannot render"):
        template("{{ messages[0].content + 1 }}").render([HELLO])


@pytest.mark.parametrize("name", ["messages", "tools", "bos_token", "add_generation_prompt"])
def test_template_arguments_cannot_replace_what_the_service_sets(name: str) -> None:
    with pytest.raises(InvalidRequest, match=name) as caught:
        template().render([HELLO], kwargs={name: "x"})
    assert caught.value.param == "chat_template_kwargs"


def test_a_schema_nested_a_thousand_deep_is_refused() -> None:
    schema: dict[str, object] = {}
    for _ in range(5000):
        schema = {"a": schema}
    with pytest.raises(InvalidRequest, match="nested"):
        template("{{ tools | tojson }}").render([HELLO], tools=[Tool("f", "", schema)])


def test_the_environment_is_that_of_transformers() -> None:
    source = "{{ bos_token }}{% for i in [1, 2, 3] %}\n  {%- if i == 2 %}{% break %}{% endif %}{{ i }}\n{% endfor %}{{ strftime_now('%Y') }}"
    (text,) = template(source, bos_token="<s>").render([HELLO])
    assert re.fullmatch(r"<s>1\n20\d\d", str(text))


def test_text_in_every_private_use_guard_is_refused_rather_than_changed() -> None:
    everything = "".join(map(chr, range(0xF0000, 0xF0400)))
    with pytest.raises(InvalidRequest, match="private-use"):
        template().render([Message("user", everything)])


PARTS_ONLY = (
    "<|im_start|>{% for m in messages %}{{ m.role | capitalize }}: {% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}Assistant:"
)


def test_a_template_that_reads_parts_only_is_given_parts() -> None:
    """SmolVLM's is of this kind: from a string it takes nothing at all."""
    template = ChatTemplate(PARTS_ONLY, {"<|im_start|>": 1, "<end_of_utterance>": 2})
    messages = [Message("user", "Hi <end_of_utterance>"), Message("assistant", "Yes."), Message("user", "Why?")]
    text = ["User: Hi <end_of_utterance>", 2, "\nAssistant: Yes.", 2, "\nUser: Why?", 2, "\nAssistant:"]
    assert template.render(messages) == [1, *text]
    assert template.render_after(messages, 1) == [2, "\nUser: Why?", 2, "\nAssistant:"]
    assert template.render_open(messages[:2])[-1] == "\nAssistant: Yes."


def test_a_template_that_takes_strings_is_given_strings() -> None:
    both = "{% for m in messages %}{{ m.content if m.content is string else 'parts' }}{% endfor %}"
    assert ChatTemplate(both, {}).render([Message("user", "Hi")]) == ["Hi"]
