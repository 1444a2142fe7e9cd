from pathlib import Path
from typing import Any

import pytest

from qwen_service.models.manifest import ManifestError, parse_manifest, read_manifest
from qwen_service.models.spec import HubSource

GOOD: dict[str, Any] = {
    "name": "tiny",
    "runtime": "ax_api",
    "files": [{"path": "layers/l{0..2}.axmodel"}, {"path": "post.axmodel", "size": 7, "sha256": "0" * 64}],
    "tokenizer": "tok",
    "programs": {"axcl_arm64": {"candidates": ["main"], "arguments": ["--devices", 0]}},
}


def test_a_range_of_files_is_spelled_out() -> None:
    spec = parse_manifest(GOOD, "x.yaml")
    assert [file.path for file in spec.files] == [*(f"layers/l{n}.axmodel" for n in range(3)), "post.axmodel"]
    assert spec.programs["axcl_arm64"].arguments == ("--devices", "0")


def test_a_hub_source_without_a_revision_is_allowed() -> None:
    assert parse_manifest(GOOD | {"source": {"repo": "me/it"}}, "x.yaml").source == HubSource("me/it", None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": None}, "x.yaml: name: is missing"),
        ({"name": "../etc"}, "x.yaml: name: '../etc' is not allowed, expected lower-case letters"),
        ({"name": "manifests"}, "expected another name"),
        ({"runtime": "cuda"}, "x.yaml: runtime: 'cuda' is not allowed, expected one of llamacpp, ax_repl"),
        ({"contxt": 3}, "x.yaml: contxt: 3 is not allowed, expected the key context"),
        ({"template": "x"}, "x.yaml: template: 'x' is not allowed, expected one of name, runtime"),
        ({"decode_rate": float("nan")}, "expected a number, 0 or more"),
        ({"source": {"wheel": "a==1"}}, "x.yaml: source.member: is missing"),
        (
            {"source": {"repo": "a/b", "branch": 1}},
            "x.yaml: source.branch: 1 is not allowed, expected one of repo, revision",
        ),
        ({"context": "much"}, "x.yaml: context: 'much' is not allowed, expected a whole number"),
        ({"context": True}, "expected a whole number"),
        ({"thinking": "no"}, "x.yaml: thinking: 'no' is not allowed, expected true or false"),
        ({"decode_rate": -1}, "expected a number, 0 or more"),
        ({"title": 3}, "expected a text"),
        ({"aliases": "qwen"}, "x.yaml: aliases: 'qwen' is not allowed, expected a list"),
        ({"aliases": ["a b"]}, "expected a model name"),
        ({"sampling": {"heat": 1}}, "x.yaml: sampling.heat: 1 is not allowed, expected"),
        ({"sampling": [1]}, "x.yaml: sampling: .* expected lines of the form"),
        ({"post_config": {"top_k": "x"}}, "x.yaml: post_config.top_k: 'x'"),
        ({"files": []}, "x.yaml: files: is empty"),
        (
            {"files": [{"path": "../../x"}]},
            r"x.yaml: files\[0\].path: '../../x' is not allowed, expected a path inside",
        ),
        ({"files": [{"path": "/etc/passwd"}]}, "expected a path inside"),
        ({"files": [{"path": "a", "sha256": "xyz"}]}, r"files\[0\].sha256: 'xyz'"),
        ({"files": [{"path": "a{0..1}", "size": 2}]}, "expected one file where a size"),
        ({"source": {"repo": "me"}}, "x.yaml: source.repo: 'me' is not allowed, expected owner/name"),
        ({"source": {"repo": "a/b", "revision": "main"}}, "expected a commit of 40 digits"),
        ({"source": {"wheel": "thing", "member": "x"}}, "source.wheel: 'thing' is not allowed, expected name==version"),
        ({"programs": None}, "needs a program for one kind of machine"),
        ({"programs": {"axcl_arm64": {"arguments": ["x"]}}}, "programs.axcl_arm64.candidates"),
        ({"programs": {"axcl_arm64": {"candidates": []}}}, "programs.axcl_arm64.candidates: .* expected at least one"),
        ({"programs": {"pi": {"candidates": ["x"]}}}, "x.yaml: programs.pi"),
        ({"arguments": [{"a": 1}]}, "expected a text or a number"),
        ({"tokenizer": None}, "needs the folder of a tokenizer.json"),
        ({"runtime": "llamacpp"}, "needs a .gguf file"),
    ],
)
def test_a_mistake_is_named_by_file_key_value_and_expectation(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        parse_manifest(GOOD | change, "x.yaml")


@pytest.mark.parametrize(
    ("content", "message"), [(b"a: [", "not valid YAML"), (b"\xff\xfe\x00", "not valid"), (b"- a", "key: value")]
)
def test_a_file_that_is_no_manifest_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(ManifestError, match=f"broken.yaml.*{message}"):
        read_manifest(path)


def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"gone.yaml: cannot be read"):
        read_manifest(tmp_path / "gone.yaml")
