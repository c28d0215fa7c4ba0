"""Frame k of a video file is the k-th frame that ffmpeg shows, wherever the reading starts and whatever the file is."""

import itertools
import logging
import os

import numpy as np
import pytest
from support.numbered import ffmpeg, numbered_frames, numbers, shown_by_ffmpeg, write_numbered

from latte.data.clips import open_clip
from latte.errors import UserError
from latte.io import video_file
from latte.io.video import read_any, read_video
from latte.io.video_file import VideoFile

X264 = "-c:v libx264 -preset ultrafast -pix_fmt yuv420p"
X265 = "-c:v libx265 -preset ultrafast -pix_fmt yuv420p -x265-params log-level=none"
OPEN = f"{X264} -bf 3 -g 12 -x264-params open-gop=1:scenecut=0"
USUAL = {
    "xvid.avi": "-c:v libxvid -bf 2 -g 24",
    "h264.avi": f"{X264} -bf 3 -g 24",
    "h264_open.mp4": OPEN,
    "hevc_open.mkv": f"{X265}:keyint=12:min-keyint=12:open-gop=1",
    "vp9.webm": "-c:v libvpx-vp9 -b:v 200k -g 12 -cpu-used 8 -deadline realtime",
}
H264 = {
    "bf0": f"{X264} -bf 0 -g 12",
    "bf3": f"{X264} -bf 3 -g 24",
    "long": f"{X264} -bf 3 -g 300",
    "open": OPEN,
    "refresh": f"{X264} -bf 0 -g 12 -x264-params intra-refresh=1",
    "interlaced": f"{X264} -bf 3 -g 24 -flags +ildct+ilme",
}
MORE = {f"h264_{kind}.{suffix}": options for kind, options in H264.items() for suffix in ("mp4", "mkv", "avi", "ts")}
MORE |= {f"xvid_bf{b}_g{g}.avi": f"-c:v libxvid -bf {b} -g {g}" for b in (0, 2) for g in (12, 300)}
MORE |= {
    f"mpeg4_bf{b}.{suffix}": f"-c:v mpeg4 -q:v 4 -bf {b} -g 12" for b in (0, 2) for suffix in ("mp4", "avi", "mkv")
}
MORE |= {f"hevc.{suffix}": f"{X265}:keyint=12" for suffix in ("mp4", "mov", "ts")}
MORE |= {
    "hevc10.mp4": f"{X265}:keyint=12".replace("yuv420p", "yuv420p10le"),
    "vp8.webm": "-c:v libvpx -b:v 300k -g 12 -auto-alt-ref 1 -lag-in-frames 16",
    "vp9_alt.mkv": "-c:v libvpx-vp9 -b:v 200k -g 24 -auto-alt-ref 1 -lag-in-frames 16 -cpu-used 8",
    "alpha.webm": "-c:v libvpx-vp9 -b:v 200k -g 24 -pix_fmt yuva420p -cpu-used 8",
    "av1.mp4": "-c:v libaom-av1 -cpu-used 8 -g 12 -b:v 200k -usage realtime",
    "av1.webm": "-c:v libsvtav1 -preset 12 -g 12 -pix_fmt yuv420p",
    "mpeg2.mpg": "-c:v mpeg2video -bf 2 -g 12 -q:v 4",
    "mpeg2.ts": "-c:v mpeg2video -bf 2 -g 12 -q:v 4",
    "mjpeg.avi": "-c:v mjpeg -q:v 4 -pix_fmt yuvj420p",
    "prores.mov": "-c:v prores_ks -pix_fmt yuv422p10le",
    "ffv1.mkv": "-c:v ffv1",
    "raw.avi": "-c:v rawvideo -pix_fmt bgr24",
    "theora.ogv": "-c:v libtheora -q:v 6 -g 12",
    "wmv2.wmv": "-c:v wmv2 -q:v 3 -g 12",
    "flv1.flv": "-c:v flv -q:v 3 -g 12",
    "odd.mp4": f"-vf scale=63:47 {X264} -pix_fmt yuv444p",
}
VARIABLE = "-vf setpts='(2*N+3*floor(N/3)+5*floor(N/7))/50/TB' -fps_mode passthrough"


def check_windows(path, expected, monkeypatch):
    """Windows are equal to what ffmpeg shows, read from the start of the file, and by jumps where there are any."""
    for far, start, stride in itertools.product((1, 10**9), range(0, 60, 13), (1, 3)):
        monkeypatch.setattr(video_file, "_FAR", far)
        wanted = start + stride * np.arange(5)
        if wanted[-1] < len(expected):
            clip = open_clip(path)
            clip._kept = []  # frames of a file that was opened for the first time
            assert np.array_equal(clip.read(wanted), expected[wanted]), (far, start, stride)


def check(path, monkeypatch):
    """Every way of reading a file gives what ffmpeg shows; returns that."""
    shown = shown_by_ffmpeg(path)
    clip = open_clip(path)
    whole = clip.read(np.arange(clip.length))
    assert whole.shape == shown.shape and numbers(whole) == numbers(shown)
    assert np.abs(whole.astype(int) - shown).mean() < 1  # another version of ffmpeg may round other colours
    check_windows(path, whole, monkeypatch)
    return shown


