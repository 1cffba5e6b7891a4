"""What `parivox convert` refuses, each in one line that names it, and without a trace of a target."""

from __future__ import annotations

import os
import pickle
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest

from parivox import convert as module
from parivox.convert import convert
from parivox.errors import CheckpointError, ConfigError
from parivox.public_layout import LATEST, read_public
from parivox.torch_file import write_torch_file
from parivox.torch_pickle import CALLS
from tests.published import STATES_PATH, denoiser, pickle_in, published, refused, rewritten


@pytest.fixture
def public(tmp_path) -> Path:
    return published(tmp_path / "public", *denoiser())


class Bomb:
    def __init__(self, call, *arguments):
        self.call = call, arguments

    def __reduce__(self):
        return self.call


def hostile(marker: Path) -> dict[str, bytes]:
    """Pickles that write a file where anything in them runs; each in a way of its own."""
    bombs = {
        "posix.mkdir": pickle.dumps({"module": Bomb(os.mkdir, str(marker))}, 2),
        "builtins.eval": pickle.dumps(Bomb(eval, f"open({str(marker)!r}, 'w')"), 4),
        "subprocess.Popen": pickle.dumps(
            [Bomb(subprocess.Popen, ["touch", str(marker)])], 2, fix_imports=False
        ),
    }
    word = str(marker).encode()
    bombs["posix.system"] = b"(S'touch " + word + b"'\niposix\nsystem\n."
    bombs["instruction OBJ"] = b"(ccollections\nOrderedDict\no."
    bombs["instruction NEWOBJ"] = b"ccollections\nOrderedDict\n)\x81."
    bombs["instruction EXT1"] = b"\x82\x01."
    bombs["torch.serialization.load"] = b"ctorch.serialization\nload\n(X\x01\0\0\0atR."
    bombs["state of a Python object"] = b"ctorch\nFloatStorage\n}b."
    bombs["call of something of type dict"] = b"})R."
    bombs["call of 'torch.FloatStorage'"] = b"ctorch\nFloatStorage\n)R."
    bombs["collections.OrderedDict.update"] = (
        b"\x80\x04X\x0b\0\0\0collectionsX\x12\0\0\0OrderedDict.update\x93."
    )
    return bombs


@pytest.mark.parametrize("what", list(hostile(Path("x"))))
def test_a_pickle_that_tries_to_run_code_is_refused_by_name(tmp_path, public, what):
    marker = tmp_path / "marker"
    rewritten(public, {"data.pkl": hostile(marker)[what]})
    message = refused(public, tmp_path)
    assert "refused" in message and "nothing of it was run" in message
    if what != "posix.system":  # the instruction INST is refused before its name is looked at
        assert what in message
    assert not marker.exists()


def test_only_rebuilding_is_ever_called():
    assert set(CALLS) == {
        "collections.OrderedDict",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
        "torch.Size",
    }


def test_a_checkpoint_of_another_width_lists_every_tensor(tmp_path, public):
    settings = public / "hparams.yaml"
    settings.write_text(settings.read_text().replace("unet_hidden_dim: 2", "unet_hidden_dim: 4"))
    message = refused(public, tmp_path)
    assert "does not fit this model; use the hyperparameters it was trained with" in message
    assert "185 of another shape: net.input_proj.weight is (2, 3, 3, 3) but should be (4, 3, 3, 3)" in message


def test_missing_extra_and_misshapen_tensors_are_one_error(tmp_path):
    hp, tensors = denoiser()
    tensors["net.head.9.bias"] = tensors.pop("net.head.0.bias")
    tensors["net.head.2.bias"] = np.zeros(4, np.float32)
    del tensors["mel_fn.melspec.mel_scale.fb"]
    message = refused(published(tmp_path / "public", hp, tensors), tmp_path)
    assert "2 missing: net.head.0.bias, mel_fn.melspec.mel_scale.fb" in message
    assert "1 extra: net.head.9.bias" in message
    assert "1 of another shape: net.head.2.bias is (4,) but should be (3,)" in message


def test_an_unknown_hyperparameter_is_named(tmp_path, public):
    with open(public / "hparams.yaml", "a") as file:
        file.write("hop_sise: 420\n")
    message = refused(public, tmp_path, ConfigError)
    assert "hparams.yaml: unknown hyperparameter 'hop_sise' (did you mean 'hop_size'?)" in message


@pytest.mark.parametrize("name", [LATEST, "hparams.yaml", str(STATES_PATH)])
def test_a_missing_file_is_named(tmp_path, public, name):
    (public / name).unlink()
    message = refused(public, tmp_path, ConfigError if name == "hparams.yaml" else CheckpointError)
    assert message.startswith(f"{public / name}: cannot be read (No such file or directory)")


@pytest.mark.parametrize("text", [b"", b"../../..", b"a/b", b"..", b"\xff\xfe", b"a\0b"])
def test_latest_names_a_folder_beside_it(tmp_path, public, text):
    (public / LATEST).write_bytes(text)
    assert str(public / LATEST) in refused(public, tmp_path)


