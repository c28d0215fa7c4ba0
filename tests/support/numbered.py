"""Videos whose frames show their own numbers, in any codec and container, made by the ffmpeg that imageio brings."""

import re
import subprocess

import imageio_ffmpeg
import numpy as np

HEIGHT, WIDTH, BITS = 48, 64, 8


def numbered_frames(count, height=HEIGHT, width=WIDTH):
    """Frames (count, H, W, 3) uint8: above, their number as bars, white = 1, lowest bit first; below, moving waves."""
    frame, y, x = np.meshgrid(np.arange(count), np.arange(height), np.arange(width), indexing="ij")
    bars = (frame >> x * BITS // width & 1) * 255
    waves = 128 + 100 * np.sin((x + 3 * frame + 2 * y) / 9)
    return np.repeat(np.where(y < height // 2, bars, waves).astype(np.uint8)[..., None], 3, axis=-1)


def numbers(frames):
    """The numbers that frames show."""
    height, width = frames.shape[1:3]
    middle = frames[:, height // 8 : 3 * height // 8].mean(axis=(1, 3))
    columns = (np.arange(BITS) * 2 + 1) * width // (2 * BITS)
    return ((middle[:, columns] > 127) << np.arange(BITS)).sum(axis=1).tolist()


def ffmpeg(*arguments, data=None):
    """Run ffmpeg and return what it wrote to its standard output and said on the other."""
    program = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-hide_banner", *map(str, arguments)]
    done = subprocess.run(program, input=data, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return done.stdout, done.stderr.decode()


def write_numbered(path, options, count=60, rate=25, frames=None):
    """Write a numbered video, or other frames, with ffmpeg's options for it, and return the path."""
    frames = numbered_frames(count) if frames is None else frames
    raw = f"-f rawvideo -pix_fmt rgb24 -s {frames.shape[2]}x{frames.shape[1]} -r {rate} -i -".split()
    ffmpeg(*raw, *options.split(), path, data=frames.tobytes())
    return path


def shown_by_ffmpeg(path):
    """All frames as ffmpeg's program shows them, uint8 (F, H, W, 3)."""
    raw, said = ffmpeg(
        "-i", path, "-map", "0:V:0", *["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    )
    width, height = map(int, re.search(r"rgb24.*?, (\d+)x(\d+)", said.split("Output #0")[1]).groups())
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)
