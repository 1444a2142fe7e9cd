"""The settings of the service, one flat tree, each with its bounds and its help.

The help texts here are the only ones: the command line's --help, docs/configuration.md and the error messages
are made from them.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

ENV_PREFIX = "QWEN_"
TOKENIZER_LOGGER = "qwen_service.tokenizer"  # the logger of the tokenizer server, whose lines go to tokenizer.log, too


def _split_commas(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _split_pairs(value: object) -> object:
    if not isinstance(value, str):
        return value
    pairs = (part.partition("=") for part in value.split(",") if part.strip())
    return {name.strip(): target.strip() for name, _, target in pairs}


def _once(numbers: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(numbers)) < len(numbers):
        raise ValueError("a number is there twice")
    return numbers


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_commas)]
Devices = Annotated[
    tuple[Annotated[int, Field(ge=0, le=255)], ...], NoDecode, BeforeValidator(_split_commas), AfterValidator(_once)
]
Pairs = Annotated[dict[str, str], NoDecode, BeforeValidator(_split_pairs)]
Seconds = Annotated[float, Field(ge=0, le=86_400 * 365)]
Degrees = Annotated[float, Field(ge=0, le=150)]
Port = Annotated[int, Field(ge=0, le=65_535)]


def _setting(default: Any, text: str, **limits: Any) -> Any:
    return Field(default, description=text, **limits)


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True, protected_namespaces=())

    host: Names = _setting(
        ("127.0.0.1", "::1"),
        "Addresses to listen on, comma-separated. Anything but loopback opens the service to the network.",
    )
    port: Port = _setting(8080, "Port of the service; 0 takes a free one and logs it.")

    ollama_port: Port = _setting(
        0, "A second port of the service, for apps that look for Ollama where it usually is: 11434. 0: none."
    )

    model: str = _setting(
        "auto",
        "Name of the model to load at start (`qwen-service list` shows them). auto: the first installed model that"
        " this machine can run: a card's before the CPU's, and SmolLM2 only where there is no other.",
    )
    model_path: Path | None = _setting(
        None, "A GGUF file to serve instead of a catalog model, with its own chat template."
    )
    models_dir: Path = _setting(Path("models"), "Folder that holds the installed models.")
    state_dir: Path = _setting(Path("~/.local/state/qwen-service"), "Folder for sockets and PID files.")
    log_dir: Path | None = _setting(
        None, "Folder for service.log, model.log and tokenizer.log, rotated. None: engine logs go to state_dir."
    )

    simulate: str | None = _setting(
        None, "Name of a card's model to play without a card, for demonstration: the vendor's program is a simulator."
    )
    accelerator: Literal["auto", "required", "none"] = _setting(
        "auto", "auto: use a card if there is one. required: without a working card answer 503. none: CPU only."
    )
    devices: Devices = _setting(
        (0,), "Cards to use, comma-separated: one process of the model per card, one queue.", min_length=1
    )
    fallback_model: str | None = _setting(
        None, "A CPU model that answers while the card's model is down. Named truthfully in every answer."
    )
    fallback_after: Seconds = _setting(10, "The card must be down for so many seconds before the fallback answers.")
    autoload: Literal["auto", "on", "off"] = _setting(
        "auto",
        "A request for an installed model that is not loaded: on switches to it, off refuses with 409, auto switches between CPU"
        " models only, since loading a card takes minutes.",
    )
    unload_when_idle: Seconds = _setting(
        0,
        "A model that nobody has used for so many seconds is unloaded, and its memory freed; the next request loads it again."
        " 0: it stays, but for what Ollama's `keep_alive` says of a CPU model. On a card `keep_alive` counts only if this is set.",
    )
    drain_timeout: Seconds = _setting(120, "When switching models, running replies may go on for so many seconds.")
    tokenizer_port: Port = _setting(
        12345, "Loopback port of the tokenizer that the vendor's programs ask; one more for each further card."
    )
    runtime_port: Port = _setting(
        8000, "Port of the vendor's API program. Stock main_api builds have 8000 compiled in; axllm takes any."
    )

    kv_cache_slots: int = _setting(
        0,
        "Conversations whose KV cache axllm keeps at once. 0: up to 4, as the card's free memory allows; 1: one. A number in the"
        " model's own config.json counts more.",
        ge=0,
        le=64,
    )
    runtime_join: bool = _setting(
        False, "An axllm server runs on runtime_port already: use it instead of starting one."
    )

    llama_server: Path | None = _setting(None, "A llama-server binary to use instead of the built-in llama.cpp.")
    threads: int = _setting(
        0, "CPU threads of the engine. 0: one less than the machine has, at least 1.", ge=0, le=1024
    )
    slots: int = _setting(4, "Generations at once on the CPU engine.", ge=1, le=64)
    context_size: int = _setting(
        0,
        "Context of the CPU engine in tokens, prompts and completions. The conversations that run at once share it, and one may have"
        " it all. 0: what the model was trained for, as far as the memory goes, at least 4096. What is less than 256 counts as 256.",
        ge=0,
        le=1_048_576,
    )

    keep_on_disk: int = _setting(
        1024,
        "MiB in state_dir for what the CPU engine has computed of its last conversations, from a stop to the next start. The files hold what"
        " was said, for the service's user only. 0: none.",
        ge=0,
        le=1_048_576,
    )

    embedding_model: Path | None = _setting(
        None,
        "A GGUF file, or the name of an installed GGUF model, that makes embeddings (/v1/embeddings, /api/embed), loaded when first asked for."
        " None: the first installed model that is made for them; where there is none, 501.",
    )
    embedding_pooling: Literal["model", "mean", "cls", "last"] = _setting(
        "model",
        "How the vector of a text is made of those of its tokens. model: as its manifest or the GGUF file says.",
    )

    speech_to_text: str | None = _setting(
        None,
        "Makes /v1/audio/transcriptions: the folder of a speech model for the vendor's asr_server, or the URL of a server that has"
        " OpenAI's route (speaches, whisper.cpp). None: 501.",
    )
    speech_to_text_model: str | None = _setting(
        None, "The model that is meant where a request names none or OpenAI's. None: the first that the server lists."
    )
    text_to_speech: str | None = _setting(
        None,
        "Makes /v1/audio/speech: the folder of a voice model for the vendor's tts_server, or the URL of a server that has"
        " OpenAI's route. None: 501.",
    )
    text_to_speech_model: str | None = _setting(
        None, "The model that a joined server is asked for, whatever the request says. None: what the request says."
    )
    text_to_speech_voice: str | None = _setting(
        None, "The voice where a request names none. None: the program's own choice."
    )
    asr_server: str = _setting("asr_server", "The vendor's program for speech to text: a name or a path.")
    tts_server: str = _setting("tts_server", "The vendor's program for text to speech: a name or a path.")
    speech_key_file: Path | None = _setting(
        None, "File with the API key (first line) that the joined speech servers want."
    )
    speech_timeout: Seconds = _setting(
        120, "A speech program that has not answered one request after so many seconds is restarted.", gt=0
    )
    max_audio_bytes: int = _setting(
        26_214_400, "Largest audio file to transcribe, in bytes.", ge=1024, le=1_073_741_824
    )
    max_speech_characters: int = _setting(
        16_384, "Longest text to speak in one request, in characters.", ge=1, le=10_000_000
    )

    wyoming_port: Port = _setting(
        0,
        "Port for Home Assistant's Wyoming protocol, with speech_to_text and text_to_speech as far as set: 10300, say. 0: none.",
    )
    wyoming_host: Names = _setting(
        ("127.0.0.1",),
        "Addresses that wyoming_port listens on. Wyoming has no passwords: whoever reaches it may use it.",
    )
    speech_languages: Names = _setting(
        ("en", "zh", "yue", "ja", "ko"),
        "Languages that Home Assistant is told of, for both. These are SenseVoice's; Whisper knows more.",
    )

    queue_size: int = _setting(
        16, "Requests that may wait, for a model or for a slot; one more is refused with 429.", ge=0, le=100_000
    )
    queue_timeout: Seconds = _setting(
        60, "Longest wait of a request for a switch, a load, a restart and its slot together, in seconds."
    )
    stall_timeout: Seconds = _setting(
        60, "An engine that gives no sign of life for so many seconds is restarted.", gt=0
    )
    grace_time: Seconds = _setting(
        10, "On shutdown, running replies may go on for so many seconds before they are cut."
    )
    context_overflow: Literal["trim", "error"] = _setting(
        "trim",
        "A conversation longer than the context: trim drops the oldest turns and says so in a header, error refuses it.",
    )
    warm: Literal["on", "off"] = _setting(
        "on",
        "Prefill, while nobody waits, what the next request will most probably begin with. A file in state_dir keeps the"
        " token ids of the system message and tools that most conversations begin with, never text of users.",
    )
    stable_prefix: Literal["on", "off"] = _setting(
        "on",
        "A line of the system message with a time or date that changes from request to request is shown before the last"
        " user message instead, so that the KV cache can keep what follows it. A header names it.",
    )
    max_tokens: int = _setting(
        0, "Completion tokens where a request names none. 0: what the context has room for.", ge=0, le=2_147_483_647
    )
    max_body_bytes: int = _setting(4_194_304, "Largest request body, in bytes.", ge=1024, le=1_073_741_824)
    max_messages: int = _setting(4096, "Most messages in one request.", ge=1, le=20_000)
    max_images: int = _setting(16, "Most pictures in one request.", ge=0, le=1000)
    max_image_bytes: int = _setting(
        4_194_304,
        "Largest picture, in bytes. In base64 it takes a third more of max_body_bytes.",
        ge=1024,
        le=1_073_741_824,
    )
    max_image_pixels: int = _setting(
        16_777_216, "Most pixels of a picture, width times height.", ge=1024, le=268_435_456
    )
    max_choices: int = _setting(8, "Largest n of one request.", ge=1, le=128)

    body_timeout: Seconds = _setting(30, "Longest time for the body of a request to arrive, in seconds.", gt=0)
    head_timeout: Seconds = _setting(15, "Longest time for the head of a request to arrive, in seconds.", gt=0)
    write_timeout: Seconds = _setting(
        60, "A client that reads nothing of its answer for so many seconds is cut off.", gt=0
    )
    max_connections: int = _setting(
        500,
        "Requests in progress at once, over all clients; one more is told to come back. /health does not count.",
        ge=1,
        le=100_000,
    )
    max_connections_per_client: int = _setting(
        100,
        "Open connections of one address (IPv6: one /64 network); one more is answered 503. This machine and"
        " trusted_proxies are not bound.",
        ge=1,
        le=100_000,
    )
    max_header_bytes: int = _setting(
        32_768, "Largest head of a request, headers and target, in bytes.", ge=1024, le=65_536
    )
    allowed_hosts: Names = _setting(
        ("host.docker.internal",),
        "Host names, beside localhost, this machine's own name and plain addresses, under which the service may be called."
        " A web page whose name is bound to our address is refused. *: every name.",
    )
    cors_origins: Names = _setting(
        ("http://localhost:*", "http://127.0.0.1:*", "http://[::1]:*", "app://*", "file://*", "tauri://*"),
        "Origins of web pages that may use the service, as browsers write them; * stands for a run of name or port"
        " characters. Its own page always may.",
    )
    trusted_proxies: Names = _setting(
        (), "Addresses or networks of reverse proxies whose X-Forwarded-For is believed. No other's is."
    )
    admin_token_file: Path | None = _setting(
        None,
        "File with the token for /admin/... (first line). Without it, whoever is on this machine may administrate.",
    )
    admin_socket: Path | None = _setting(
        None, "Unix socket for /admin/... and everything else, for this user only. None: admin.sock in state_dir."
    )
    api_keys_file: Path | None = _setting(
        None, "File of API keys, a line each: NAME SHA256-OF-THE-KEY. Without it, whoever can connect may ask."
    )

    background_markers: Names = _setting(
        ("### Task:",),
        "Requests whose last message begins so yield to all others: Open WebUI's titles, tags and follow-ups do."
        " The header `X-Priority: background` (or `interactive`) decides before.",
    )

    axcl_smi: str = _setting("axcl-smi", "The vendor's tool for cards: a name on PATH, or a path.")
    npu_poll_interval: Seconds = _setting(10, "Seconds between two looks at the cards. 0: never look.")
    npu_timeout: Seconds = _setting(5, "A look at the cards that takes longer is given up, in seconds.", gt=0)
    npu_warn_above: Degrees = _setting(75, "Log a warning when a card is hotter than this, in degrees C.")
    npu_pause_above: Degrees = _setting(85, "Hold back new work when a card is hotter than this, in degrees C.")
    npu_resume_below: Degrees = _setting(75, "Go on when the card is cooler than this again, in degrees C.")
    npu_recovery: Literal["off", "reboot"] = _setting(
        "off", "What to do with a card that is lost: reboot runs `axcl-smi reboot` before the model is started again."
    )
    npu_reboots_per_hour: int = _setting(3, "At most so many reboots of a card in an hour.", ge=1, le=60)

    unknown_model: Literal["error", "default"] = _setting(
        "error",
        "A request for a model that is not installed: error answers 404, default answers with the loaded model.",
    )
    model_aliases: Pairs = _setting(
        {},
        "Further model names, for apps with a fixed one: gpt-4o-mini=qwen3-4b,... "
        "A name may be a pattern: claude-*=qwen3-4b.",
    )

    log_level: Literal["debug", "info", "warning", "error"] = _setting("info", "How much the service logs.")
    log_format: Literal["text", "json"] = _setting("text", "Form of the service's log lines.")
    log_file: Path | None = _setting(
        None,
        "File for the service's log, beside stderr, rotated at 10 MB. None: service.log in log_dir, if that is set.",
    )
    log_prompts: bool = _setting(False, "Log what the model is asked, for debugging: prompts may hold private things.")

    @field_validator("npu_resume_below")
    @classmethod
    def _is_below_the_pause(cls, degrees: float, others: ValidationInfo) -> float:
        if degrees > (pause := others.data.get("npu_pause_above", degrees)):
            raise ValueError(f"expected at most npu_pause_above, {pause:g}: a card that pauses would never go on")
        return degrees

    @field_validator("tokenizer_port")
    @classmethod
    def _has_room_for_all_cards(cls, port: int, others: ValidationInfo) -> int:
        cards = len(others.data.get("devices", ()))
        if port and port + cards - 1 > 65_535:
            raise ValueError(f"expected at most {65_536 - cards}: {cards} cards have one port each")
        return port

    @property
    def state_folder(self) -> Path:
        return self.state_dir.expanduser()

    @property
    def tokenizer_log(self) -> Path | None:
        return self.log_dir.expanduser() / "tokenizer.log" if self.log_dir else None

    @property
    def service_log(self) -> Path | None:
        file = self.log_file or (self.log_dir / "service.log" if self.log_dir else None)
        return file.expanduser() if file else None

    @property
    def log_folder(self) -> Path:
        return (self.log_dir or self.state_dir).expanduser()
