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
from typing import TYPE_CHECKING, Any, NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition

from latte.errors import UserError
from latte.io.images import FORMATS, MAX_BYTES
from latte.io.listing import VIDEO_SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from av.container import InputContainer
    from av.filter import Graph
    from av.video.stream import VideoStream

READER = "av-1"  # name and version of this contract; to be counted up when other frames or colours come out

# Other demuxers are never used: some read lists of files (HLS, DASH, concat), draw text (SVG), or open devices.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,obu,ivf,ogg,asf,flv,mxf,nut,dv,gif"
)
_OPTIONS = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
_JUMPS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}, {"h264", "hevc", "av1", "libdav1d", "vp9"}
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
            version = path, stat.st_mtime_ns, stat.st_size
            self._index = _by_packets(*version) or _by_decoding(*version)
        self._kept, self._index.kept = self._index.kept, []  # the index stays in memory, frames must not
        self.length = self._index.length

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the frames at `indices` as uint8 (n, H, W, 3); raises UserError if the file is broken."""
        wanted = np.asarray(indices)
        to_rgb, out = _ToRGB(), np.empty(0, np.uint8)
        found: set[int] = set()
        with _named(self.path):
            for number, frame in self._frames(int(wanted.min()), int(wanted.max())):
                _check_size(self.path, self._index, frame)
                places = np.flatnonzero(wanted == number)
                if not len(places):  # turning a frame into RGB takes as long as decoding it
                    continue
                pixels = to_rgb(frame)
                if not found:
                    out = _room(self.path, len(wanted), pixels.shape)
                out[places] = pixels
                found.add(number)
        if found != set(wanted.tolist()):
            raise UserError(f"the video {self.path} has {len(found)} of the frames {list(indices)}; it is broken")
        return out

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield every frame as uint8 (H, W, 3), one in memory at a time; raises UserError if the file is broken."""
        to_rgb, found = _ToRGB(), 0
        with _named(self.path):
            for _, frame in self._frames(0, self.length - 1):
                _check_size(self.path, self._index, frame)
                yield to_rgb(frame)
                found += 1
        if found < self.length:
            raise UserError(f"the video {self.path} has {found} of its {self.length} frames; it is broken")

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


def read_comment(path: Path) -> str:
    """Return the comment in a video file; "" if it has none, or is missing or broken."""
    try:
        with _opened(path) as (container, _):
            return container.metadata.get("comment", "")
    except _BROKEN:
        return ""


def read_rate(path: Path) -> float:
    """Return the frames per second that a video file states; 0 if it states none, or cannot be read."""
    try:
        with _opened(path) as (_, stream):
            return float(stream.average_rate or stream.guessed_rate or 0)
    except _BROKEN:
        return 0.0


@dataclasses.dataclass
class _Index:
    """How many frames a file shows, and for jumps their times of presentation, in order."""

    length: int = 0
    size: tuple[int, int] = (0, 0)  # width and height of the first frame
    times: np.ndarray = dataclasses.field(default_factory=lambda: np.array([], np.int64))
    kept: list[av.VideoFrame] = dataclasses.field(default_factory=list)


class _CannotJumpError(Exception):
    """What comes after a jump is not what the packets promise."""


@functools.lru_cache(maxsize=512)
def _by_packets(path: Path, mtime_ns: int, size: int) -> _Index | None:
    """Return the index of a file without decoding it, or None where its packets cannot be trusted."""
    with _opened(path) as (container, stream):
        containers, codecs = _JUMPS
        if container.format.name not in containers or stream.codec_context.name not in codecs:
            return None
        times: list[int | None] = []
        shown: list[av.VideoFrame] = []
        for packet in _packets(container, stream):
            if packet.size and not packet.is_discard:
                times.append(packet.pts)
            if len(shown) < _CHECKED:
                try:
                    shown += packet.decode()
                except av.FFmpegError:
                    return None
    in_order = sorted(time for time in times if time is not None)
    if not times or len(set(in_order)) < len(times) or [frame.pts for frame in shown] != in_order[: len(shown)]:
        return None
    if len(shown) < min(_CHECKED, len(times)) or any(frame.interlaced_frame for frame in shown):
        return None  # a packet of an interlaced stream may be half a frame
    return _Index(len(in_order), (shown[0].width, shown[0].height), np.array(in_order))


