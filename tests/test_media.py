"""Files that FFmpeg decodes: exact start and length, blocks, and what is refused."""

from __future__ import annotations

import builtins
import secrets
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from parivox import audio_formats, media
from parivox.audio import AudioInfo, probe, read_audio, read_blocks, write_audio
from parivox.audio_formats import find_audio, readable_suffixes
from parivox.enhance_files import FileOptions, enhance_path
from parivox.errors import AudioError
from tests.sound_files import CODECS, lag, speechlike, write_media

needs_media = pytest.mark.skipif(not audio_formats.media_installed(), reason="needs the extra media (av)")
EXACT = [suffix for suffix in CODECS if suffix not in (".aac", ".wma")]
"""Containers that say where the sound begins and ends."""


@needs_media
@pytest.mark.parametrize("suffix", EXACT)
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_start_and_length_are_the_containers(tmp_path, suffix, channels):
    length = 48_000 + secrets.randbelow(3000)
    wav = speechlike(np.random.default_rng(3), channels, length, 48_000)
    path = tmp_path / f"x{suffix}"
    write_media(path, wav, 48_000, CODECS[suffix])
    back, rate = read_audio(path)
    info = probe(path)
    assert (rate, back.shape, back.dtype) == (48_000, wav.shape, np.float32), length
    assert (info.rate, info.channels, info.frames) == (48_000, channels, length)
    assert lag(wav[0], back[0]) == 0
    if suffix in (".mov", ".mkv", ".caf"):  # ALAC and FLAC lose only what 16 or 24 bits do
        assert np.abs(back - wav).max() <= 2**-15
    elif channels < 6:
        assert np.linalg.norm(back - wav) < 0.3 * np.linalg.norm(wav)


@needs_media
@pytest.mark.parametrize("suffix", [".mkv", ".webm"])
def test_eight_channels_come_in_their_order(tmp_path, suffix):
    # Opus decodes to eight planes, which PyAV alone does not survive; its encoder mixes low channels less well.
    wav = speechlike(np.random.default_rng(9), 8, 48_000, 48_000)
    write_media(tmp_path / f"x{suffix}", wav, 48_000, CODECS[suffix])
    back = read_audio(tmp_path / f"x{suffix}")[0]
    assert back.shape == wav.shape
    near = [int(np.argmax([abs(np.corrcoef(one, other)[0, 1]) for other in back])) for one in wav]
    assert [index for index in near if index != 3] == [0, 1, 2, 4, 5, 6, 7]  # 3 is the low-frequency channel


@needs_media
@pytest.mark.parametrize("scale", ["1000", "48000"])
def test_the_edit_list_decides_where_a_movie_ends(tmp_path, scale):
    wav = speechlike(np.random.default_rng(4), 1, 50_001, 48_000)
    write_media(tmp_path / "x.m4a", wav, 48_000, "aac", movie_timescale=scale)
    assert probe(tmp_path / "x.m4a").frames == 50_001
    data = bytearray((tmp_path / "x.m4a").read_bytes())
    at = data.index(b"elst") + 12
    shorter = int.from_bytes(data[at : at + 4], "big") // 2
    data[at : at + 4] = shorter.to_bytes(4, "big")
    (tmp_path / "y.m4a").write_bytes(data)
    assert probe(tmp_path / "y.m4a").frames == shorter * 48_000 // int(scale)
    back = read_audio(tmp_path / "y.m4a")[0]
    np.testing.assert_array_equal(back, read_audio(tmp_path / "x.m4a")[0][:, : back.shape[1]])


@needs_media
@pytest.mark.parametrize("length", [49_153, 49_177, 49_300, 50_152])
def test_an_end_in_milliseconds_is_believed_where_the_last_packet_does_not_say_more(tmp_path, length):
    # FFmpeg passes over a packet that begins behind the end, here 1024 ms, that the edit list gives.
    wav = speechlike(np.random.default_rng(4), 1, length, 48_000)
    write_media(tmp_path / "x.m4a", wav, 48_000, "aac", movie_timescale="1000")
    assert probe(tmp_path / "x.m4a").frames == (1024 * 48 if length < 49_200 else length)