def test_another_tag_is_followed(tmp_path, public):
    (public / "ds/G/default").rename(public / "ds/G/step-7")
    (public / LATEST).write_text("step-7\n")
    assert len(read_public(public)[2]) == 189


def test_a_truncated_file_says_so(tmp_path, public):
    path = public / STATES_PATH
    path.write_bytes(path.read_bytes()[:-100])
    assert f"{path}: truncated, damaged or no torch file" in refused(public, tmp_path)


def test_other_sources_are_refused(tmp_path, public):
    assert "no such file or folder" in refused(tmp_path / "absent", tmp_path)
    (tmp_path / "empty").mkdir()
    assert "neither a run (no checkpoints) nor a published model" in refused(tmp_path / "empty", tmp_path)
    assert "give the folder that holds hparams.yaml" in refused(public / STATES_PATH, tmp_path)
    (tmp_path / "noise.safetensors").write_bytes(b"\0" * 50)
    assert "no safetensors file" in refused(tmp_path / "noise.safetensors", tmp_path)
    (tmp_path / "empty.safetensors").touch()
    assert "no safetensors file" in refused(tmp_path / "empty.safetensors", tmp_path)
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(1)}, tmp_path / "foreign.safetensors")
    assert "not a Parivox checkpoint" in refused(tmp_path / "foreign.safetensors", tmp_path)


def test_a_destination_that_exists_is_left_alone(tmp_path, public):
    for name in ("there", "there.safetensors"):
        (tmp_path / name).mkdir()
        with pytest.raises(CheckpointError, match="exists already; name another place"):
            convert(public, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"must not end in \.safetensors"):
        convert(public, tmp_path / "a.safetensors", "run")
    with pytest.raises(CheckpointError, match=r"must end in \.safetensors"):
        convert(public, tmp_path / "a", "safetensors")


def test_a_conversion_that_fails_leaves_nothing(tmp_path, public, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    before = sorted(tmp_path.iterdir())
    for name, target, form in (
        ("write_public", "a", "public"),
        ("save_checkpoint", "b", "run"),
        ("save_file", "c.safetensors", "safetensors"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, full)
            with pytest.raises(CheckpointError, match=r"cannot be written \(\[Errno 28\] No space left"):
                convert(public, tmp_path / target, form)
    assert sorted(tmp_path.iterdir()) == before


def test_a_compressed_file_is_refused(tmp_path, public):
    rewritten(public, {}, compression=zipfile.ZIP_DEFLATED)
    assert "is compressed" in refused(public, tmp_path)


def one_tensor(old: bytes, new: bytes, public: Path) -> None:
    pickled = pickle_in(public)
    assert pickled.count(old) >= 1
    rewritten(public, {"data.pkl": pickled.replace(old, new, 1)})


def test_sizes_that_lie_are_refused(tmp_path, public):
    first = 2 * 3 * 3 * 3
    number = b"J" + first.to_bytes(4, "little")
    one_tensor(b"cpu" + number, b"cpuJ" + (first + 1).to_bytes(4, "little"), public)
    assert f"has {4 * first} bytes for {first + 1} numbers" in refused(public, tmp_path)


@pytest.mark.parametrize(
    ("offset", "fault"),
    [(1, "leaves its entry"), (2**31 - 1, "leaves its entry"), (2**32 - 1, "a size is no number")],
)
def test_a_tensor_must_lie_inside_its_storage(tmp_path, public, offset, fault):
    at = b"tQJ"
    one_tensor(at + bytes(4), at + offset.to_bytes(4, "little"), public)
    assert fault in refused(public, tmp_path)


def test_strides_beyond_the_storage_are_refused(tmp_path, public):
    strides = b"".join(b"J" + k.to_bytes(4, "little") for k in (27, 9, 3, 1))
    longer = b"".join(b"J" + k.to_bytes(4, "little") for k in (27, 9, 3, 2))
    one_tensor(strides, longer, public)
    assert "leaves its entry" in refused(public, tmp_path)


@pytest.mark.parametrize("name", ["data.pkl", "data/7"])
def test_entries_must_be_there(tmp_path, public, name):
    rewritten(public, {name: None})
    assert "damaged" in refused(public, tmp_path)


def test_a_damaged_plain_file_is_noticed(tmp_path, public):
    path = tmp_path / "one.safetensors"
    convert(public, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "the digest of the tensors differs" in refused(path, tmp_path)
    path.write_bytes(whole.replace(b"hop_size", b"hop_sise", 1))
    assert "the digest of the header differs" in refused(path, tmp_path)
    path.write_bytes(whole[:-100])
    assert "truncated" in refused(path, tmp_path)


def test_a_file_without_a_model(tmp_path, public):
    write_torch_file(public / STATES_PATH, {})
    assert "has no entry 'module'" in refused(public, tmp_path)
    rewritten(public, {"data.pkl": pickle.dumps({"module": {"a": 1}}, 2)})
    assert "entries of 'module' are no tensors: a" in refused(public, tmp_path)
