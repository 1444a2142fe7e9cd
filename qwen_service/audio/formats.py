"""Recognises an audio format by its first bytes: the file name that a client gives proves nothing."""

from qwen_service.audio.sound import wav_head

# Format -> ffmpeg's demuxer. Playlists are left out: they would make ffmpeg open other files.
DEMUXERS = {"wav": "wav", "mp3": "mp3", "ogg": "ogg", "webm": "matroska", "m4a": "mov", "flac": "flac", "aac": "aac"}
# For each response_format of /v1/audio/speech: its media type, and ffmpeg's arguments.
MEDIA_TYPES = {
    "wav": "audio/wav",
    "pcm": "audio/pcm",
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
}
ENCODERS = {
    "mp3": ("-c:a", "libmp3lame", "-b:a", "64k", "-f", "mp3"),
    "opus": ("-c:a", "libopus", "-b:a", "32k", "-page_duration", "200000", "-f", "ogg"),
    "aac": ("-c:a", "aac", "-b:a", "64k", "-f", "adts"),
    "flac": ("-c:a", "flac", "-f", "flac"),
}


def sniff(data: bytes) -> str:
    """The format, a key of DEMUXERS; None when it is not recognised."""
    head = data[:16]
    if wav_head(data) is not None:
        return "wav"
    for name, magic in (("ogg", b"OggS"), ("flac", b"fLaC"), ("webm", b"\x1a\x45\xdf\xa3"), ("mp3", b"ID3")):
        if head.startswith(magic):
            return name
    if head[4:8] == b"ftyp":
        return "m4a"
    if len(head) >= 2 and head[0] == 0xFF:
        if head[1] & 0xF6 == 0xF0:  # ADTS: twelve bits of ones, layer 0
            return "aac"
        if head[1] & 0xE0 == 0xE0 and head[1] & 0x06:  # MPEG: eleven bits of ones, a layer
            return "mp3"
    return ""