@functools.lru_cache(maxsize=2**16)
def _by_decoding(path: Path, mtime_ns: int, size: int) -> _Index:
    """Return the index of a file all of which is decoded, and its frames if they are small."""
    index, held = _Index(), 0
    for frame in _from_start(path):
        index.size = index.size if index.length else (frame.width, frame.height)
        _check_size(path, index, frame)
        index.length += 1
        held += sum(plane.buffer_size for plane in frame.planes)
        if held <= _KEPT:
            index.kept.append(frame)
    if held > _KEPT:
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
                if frame.is_corrupt:  # patched up by the decoder
                    raise ValueError("damaged frames")
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
        if packet.is_corrupt and container.format.name != "mpegts":  # there it says that something is missing before
            raise ValueError(f"packet {number} is cut off")
        if number > _MAX_FRAMES:
            raise ValueError(f"more than {_MAX_FRAMES} frames")
        yield packet


def _check_size(path: Path, index: _Index, frame: av.VideoFrame) -> None:
    """Raise UserError if a frame has another size than the first one."""
    if (frame.width, frame.height) != index.size:
        was, now = (f"{width} x {height}" for width, height in (index.size, (frame.width, frame.height)))
        raise UserError(f"the frames of the video {path} change from {was} to {now}; scale it to one size with ffmpeg")


def _room(path: Path, count: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return an array for frames; raises UserError if it would be larger than any that is meant."""
    size = count * int(np.prod(shape))
    if size > MAX_BYTES:
        raise UserError(
            f"{count} frames of the video {path} take {size / 2**30:.1f} GiB as pixels, more than "
            f"{MAX_BYTES / 2**30:g}; cut it or scale it down"
        )
    return np.empty((count, *shape), np.uint8)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file, and no other, and find the stream that ffmpeg would take; its decoder has one thread."""
    # The name of the protocol keeps what stands before a colon in a file's name from being taken for one.
    with av.open(f"file:{path.absolute()}", container_options=_OPTIONS) as container:
        if container.format.name == "matroska,webm" and _is_cut_off(path):
            raise ValueError("the file is cut off")
        covers = [stream for stream in container.streams.video if stream.disposition & Disposition.attached_pic]
        streams = [stream for stream in container.streams.video if stream not in covers and stream.codec_context]
        stream = max(streams, key=_preference)
        if stream.width * stream.height > _MAX_PIXELS:
            raise ValueError(f"frames of {stream.width} x {stream.height}")
        stream.codec_context.thread_count = 1  # the loader has processes
        yield container, stream


def _preference(stream: VideoStream) -> int:
    """Return what ffmpeg chooses a video stream by: the size, and what the file prefers."""
    return stream.width * stream.height + 5_000_000 * bool(stream.disposition & Disposition.default)


def _is_cut_off(path: Path) -> bool:
    """Return whether a Matroska file is shorter than it says; its demuxer just ends, as others do not."""
    with path.open("rb") as file:
        head = file.read(4096)
    header, start = _ebml_size(head, 4)
    place = start + header  # of the element after the header, which is the segment: an identifier of 4 bytes, its size
    if head[place : place + 4] != b"\x18\x53\x80\x67":
        return False
    size, start = _ebml_size(head, place + 4)
    return size >= 0 and start + size > path.stat().st_size


def _ebml_size(head: bytes, place: int) -> tuple[int, int]:
    """Return the size that is coded at a place, or -1 if it is unknown, and the place after it."""
    length = 9 - head[place].bit_length()  # the first bit that is set tells how many bytes there are
    bits = 7 * length
    size = int.from_bytes(head[place : place + length], "big") & ((1 << bits) - 1)
    return (-1 if size == (1 << bits) - 1 else size), place + length


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
    side_data: Any = frame.side_data  # its type hints know motion vectors only
    try:
        return bytes(side_data[SideData.DISPLAYMATRIX])
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
        return [("hflip",)] * int(matrix[0] < 0) + [("vflip",)] * int(matrix[4] < 0)
    if angle:
        return [("rotate", f"{angle}*PI/180")]
    return [("vflip",)] * int(matrix[4] < 0)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn what the decoders raise for broken files into a UserError."""
    try:
        yield
    except _BROKEN as error:
        kinds = "" if path.suffix.lower() in VIDEO_SUFFIXES else f", nor an image that is read ({', '.join(FORMATS)})"
        raise UserError(f"cannot read the video {path}; it is broken or not a video{kinds}") from error
