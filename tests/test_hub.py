"""Models from a hub on this machine, through the real client: whole, damaged, absent, and without a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants, snapshot_download

from parivox.audio import read_audio
from parivox.backend import BACKENDS, installed
from parivox.cli import main
from parivox.convert import convert
from parivox.errors import CheckpointError, ConfigError
from parivox.hub import PUBLIC, hub_folder, parse_name
from parivox.model_files import read_model
from parivox.public_layout import HPARAMS, LATEST
from parivox.run_config import config_of
from parivox.run_start import first_checkpoint
from tests.hub_server import Hub, files_of, hub_server
from tests.published import STATES_PATH, denoiser, published, same
from tests.tiny_model import NARROW, enhancer_run, recording

ROOT = Path(__file__).parent.parent
NAME, PLACE = "hub:somebody/tiny-model", "enhancer_stage2/"
REPO = NAME.removeprefix("hub:")
FILES = [PLACE + HPARAMS, PLACE + LATEST, PLACE + STATES_PATH.as_posix()]
OTHERS = {"README.md": b"# A model", "figures/large.png": bytes(20_000)}
HERE = [name for name in BACKENDS if installed(name)]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return published(tmp_path_factory.mktemp("model") / "public", *denoiser())


@pytest.fixture
def hub(model, tmp_path, monkeypatch) -> Iterator[Hub]:
    """A hub with one model among other files; the client of this process knows no other hub."""
    with hub_server() as server:
        server.repos[REPO] = {**files_of(model, PLACE), **OTHERS}
        use_hub(monkeypatch, server.endpoint, tmp_path / "cache")
        yield server


def use_hub(monkeypatch, endpoint: str, cache: Path) -> None:
    """What HF_ENDPOINT and HF_HUB_CACHE do; the client reads them only when it is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


def refused(text: str = NAME) -> str:
    """The one line of a model that cannot be had."""
    with pytest.raises(CheckpointError) as caught:
        hub_folder(text, pytest.fail if text != NAME else lambda line: None)
    line = str(caught.value)
    assert line.startswith(f"{text}: ") and "\n" not in line
    return line


def blobs(cache: Path) -> list[int]:
    """Sizes of what the cache has stored whole."""
    paths = (path for path in cache.glob("models--*/blobs/*") if path.suffix != ".incomplete")
    return sorted(path.stat().st_size for path in paths)


def test_only_what_is_needed_is_downloaded_and_only_once(hub, model, tmp_path):
    lines: list[str] = []
    folder = hub_folder(NAME, lines.append)
    store = tmp_path / "cache" / "models--somebody--tiny-model"
    assert folder == store / "snapshots" / hub.commit(REPO) / "enhancer_stage2"
    assert files_of(folder) == files_of(model)
    assert hub.downloads() == FILES
    assert not any(name in line for line in hub.asked for name in OTHERS)
    (line,) = lines
    assert line == f"{NAME}: fetching {len(hub.repos[REPO][FILES[2]]) / 1e6:.0f} MB into {store}"
    hub.asked.clear()
    assert hub_folder(NAME, pytest.fail) == hub_folder(f"{NAME}@main", pytest.fail) == folder
    assert hub.asked == []


def test_the_tensors_are_those_that_were_published(hub, model):
    found, form = read_model(Path(NAME), lambda line: None)
    assert form == "public" and same(found.tensors, read_model(model)[0].tensors)


@pytest.mark.parametrize("revision", ["v1.0", "commit"])
def test_a_revision_is_a_tag_or_a_commit(hub, revision):
    hub.revisions = ("main", "v1.0")
    commit = hub.commit(REPO)
    text = f"{NAME}@{commit if revision == 'commit' else revision}"
    folder = hub_folder(text, lambda line: None)
    assert commit in folder.parts
    hub.status = 503
    assert hub_folder(text, pytest.fail) == folder
    # Nobody asked for the branch, so what is here does not stand for it.
    assert "503" in refused()


def test_a_branch_that_was_fetched_stays_until_it_is_deleted(hub, tmp_path):
    before = hub_folder(NAME, lambda line: None)
    hub.repos[REPO] = {**hub.repos[REPO], "README.md": b"# A better model"}
    assert hub_folder(NAME, pytest.fail) == before
    (tmp_path / "cache" / "models--somebody--tiny-model" / "refs" / "main").unlink()
    assert (
        hub.commit(REPO) in hub_folder(NAME, lambda line: None).parts and hub.commit(REPO) not in before.parts
    )