@pytest.mark.parametrize("name", USUAL)
def test_every_window_is_what_ffmpeg_shows(name, tmp_path, monkeypatch):
    shown = check(write_numbered(tmp_path / name, USUAL[name]), monkeypatch)
    assert numbers(shown) == list(range(len(shown))) and len(shown) >= 58  # XviD itself drops the last two


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_every_window_of_other_codecs_and_containers_is_what_ffmpeg_shows(name, tmp_path, monkeypatch):
    check(write_numbered(tmp_path / name, MORE[name]), monkeypatch)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_cut_without_encoding_begins_where_ffmpeg_begins(suffix, tmp_path, monkeypatch):
    whole = write_numbered(tmp_path / "whole.mp4", OPEN)
    ffmpeg("-ss", "0.75", "-i", whole, "-t", "1.2", "-c", "copy", tmp_path / f"cut.{suffix}")
    shown = numbers(check(tmp_path / f"cut.{suffix}", monkeypatch))
    assert shown == sorted(shown) and shown[0] >= (18 if suffix == "mp4" else 12)  # Matroska has no edit lists


def test_a_recording_without_its_beginning_starts_with_its_first_key_frame(tmp_path, monkeypatch):
    whole = write_numbered(tmp_path / "whole.mkv", OPEN)
    ffmpeg("-i", whole, *["-c", "copy", "-copyinkf", "-bsf:v", "noise=drop='lt(n,7)'"], tmp_path / "later.mkv")
    assert numbers(check(tmp_path / "later.mkv", monkeypatch))[0] == 12


@pytest.mark.parametrize("suffix", ["mp4", "webm"])
def test_frames_of_changing_duration_are_there_once(suffix, tmp_path, monkeypatch):
    codec = X264 + " -bf 3 -g 12" if suffix == "mp4" else "-c:v libvpx -b:v 300k -g 12"
    path = write_numbered(tmp_path / f"phone.{suffix}", f"{VARIABLE} {codec}")
    assert numbers(check(path, monkeypatch)) == list(range(60)) == numbers(read_video(path))


TURNS = [("-display_rotation", 90), ("-display_rotation", 180), ("-display_rotation", 270, "-display_hflip"),
         ("-display_vflip",), ("-display_rotation", 30)]  # fmt: skip


@pytest.mark.parametrize("turn", TURNS)
def test_videos_are_upright(turn, tmp_path):
    write_numbered(tmp_path / "lying.mp4", OPEN, count=6)
    ffmpeg(*turn, "-i", tmp_path / "lying.mp4", "-c", "copy", tmp_path / "turned.mp4")
    shown, found = shown_by_ffmpeg(tmp_path / "turned.mp4"), read_video(tmp_path / "turned.mp4")
    assert found.shape == shown.shape and np.abs(found.astype(int) - shown).mean() < 1
    assert not np.array_equal(found, read_video(tmp_path / "lying.mp4"))


def test_colours_are_those_of_ffmpeg(tmp_path):
    waves = np.random.default_rng(0).integers(0, 256, (2, 6, 8, 3)).astype(np.uint8).repeat(8, 1).repeat(8, 2)
    for name, options in {
        "hd.mp4": f"-vf scale=out_color_matrix=bt709 {X264} -colorspace bt709 -color_primaries bt709 -color_trc bt709",
        "full.mp4": "-c:v libx264 -pix_fmt yuvj420p",
        "ten_bits.mp4": f"{X265} -pix_fmt yuv420p10le -colorspace bt2020nc",
        "odd.mkv": "-vf scale=63:47 -c:v ffv1 -pix_fmt yuv420p",
        "grey.mkv": "-c:v ffv1 -pix_fmt gray16le",
        "moving.gif": "",
    }.items():
        path = write_numbered(tmp_path / name, options, frames=waves)
        assert np.abs(read_video(path).astype(int) - shown_by_ffmpeg(path)).mean() < 1, name


def test_no_image_of_a_cover_is_taken_for_the_video(tmp_path):
    write_numbered(tmp_path / "plain.mp4", X264, count=5)
    write_numbered(tmp_path / "cover.png", "-frames:v 1", frames=np.full((1, 200, 300, 3), 255, np.uint8))
    copy = ["-map", "1", "-map", "0", "-c", "copy", "-disposition:v:0", "attached_pic"]
    ffmpeg("-i", tmp_path / "plain.mp4", "-i", tmp_path / "cover.png", *copy, tmp_path / "song.mp4")
    assert np.array_equal(read_video(tmp_path / "song.mp4"), read_video(tmp_path / "plain.mp4"))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "webm"])
