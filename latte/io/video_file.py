"""Read video files: frame k is the k-th frame that ffmpeg shows, upright, wherever the reading starts.

Shown is what `ffmpeg -i FILE -fps_mode passthrough` writes: frames in order of presentation, none repeated or dropped
for the sake of a constant rate, without those that an edit list hides, turned and mirrored as the file asks.

Containers do not tell this reliably: AVI has no times of presentation, a packet need not become a frame, and a frame
after a jump need not be the one that was asked for. So frames are counted while they are decoded, from the start of the
file. Only where every packet is a frame with a time of presentation of its own (`_JUMPS`) is a far frame reached by a
jump to a key frame, and every frame after it is checked against the times of all packets.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from typing import TYPE_CHECKING, NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition

from latte.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from av.container import InputContainer
    from av.filter import Graph
    from av.video.stream import VideoStream

READER = "av-1"  # name and version of this contract; to be counted up when other frames or colours come out

# Other demuxers are never used: some read lists of files (HLS, DASH, concat), draw text (SVG), or open devices.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,obu,ivf,ogg,asf,flv,mxf,nut,dv,gif"
)
_OPTIONS = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
_JUMPS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}, {"h264", "hevc", "av1", "libdav1d", "vp9"}
_PROGRESSIVE = (0, 1)  # or unknown; a packet of other streams may be half a frame
_CHECKED = 16  # frames at the start that must come when the packets say
_FAR = 48  # frames; so many are decoded in the time of a jump
_KEPT = 64 * 2**20  # bytes of frames that are kept if all had to be decoded to count them
_MAX_FRAMES, _MAX_PIXELS = 2**22, 2**26  # beyond these a file is taken for broken
_BROKEN = (av.FFmpegError, OSError, RuntimeError, ValueError, LookupError)


class VideoFile:
    """A video file of which any frames can be read; `length` is the number of all of them."""

    def __init__(self, path: Path):
        """Open a file; raises UserError if it is missing, broken, or no video."""
        self.path = path
        try:
            is_file = path.is_file()
        except (OSError, ValueError) as error:  # a name that no file can have
            raise UserError(f"cannot open the video {path}: {error}") from error
        if not is_file:  # nor is a pipe one, which could be waited for in vain
            raise UserError(f"there is no video {path}")
        with _named(path):
            stat = path.stat()
            self._index = _survey(path, stat.st_mtime_ns, stat.st_size)
        self._kept, self._index.kept = self._index.kept, []  # the index stays in memory, frames must not
        self.length = self._index.length

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the frames at `indices` as uint8 (n, H, W, 3); raises UserError if the file is broken."""
        wanted, to_rgb, found = set(map(int, indices)), _ToRGB(), {}
        with _named(self.path):
            for number, frame in self._frames(min(wanted), max(wanted)):
                if number in wanted:  # turning a frame into RGB takes as long as decoding it
                    found[number] = to_rgb(frame)
            return np.stack([found[int(index)] for index in indices])

    def _frames(self, first: int, last: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yield the frames from `first`, or some before it, to `last`, with their numbers."""
        if self._kept:
            yield from list(enumerate(self._kept))[first : last + 1]
            return
        done = first - 1
        if len(self._index.times) and first >= _FAR:
            with contextlib.suppress(_CannotJumpError):
                for number, frame in _from_key_frame(self.path, self._index, first, last):
                    yield number, frame
                    done = number
        if done < last:
            for number, frame in enumerate(_from_start(self.path)):
                if number > done:
                    yield number, frame
                if number >= last:
                    return


@dataclasses.dataclass
class _Index:
    """How many frames a file shows, and for jumps their times of presentation, in order."""

    length: int
    times: np.ndarray = dataclasses.field(default_factory=lambda: np.array([], np.int64))
    kept: list[av.VideoFrame] = dataclasses.field(default_factory=list)


class _CannotJumpError(Exception):
    """What comes after a jump is not what the packets promise."""


@functools.lru_cache(maxsize=256)
def _survey(path: Path, mtime_ns: int, size: int) -> _Index:
    """Return the index of a file; one that was changed is another file."""
    return _by_packets(path) or _by_decoding(path)


def _by_packets(path: Path) -> _Index | None:
    """Return the index of a file without decoding it, or None where its packets cannot be trusted."""
    with _opened(path) as (container, stream):
        containers, codecs = _JUMPS
        codec = stream.codec_context
        if container.format.name not in containers or codec.name not in codecs or codec.field_order not in _PROGRESSIVE:
            return None
        times: list[int | None] = []
        shown: list[int | None] = []
        for packet in _packets(container, stream):
            if packet.size and not packet.is_discard:
                times.append(packet.pts)
            if len(shown) < _CHECKED:
                try:
                    shown += [frame.pts for frame in packet.decode()]
                except av.FFmpegError:
                    return None
    in_order = sorted(time for time in times if time is not None)
    if not times or len(set(in_order)) < len(times) or shown[:_CHECKED] != in_order[:_CHECKED]:
        return None
    return _Index(len(in_order), np.array(in_order))


def _by_decoding(path: Path) -> _Index:
    """Return the index of a file all of which is decoded, and its frames if they are small."""
    index, size = _Index(0), 0
    for frame in _from_start(path):
        index.length += 1
        size += sum(plane.buffer_size for plane in frame.planes)
        if size <= _KEPT:
            index.kept.append(frame)
    if size > _KEPT:
        index.kept = []
    if not index.length:
        raise ValueError("no frames")
    return index


def _from_start(path: Path) -> Iterator[av.VideoFrame]:
    """Yield all frames of a file."""
    with _opened(path) as (container, stream):
        shown = False
        for packet in _packets(container, stream):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                if shown:
                    raise
                continue  # a recording without its beginning starts with its first key frame
            for frame in frames:
                shown = True
                yield frame


def _from_key_frame(path: Path, index: _Index, first: int, last: int) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield the frames from a key frame at or before `first` to `last`; raises _CannotJumpError if in doubt."""
    times = index.times
    with _opened(path) as (container, stream):
        try:
            container.seek(int(times[first]), stream=stream)
            packets = _packets(container, stream)
            key = next(packets)
            start = times[0] - 1 if key.pts is None else key.pts
            number = int(np.searchsorted(times, start))
            if not key.is_keyframe or number > first or times[number] != start:
                raise _CannotJumpError
            for packet in (key, *packets):
                for frame in packet.decode():
                    if frame.pts is not None and frame.pts < start:
                        continue  # shown before the key frame, and made from frames before it
                    is_first = frame.pts == start
                    if frame.pts != times[number] or frame.is_corrupt or (is_first and not frame.key_frame):
                        raise _CannotJumpError
                    yield number, frame
                    number += 1
                    if number > last:
                        return
        except av.FFmpegError as error:
            raise _CannotJumpError from error


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet]:
    """Yield the packets of a stream, and an empty one at the end; raises ValueError for a file that is cut off."""
    for number, packet in enumerate(container.demux(stream)):
        if packet.is_corrupt:
            raise ValueError(f"packet {number} is cut off")
        if number > _MAX_FRAMES:
            raise ValueError(f"more than {_MAX_FRAMES} frames")
        yield packet


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file, and no other, and find the stream that ffmpeg would take; its decoder has one thread."""
    # The name of the protocol keeps what stands before a colon in a file's name from being taken for one.
    with av.open(f"file:{path.absolute()}", container_options=_OPTIONS) as container:
        streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
        stream = max(streams, key=_preference)
        if stream.width * stream.height > _MAX_PIXELS:
            raise ValueError(f"frames of {stream.width} x {stream.height}")
        stream.codec_context.thread_count = 1  # the loader has processes
        yield container, stream


def _preference(stream: VideoStream) -> int:
    """Return what ffmpeg chooses a video stream by: the size, and what the file prefers."""
    return stream.width * stream.height + 5_000_000 * bool(stream.disposition & Disposition.default)


class _Look(NamedTuple):
    """What a graph of filters is made for."""

    width: int
    height: int
    pixels: str
    colorspace: int
    color_range: int
    display: bytes | None


class _ToRGB:
    """Turns frames into upright bytes by ffmpeg's own filters, as its program does."""

    def __init__(self) -> None:
        self._graphs: dict[_Look, Graph] = {}

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """Return a frame as uint8 (H, W, 3)."""
        size, colours = (frame.width, frame.height), (frame.colorspace, frame.color_range)
        look = _Look(*size, frame.format.name, *colours, _display(frame))
        if look not in self._graphs:
            self._graphs[look] = _filters(look)
        self._graphs[look].vpush(frame)
        return self._graphs[look].vpull().to_ndarray()