def test_the_root_of_a_repository_comes_first(hub, model):
    hub.repos["somebody/flat"] = {**files_of(model), **files_of(model, "other/")}
    folder = hub_folder("hub:somebody/flat", lambda line: None)
    assert folder.name == hub.commit("somebody/flat") and files_of(folder) == files_of(model)
    assert hub_folder("hub:somebody/flat", pytest.fail) == folder


def test_repositories_without_one_model_are_refused(hub, model):
    hub.repos["somebody/none"] = {**OTHERS, **files_of(model, "too/deep/"), **files_of(model, "../")}
    hub.repos["somebody/two"] = {**files_of(model, "a/"), **files_of(model, "b/")}
    hub.repos["somebody/part"] = {PLACE + HPARAMS: b"unet_hidden_dim: 2\n"}
    assert f"no {HPARAMS}" in refused("hub:somebody/none")
    line = refused("hub:somebody/two")
    assert "2 models (a/, b/)" in line and "hf download somebody/two" in line
    assert f"has no {PLACE}{LATEST}" in refused("hub:somebody/part")
    assert [name for name in hub.downloads() if not name.endswith(HPARAMS)] == []


def test_a_repository_or_revision_that_is_not_there(hub, tmp_path):
    line = refused("hub:somebody/unknown")
    assert "has no such repository, or it is private" in line and hub.endpoint in line
    line = refused(f"{NAME}@v9")
    assert "has no revision 'v9'" in line
    hub.status = 404
    assert "has no such repository" in refused("hub:somebody/unknown")
    assert "can be no repository" in refused("hub:somebody/-")
    assert blobs(tmp_path / "cache") == []


def test_a_repository_whose_owner_asks_who_you_are(hub):
    hub.gated = True
    assert f"accept the terms on {hub.endpoint}/{REPO}" in refused()


