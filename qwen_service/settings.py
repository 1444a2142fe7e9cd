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
        raise ValueError("the same number is listed twice")
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
        0, "A second port of the service, for apps that look for Ollama at its usual port, 11434. 0: none."
    )

    model: str = _setting(
        "auto",
        "Name of the model to load at start (`qwen-service list` shows the names). auto: the first installed model that"
        " this machine can run, a card's before the CPU's, and SmolLM2 last.",
    )
    model_path: Path | None = _setting(
        None, "A GGUF file to serve instead of a catalog model, with its own chat template."
    )
    models_dir: Path = _setting(Path("models"), "Folder that holds the installed models.")
    state_dir: Path = _setting(
        Path("~/.local/state/qwen-service"), "Folder for sockets, and for what the service remembers over a restart."
    )
    log_dir: Path | None = _setting(
        None, "Folder for service.log, model.log and tokenizer.log, rotated. None: engine logs go to state_dir."
    )

    simulate: str | None = _setting(
        None,
        "Name of a card's model to serve without a card, for demonstration: a simulator plays the vendor's program.",
    )
    accelerator: Literal["auto", "required", "none"] = _setting(
        "auto", "auto: use a card if there is one. required: answer 503 without a working card. none: CPU only."
    )
    devices: Devices = _setting(
        (0,), "Numbers of the cards to use, comma-separated. Each runs the model; all share one line.", min_length=1
    )
    fallback_model: str | None = _setting(
        None, "A CPU model that answers while the card's model is down. Each of its answers has its name."
    )
    fallback_after: Seconds = _setting(10, "Seconds that the card must be down before the fallback answers.")
    autoload: Literal["auto", "on", "off"] = _setting(
        "auto",
        "What to do with a request for an installed model that is not loaded. on: switch to it. off: answer 409. auto: switch between"
        " CPU models only, because loading a card takes minutes.",
    )
    unload_when_idle: Seconds = _setting(
        0,
        "Seconds without a request after which a model is unloaded; the next request loads it again. 0: it stays loaded, and only"
        " Ollama's `keep_alive` unloads a CPU model. On a card `keep_alive` counts only if this is set.",
    )
    drain_timeout: Seconds = _setting(120, "Seconds that running replies may go on when models are switched.")
    tokenizer_port: Port = _setting(
        12345, "Loopback port of the tokenizer that the vendor's programs ask; one more for each further card."
    )
    runtime_port: Port = _setting(
        8000, "Port of the vendor's API program. Stock main_api builds have 8000 compiled in; axllm takes any."
    )

    kv_cache_slots: int = _setting(
        0,
        "Conversations whose KV cache axllm keeps at once. 0: up to 4, as the card's free memory allows. A number in the"
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
        "Context of the CPU engine in tokens, for prompts and completions. The running conversations share it, and one may use"
        " all of it. 0: what the model was trained for, as far as the memory goes, at least 4096. A number below 256 counts as 256.",
        ge=0,
        le=1_048_576,
    )

    keep_on_disk: int = _setting(
        1024,
        "MiB in state_dir for the KV cache of the CPU engine's last conversations, from a stop to the next start. The files hold what"
        " was said; only the service's user can read them. 0: none.",
        ge=0,
        le=1_048_576,
    )

    embedding_model: Path | None = _setting(
        None,
        "A GGUF file, or the name of an installed GGUF model, that makes embeddings (/v1/embeddings, /api/embed); the first request loads it."
        " None: the first installed model for embeddings; without one, 501.",
    )
    embedding_pooling: Literal["model", "mean", "cls", "last"] = _setting(
        "model",
        "How the vectors of a text's tokens become the vector of the text. model: as the model's manifest or GGUF file says.",
    )

    speech_to_text: str | None = _setting(
        None,
        "What /v1/audio/transcriptions uses: the folder of a speech model for the vendor's asr_server, or the URL of a server that"
        " has OpenAI's route (speaches, whisper.cpp). None: 501.",
    )
    speech_to_text_model: str | None = _setting(
        None, "The model for requests that name none, or one of OpenAI's. None: the first that the server lists."
    )
    text_to_speech: str | None = _setting(
        None,
        "What /v1/audio/speech uses: the folder of a voice model for the vendor's tts_server, or the URL of a server that has"
        " OpenAI's route. None: 501.",
    )
    text_to_speech_model: str | None = _setting(
        None, "The model that a joined server is asked for. None: the one that the request names."
    )
    text_to_speech_voice: str | None = _setting(
        None, "The voice for requests that name none. None: the program's own choice."
    )
    asr_server: str = _setting("asr_server", "The vendor's program for speech to text: a name or a path.")
    tts_server: str = _setting("tts_server", "The vendor's program for text to speech: a name or a path.")
    speech_key_file: Path | None = _setting(None, "File with the API key (first line) for the joined speech servers.")
    speech_timeout: Seconds = _setting(
        120, "Seconds for one answer of a speech program; one that takes longer is restarted.", gt=0
    )
    max_audio_bytes: int = _setting(
        26_214_400, "Largest audio file to transcribe, in bytes.", ge=1024, le=1_073_741_824
    )
    max_speech_characters: int = _setting(
        16_384, "Longest text to speak in one request, in characters.", ge=1, le=10_000_000
    )

    wyoming_port: Port = _setting(
        0,
        "Port for Home Assistant's Wyoming protocol, usually 10300; it offers speech_to_text and text_to_speech, if they are set. 0: none.",
    )
    wyoming_host: Names = _setting(
        ("127.0.0.1",),
        "Addresses that wyoming_port listens on. Wyoming has no passwords: everybody who can connect may use it.",
    )
    speech_languages: Names = _setting(
        ("en", "zh", "yue", "ja", "ko"),
        "Languages that Home Assistant is told of, for both directions. These are SenseVoice's; Whisper knows more.",
    )

    queue_size: int = _setting(
        16, "Requests that may wait for a model or a slot; one more is refused with 429.", ge=0, le=100_000
    )
    queue_timeout: Seconds = _setting(
        60, "Longest wait of a request for a switch, a load, a restart and its slot together, in seconds."
    )
    stall_timeout: Seconds = _setting(60, "Seconds without a sign of life after which an engine is restarted.", gt=0)
    grace_time: Seconds = _setting(
        10, "Seconds that running replies may go on when the service stops, before they are cut."
    )
    context_overflow: Literal["trim", "error"] = _setting(
        "trim",
        "What to do with a conversation longer than the context. trim: drop the oldest turns and say so in a header. error: refuse it.",
    )
    warm: Literal["on", "off"] = _setting(
        "on",
        "Prefill, while nobody waits, what the next request will most probably begin with. A file in state_dir keeps the"
        " token ids of the system message and tools that most conversations begin with, never text of users.",
    )
    stable_prefix: Literal["on", "off"] = _setting(
        "on",
        "Move a line of the system message with a time or date that changes from request to request to the last user message, so that"
        " the KV cache can keep what follows the line. A header counts moved lines.",
    )
    max_tokens: int = _setting(
        0,
        "Longest completion, in tokens, for requests that name none. 0: what the context has room for.",
        ge=0,
        le=2_147_483_647,
    )
    max_body_bytes: int = _setting(4_194_304, "Largest request body, in bytes.", ge=1024, le=1_073_741_824)
    max_messages: int = _setting(4096, "Most messages in one request.", ge=1, le=20_000)
    max_images: int = _setting(16, "Most pictures in one request.", ge=0, le=1000)
    max_image_bytes: int = _setting(
        4_194_304,
        "Largest picture, in bytes. In base64 it takes a third more, and counts towards max_body_bytes.",
        ge=1024,
        le=1_073_741_824,
    )
    max_image_pixels: int = _setting(
        16_777_216, "Most pixels of a picture, width times height.", ge=1024, le=268_435_456
    )
    max_choices: int = _setting(8, "Largest n of one request.", ge=1, le=128)

    body_timeout: Seconds = _setting(30, "Longest time for the body of a request to arrive, in seconds.", gt=0)
    head_timeout: Seconds = _setting(15, "Longest time for the head of a request to arrive, in seconds.", gt=0)
    write_timeout: Seconds = _setting(60, "Seconds without reading its answer after which a client is cut off.", gt=0)
    max_connections: int = _setting(
        500,
        "Requests in progress at once, over all clients; one more is refused with 429. /health does not count.",
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
        "Further host names under which the service may be called, beside localhost, this machine's own name and plain addresses."
        " This protects from web pages whose name is bound to our address. *: every name.",
    )
    cors_origins: Names = _setting(
        ("http://localhost:*", "http://127.0.0.1:*", "http://[::1]:*", "app://*", "file://*", "tauri://*"),
        "Origins of web pages that may use the service, as browsers write them; * stands for any characters of a name or"
        " port. The service's own page always may.",
    )
    trusted_proxies: Names = _setting(
        (), "Addresses or networks of the reverse proxies whose X-Forwarded-For is believed."
    )
    admin_token_file: Path | None = _setting(
        None,
        "File with the token for /admin/... (first line). None: everybody on this machine may administrate.",
    )
    admin_socket: Path | None = _setting(
        None, "Unix socket for all routes, /admin/... included, for this user only. None: admin.sock in state_dir."
    )
    api_keys_file: Path | None = _setting(
        None,
        "File of API keys, one `NAME SHA256-OF-THE-KEY` a line; `qwen-service key NAME` makes one. None: everybody who can connect may ask.",
    )

    background_markers: Names = _setting(
        ("### Task:",),
        "A request whose last message begins with one of these texts yields to all others; Open WebUI's titles, tags and follow-ups"
        " do. The header `X-Priority: background` (or `interactive`) counts more.",
    )

    axcl_smi: str = _setting("axcl-smi", "The vendor's tool for cards: a name on PATH, or a path.")
    npu_poll_interval: Seconds = _setting(10, "Seconds between two looks at the cards. 0: never look.")
    npu_timeout: Seconds = _setting(5, "Longest time for one look at the cards, in seconds.", gt=0)
    npu_warn_above: Degrees = _setting(75, "Log a warning when a card is hotter than this, in degrees C.")
    npu_pause_above: Degrees = _setting(85, "Hold back new work when a card is hotter than this, in degrees C.")
    npu_resume_below: Degrees = _setting(75, "Go on when the card is cooler than this again, in degrees C.")
    npu_recovery: Literal["off", "reboot"] = _setting(
        "off", "What to do with a lost card. reboot: run `axcl-smi reboot` before the model is started again."
    )
    npu_reboots_per_hour: int = _setting(3, "Most reboots of a card in an hour.", ge=1, le=60)

    unknown_model: Literal["error", "default"] = _setting(
        "error",
        "What to do with a request for a model that is not installed. error: answer 404. default: answer with the loaded model.",
    )
    model_aliases: Pairs = _setting(
        {},
        "Further names of models, for apps with a fixed name: gpt-4o-mini=qwen3-4b."
        " A name may be a pattern: claude-*=qwen3-4b.",
    )

    log_level: Literal["debug", "info", "warning", "error"] = _setting("info", "How much the service logs.")
    log_format: Literal["text", "json"] = _setting("text", "Form of the service's log lines.")
    log_file: Path | None = _setting(
        None,
        "File for the service's log, rotated at 10 MB; stderr gets the log, too. None: service.log in log_dir, if that is set.",
    )
    log_prompts: bool = _setting(False, "Log what the model is asked, for debugging. Prompts may hold private things.")

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