def _display(frame: av.VideoFrame) -> bytes | None:
    """Return the 3 x 3 numbers by which a frame is turned and mirrored, row by row, if it is."""
    try:
        return bytes(frame.side_data[SideData.DISPLAYMATRIX])
    except KeyError:
        return None


def _filters(look: _Look) -> Graph:
    graph = av.filter.Graph()
    graph.threads = 1
    source = graph.add(
        "buffer",
        video_size=f"{look.width}x{look.height}",
        pix_fmt=look.pixels,
        time_base="1/1",
        colorspace=str(look.colorspace),
        range=str(look.color_range),
    )
    turns = [graph.add(*turn) for turn in _turns(look.display)]
    graph.link_nodes(source, *turns, graph.add("format", "rgb24"), graph.add("buffersink")).configure()
    return graph


def _turns(display: bytes | None) -> Sequence[tuple[str, ...]]:
    """Return the filters, with their arguments, that ffmpeg's program inserts for a display matrix."""
    if display is None:
        return []
    matrix = np.frombuffer(display, np.int32).astype(float)
    across, down = np.hypot(*matrix[[0, 3]]), np.hypot(*matrix[[1, 4]])
    if not across or not down:
        return []
    angle = round(np.degrees(np.arctan2(matrix[1] / down, matrix[0] / across))) % 360
    if angle == 90:
        return [("transpose", "cclock_flip" if matrix[3] > 0 else "clock")]
    if angle == 270:
        return [("transpose", "clock_flip" if matrix[3] < 0 else "cclock")]
    if angle == 180:
        return [("hflip",)] * (matrix[0] < 0) + [("vflip",)] * (matrix[4] < 0)
    if angle:
        return [("rotate", f"{angle}*PI/180")]
    return [("vflip",)] * (matrix[4] < 0)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn what the decoders raise for broken files into a UserError."""
    try:
        yield
    except _BROKEN as error:
        raise UserError(f"cannot read the video {path}; it is broken or not a video") from error