@pytest.mark.parametrize("file", FILES)
def test_a_file_that_arrives_changed_is_thrown_away(hub, model, tmp_path, file):
    content = bytearray(hub.repos[REPO][file])
    content[len(content) // 2] ^= 1
    hub.bodies[file] = bytes(content)
    line = refused()
    assert f"{file} arrived damaged" in line and "run the command again" in line
    assert len(content) not in blobs(tmp_path / "cache")
    hub.bodies.clear()
    assert files_of(hub_folder(NAME, lambda line: None)) == files_of(model)


def test_a_file_that_arrives_truncated_is_no_model(hub, model, tmp_path):
    hub.bodies[FILES[2]] = hub.repos[REPO][FILES[2]][:-1000]
    line = refused()
    assert "did not arrive whole" in line and "run the command again" in line
    assert all(size < 1000 for size in blobs(tmp_path / "cache"))
    hub.bodies.clear()
    assert files_of(hub_folder(NAME, lambda line: None)) == files_of(model)


def test_a_cache_that_was_damaged_later_says_what_to_delete(hub, tmp_path):
    states = hub_folder(NAME, lambda line: None) / STATES_PATH
    states.resolve().write_bytes(states.read_bytes()[:-1000])
    with pytest.raises(CheckpointError) as caught:
        read_model(Path(NAME), pytest.fail)
    store = tmp_path / "cache" / "models--somebody--tiny-model"
    assert f"it is of {NAME}: to fetch it anew, delete {store}" in str(caught.value)


def test_without_a_network_a_model_that_is_not_cached_says_what_to_do(hub, tmp_path, monkeypatch):
    with hub_server() as gone:
        pass
    use_hub(monkeypatch, gone.endpoint, tmp_path / "cache")
    line = refused()
    for part in (
        f"{gone.endpoint} cannot be reached",
        f"hf download {REPO} --local-dir FOLDER",
        "--run",
        f"the folder models--somebody--tiny-model of the cache there into {tmp_path / 'cache'} (HF_HUB_CACHE",
    ):
        assert part in line
    assert f"hf download {REPO} --revision v2 --local-dir" in refused(f"{NAME}@v2")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "(HF_HUB_OFFLINE is set)" in refused()


def test_what_the_hubs_own_client_fetched_elsewhere_serves_here(hub, model, tmp_path):
    """The remedies of the test above."""
    snapshot_download(REPO, local_dir=tmp_path / "FOLDER")
    snapshot_download(REPO, cache_dir=tmp_path / "elsewhere")
    hub.status = 503
    assert same(read_model(tmp_path / "FOLDER" / PLACE)[0].tensors, read_model(model)[0].tensors)
    for symlinks in (True, False):
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        shutil.copytree(tmp_path / "elsewhere", tmp_path / "cache", symlinks=symlinks)
        assert files_of(hub_folder(NAME, pytest.fail)) == files_of(model)


def test_what_was_half_fetched_is_not_taken_for_a_model(hub, tmp_path, monkeypatch):
    folder = hub_folder(f"{NAME}@{hub.commit(REPO)}", lambda line: None)
    (folder / LATEST).unlink()
    assert files_of(hub_folder(f"{NAME}@{hub.commit(REPO)}", lambda line: None)).keys() >= {LATEST}
    (folder / STATES_PATH).unlink()
    hub.status = 500
    assert "answers 500" in refused(f"{NAME}@{hub.commit(REPO)}")


def test_a_cache_that_cannot_be_written_is_named(hub, tmp_path):
    (tmp_path / "cache").write_text("in the way")
    assert f"cannot be kept in {tmp_path / 'cache'}" in refused()


@pytest.mark.parametrize(
    "text", ["hub:", "hub:tiny", "hub:a/b/c", "hub:a/b@", "hub:a/..", "hub:a/b@../c", "hub:a b/c"]
)
def test_a_name_of_another_form_is_refused(text):
    with pytest.raises(ConfigError, match="write hub:OWNER/REPO"):
        hub_folder(text, pytest.fail)


def test_the_public_weights_are_the_default_and_are_introduced(hub, model):
    hub.repos[parse_name(PUBLIC).repo] = files_of(model, PLACE)
    lines: list[str] = []
    for _ in range(2):
        hub_folder(PUBLIC, lines.append)
    (line,) = lines
    assert "by Resemble AI, licence MIT" in line


def test_a_missing_input_costs_no_download(hub, tmp_path, capsys):
    assert main(["enhance", str(tmp_path / "no.wav"), str(tmp_path / "out.wav"), "--run", NAME]) == 1
    assert "no.wav: no such file" in capsys.readouterr().err
    assert hub.asked == []


def test_a_model_of_the_hub_becomes_a_run(hub, model, tmp_path, capsys):
    assert main(["convert", NAME, str(tmp_path / "run")]) == 0
    assert same(read_model(tmp_path / "run")[0].tensors, read_model(model)[0].tensors)
    assert "fetching" in capsys.readouterr().err


def test_an_enhancer_begins_with_a_denoiser_of_the_hub(hub, model, tmp_path):
    hp = NARROW.replace(lcfm_training_mode="ae", unet_hidden_dim=2, denoiser_run_dir=Path(NAME))
    begun = first_checkpoint(hp, 0, "identity", config_of(hp, None), lambda line: None)
    for name, array in read_model(model)[0].weights().items():
        assert begun.arrays.weights[f"denoiser.{name}"].tobytes() == array.tobytes()


@pytest.mark.skipif(not HERE, reason="no backend is installed")
def test_the_commands_fetch_once_and_then_need_no_server(tmp_path):
    """In processes of their own, told of the hub as users tell them."""
    run, source = enhancer_run(tmp_path / "run"), recording(tmp_path / "in.wav", subtype="FLOAT")
    convert(run, tmp_path / "public")

    def parivox(endpoint: str, *words: str) -> subprocess.CompletedProcess[str]:
        places = {
            "HF_ENDPOINT": endpoint,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "NO_PROXY": "127.0.0.1,localhost",
        }
        environment = os.environ | {"PYTHONPATH": str(ROOT), **places}
        command = [sys.executable, "-m", "parivox", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done

    with hub_server() as server:
        server.repos[parse_name(PUBLIC).repo] = files_of(tmp_path / "public", PLACE)
        fetched = parivox(server.endpoint, "convert", PUBLIC, str(tmp_path / "again"))
        assert "Resemble AI, licence MIT" in fetched.stderr
    one, two = tmp_path / "one.wav", tmp_path / "two.wav"
    more = ("--denoise-only", "--backend", HERE[-1])
    done = parivox(server.endpoint, "enhance", str(source), str(one), *more)
    assert (
        f"cleaning with {PUBLIC} (the published layout), {HERE[-1]} on" in done.stdout and done.stderr == ""
    )
    assert main(["enhance", str(source), str(two), "--run", str(run), *more]) == 0
    sounds = [read_audio(path)[0] for path in (one, two)]
    assert np.array_equal(*sounds) and np.abs(sounds[0]).max() > 0