@needs_media
@pytest.mark.parametrize("size", [1, 1000, 65_536])
@pytest.mark.parametrize("suffix", [".wav", ".mp3", ".ogg", ".m4a", ".webm"])
def test_blocks_are_the_file(tmp_path, suffix, size):
    path, length = tmp_path / f"x{suffix}", 701 if size == 1 else 70_003
    wav = speechlike(np.random.default_rng(5), 2, length, 48_000)
    if suffix in CODECS:
        write_media(path, wav, 48_000, CODECS[suffix])
    else:
        write_audio(path, wav, 48_000)
    whole = read_audio(path)[0]
    blocks = list(read_blocks(path, size))
    assert {block.shape[1] for block in blocks[:-1]} <= {size}
    assert 0 < blocks[-1].shape[1] <= size
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1), whole)
    for start, frames in [(0, 10), (length // 3, length // 2), (length - 11, None), (length - 1, 5)]:
        part = np.concatenate(list(read_blocks(path, size, start, frames)), axis=1)
        end = None if frames is None else start + frames
        np.testing.assert_allclose(part, whole[:, start:end], rtol=0, atol=1e-6)
        assert read_audio(path, start, frames)[0].shape == part.shape
    with pytest.raises(AudioError, match="has no sample"):
        read_audio(path, length)
    with pytest.raises(AudioError, match="has no sample"):
        list(read_blocks(path, size, length))


@needs_media
@pytest.mark.parametrize("suffix", [".m4a", ".webm", ".mkv", ".caf"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.8])
def test_a_truncated_file_is_refused(tmp_path, suffix, share):
    path = tmp_path / f"x{suffix}"
    options = {"movflags": "faststart"} if suffix == ".m4a" else {}
    write_media(
        path, speechlike(np.random.default_rng(6), 1, 100_000, 48_000), 48_000, CODECS[suffix], **options
    )
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(AudioError) as error:
        read_audio(path)
    assert str(path) in str(error.value) and "truncated" in str(error.value) and "\n" not in str(error.value)


@needs_media
@pytest.mark.parametrize("codec", ["adpcm_ima_qt", "pcm_s16le", "pcm_alaw"])
def test_a_caf_goes_to_the_decoder_that_knows_its_coding(tmp_path, codec):
    wav = speechlike(np.random.default_rng(10), 2, 30_000, 48_000)
    write_media(tmp_path / "x.caf", wav, 48_000, codec)
    back = read_audio(tmp_path / "x.caf")[0][:, :30_000]
    assert back.shape == wav.shape and lag(wav[0], back[0]) == 0
    assert np.linalg.norm(back - wav) < 0.05 * np.linalg.norm(wav)


def test_a_caf_with_alac_of_libsndfile_needs_no_ffmpeg(tmp_path, monkeypatch):
    monkeypatch.setattr(media, "media_installed", lambda: False)
    wav = speechlike(np.random.default_rng(11), 2, 10_001, 44_100)
    sf.write(tmp_path / "x.caf", wav.T, 44_100, subtype="ALAC_24")
    np.testing.assert_allclose(read_audio(tmp_path / "x.caf")[0], wav, rtol=0, atol=2**-23)


@needs_media
def test_a_changed_file_is_looked_at_anew_and_a_lossless_one_keeps_its_bits(tmp_path):
    path = tmp_path / "x.m4a"
    for length in (5000, 6001):
        write_media(path, speechlike(np.random.default_rng(7), 1, length, 44_100), 44_100, "alac")
        assert probe(path) == AudioInfo(44_100, 1, length, "MOV", "PCM_24")


@needs_media
def test_what_cannot_be_written_becomes_wav(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    wav = speechlike(np.random.default_rng(8), 2, 30_000, 44_100)
    write_media(source / "a.M4A", wav, 44_100, "aac")
    write_audio(source / "b.wav", wav, 44_100)
    assert [path.name for path in find_audio(source, readable_suffixes())] == ["a.M4A", "b.wav"]
    assert [path.name for path in find_audio(source)] == ["b.wav"]  # what trains is the same with and without
    assert enhance_path(source, tmp_path / "out", lambda x: x).done == [
        tmp_path / "out" / "a.wav",
        tmp_path / "out" / "b.wav",
    ]
    assert probe(tmp_path / "out" / "a.wav") == AudioInfo(44_100, 2, 30_000, "WAV", "PCM_16")
    done = enhance_path(source / "a.M4A", tmp_path / "flac", lambda x: x, FileOptions(format="flac")).done
    assert done == [tmp_path / "flac" / "a.flac"]


@needs_media
def test_a_playlist_under_a_false_name_opens_nothing(tmp_path):
    write_audio(tmp_path / "secret.wav", np.full((1, 1000), 0.1, np.float32), 44_100)
    for text in (
        "#EXTM3U\n#EXTINF:1,\nsecret.wav\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile secret.wav\n",
    ):
        (tmp_path / "x.m4a").write_text(text)
        with pytest.raises(AudioError, match="cannot be decoded"):
            read_audio(tmp_path / "x.m4a")


@pytest.mark.parametrize("head", [b"\0\0\0\x20ftypM4A ", b"\x1aE\xdf\xa3", b"\xff\xf1P\x80"])
def test_without_the_extra_the_remedy_is_named_and_a_folder_passes_it_by(tmp_path, monkeypatch, head):
    monkeypatch.setattr(media, "media_installed", lambda: False)
    monkeypatch.setattr(audio_formats, "media_installed", lambda: False)
    path = tmp_path / "x.m4a"
    path.write_bytes(head + bytes(100))
    with pytest.raises(AudioError, match=r"pip install 'parivox\[media\]'"):
        probe(path)
    assert find_audio(tmp_path, readable_suffixes()) == []


def test_a_wav_needs_no_ffmpeg(tmp_path, monkeypatch):
    imported, real = [], builtins.__import__

    def watched(name, *rest, **more):
        imported.append(name)
        return real(name, *rest, **more)

    write_audio(Path(tmp_path / "x.wav"), np.zeros((1, 100), np.float32), 44_100)
    monkeypatch.setattr(builtins, "__import__", watched)
    read_audio(tmp_path / "x.wav")
    assert "av" not in imported