def test_a_video_that_is_cut_off_is_broken(suffix, tmp_path):
    codec = "-c:v libvpx -b:v 300k" if suffix == "webm" else X264 + " -movflags +faststart" * (suffix == "mp4")
    data = write_numbered(tmp_path / f"a.{suffix}", codec, count=30).read_bytes()
    for part in (0.3, 0.6, 0.9):
        (tmp_path / f"b.{suffix}").write_bytes(data[: int(part * len(data))])
        with pytest.raises(UserError, match=f"cannot read the video .*b.{suffix}; it is broken"):
            read_video(tmp_path / f"b.{suffix}")


def test_frames_that_the_decoder_patched_up_are_not_taken(tmp_path):
    data = bytearray(write_numbered(tmp_path / "a.avi", USUAL["xvid.avi"]).read_bytes())
    middle = len(data) // 2
    data[middle : middle + 40] = bytes(40)
    (tmp_path / "a.avi").write_bytes(data)
    with pytest.raises(UserError, match="cannot read the video .*a.avi; it is broken"):
        open_clip(tmp_path / "a.avi")


def test_a_video_of_two_sizes_is_refused(tmp_path):
    parts = [write_numbered(tmp_path / f"{k}.ts", X264, frames=numbered_frames(8, 48 * k, 64 * k)) for k in (1, 2)]
    (tmp_path / "both.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    with pytest.raises(UserError, match="both.ts change from 64 x 48 to 128 x 96; scale it to one size"):
        read_video(tmp_path / "both.ts")


def test_more_than_fits_in_memory_is_refused_before(tmp_path, monkeypatch):
    path = write_numbered(tmp_path / "a.mp4", X264)
    monkeypatch.setattr(video_file, "MAX_BYTES", 50 * 48 * 64 * 3)
    with pytest.raises(UserError, match="60 frames of the video .* take .* GiB as pixels, more than"):
        read_video(path)
    assert VideoFile(path).read([59, 3]).shape == (2, 48, 64, 3)


def test_no_other_file_is_read_through_a_video(tmp_path, monkeypatch):
    secret = write_numbered(tmp_path / "secret.ts", X264, count=6)
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1.0,\n{}\n#EXT-X-ENDLIST\n"
    texts = [
        hls.format("../secret.ts"),
        hls.format(f"file://{secret}"),
        f"ffconcat version 1.0\nfile {secret}\n",
        "ffconcat version 1.0\nfile ../secret.ts\n",
        '<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>',
        f'<MPD type="static"><Period><AdaptationSet><BaseURL>{secret}</BaseURL></AdaptationSet></Period></MPD>',
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    ]
    for text, suffix in itertools.product(texts, ("mp4", "m3u8", "ffconcat", "avi", "svg")):
        (tmp_path / "in" / f"list.{suffix}").write_text(text)
        for read in (read_any, lambda path: open_clip(path).read(np.arange(1))):
            with pytest.raises(
                UserError, match=rf"cannot read the video .*list\.{suffix}; it is broken or not a video"
            ):
                read(tmp_path / "in" / f"list.{suffix}")


def test_names_are_names_of_files(tmp_path, monkeypatch):
    data = write_numbered(tmp_path / "a.mp4", X264, count=3).read_bytes()
    monkeypatch.chdir(tmp_path)
    for name in ("concat:a.mp4", "http:x.mp4", "-i.mp4", "%03d.mp4", "ü 'x'.mp4"):
        (tmp_path / name).write_bytes(data)
        assert read_video(name).shape == (3, 48, 64, 3)


def test_what_can_be_no_file_is_one_sentence(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    for name in ("x" * 300 + ".mp4", "nothing.mp4", "pipe.mp4"):
        for read in (read_video, open_clip):
            with pytest.raises(UserError, match=f"{name[:5]}"):
                read(tmp_path / name)
    ffmpeg(*["-f", "lavfi", "-i", "sine=d=0.2", "-c:a", "aac"], tmp_path / "sound.mp4")
    with pytest.raises(UserError, match="sound.mp4; it is broken"):
        read_video(tmp_path / "sound.mp4")


def test_a_file_that_was_replaced_is_read_anew(tmp_path):
    assert VideoFile(write_numbered(tmp_path / "a.avi", USUAL["h264.avi"])).length == 60
    assert VideoFile(write_numbered(tmp_path / "a.avi", USUAL["h264.avi"], count=20)).length == 20


def test_decoders_say_nothing_in_between(tmp_path, capfd, caplog):
    with caplog.at_level(logging.DEBUG):
        (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x20ftypisom" + bytes(1000))
        with pytest.raises(UserError):
            read_video(tmp_path / "a.mp4")
    assert capfd.readouterr() == ("", "") and not caplog.records


def test_decord_sees_the_same_where_it_can(tmp_path):
    import mindspore  # noqa: F401, decord's library is visible to what is loaded later, and MindSpore would abort

    decord = pytest.importorskip("decord")
    path = write_numbered(tmp_path / "a.mp4", H264["bf0"])
    found = decord.VideoReader(str(path), num_threads=1).get_batch([40, 3]).asnumpy()
    assert np.abs(VideoFile(path).read([40, 3]).astype(int) - found).mean() < 1
