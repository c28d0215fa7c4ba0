"""The work of `latte evaluate --real DIR --fake DIR`: features of both folders, their distance, and a report."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import logging
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from latte.components.codec import Codec
from latte.components.loading import load
from latte.errors import UserError
from latte.evaluation import i3d
from latte.evaluation.clips import Cut, ShortClipError, drawn, flicker, open_source
from latte.evaluation.features import SHORT, Entry, FeatureStore, default_root
from latte.evaluation.frechet import bootstrap, frechet_distance, kernel_distance, statistics
from latte.io.atomic import atomic_path
from latte.runtime import device, ranks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Future

    from latte.config import EvaluateConfig
    from latte.config.evaluate import Metric
    from latte.evaluation.clips import LatentClips, Source, VideoClips

log = logging.getLogger("latte")
REAL_STRIDE = 3  # of the paper
FRAMES_AT_ONCE = 128  # in the network, as in the official code; and in a file, which a killed evaluation loses
NAMED = 8  # broken videos that a report names
OUTPUT = "outputs/evaluate"


class Network(NamedTuple):
    """What makes features (B, D) float32 of clips (B, F, H, W, 3) uint8, and what tells its weights apart."""

    describe: Callable[[np.ndarray], np.ndarray]
    fingerprint: str


class Sharing(NamedTuple):
    """How the ranks share clips; every rank must call both, which wait for all of them."""

    numbers: Callable[[], Iterator[int]]  # from 0 on, each on one rank only
    wait: Callable[[], object]


def by_mpi() -> Sharing:
    """Return how the ranks of mpirun share clips: whichever is free takes the next."""
    world_size = device.current().world_size
    return Sharing(lambda: iter(ranks.WorkCounter(world_size).take, -1), lambda: ranks.wait_for_all(world_size))


@dataclasses.dataclass
class ClipSet:
    """The clips that are compared, in the order of their draw, and what became of the other videos."""

    asked: int
    found: int  # videos of the source
    clips: list[Entry]
    short: int
    broken: list[Entry]

    @property
    def features(self) -> np.ndarray:
        """The features (N, D) float32."""
        return np.stack([entry.feature for entry in self.clips if entry.feature is not None])

    @property
    def flicker(self) -> float:
        """The mean flicker of the clips."""
        return float(np.mean([entry.flicker for entry in self.clips]))

    @property
    def sizes(self) -> dict[str, int]:
        """How many of the clips had which width and height."""
        return dict(Counter(f"{width} x {height}" for height, width in (entry.was for entry in self.clips)))


def load_network(path: str | None) -> Network:
    """Return I3D with the weights of a file, None for the default one; raises UserError if they cannot be read."""
    fingerprint = i3d.fingerprint(path)
    return Network(functools.partial(i3d.logits, i3d.load(path)), fingerprint)


class Features:
    """The features of a source, cut in one way; what is not on the disk is computed, shared by the ranks.

    `option` names the source in messages.
    """

    def __init__(
        self,
        cfg: EvaluateConfig,
        network: Network,
        source: Source,
        cut: Cut,
        option: str,
        sharing: Sharing | None = None,
    ):
        self.cfg, self.network, self.source, self.cut, self.option = cfg, network, source, cut, option
        self.sharing = sharing or by_mpi()
        self.order = drawn(source.names, cfg.seed)
        root = Path(cfg.features_folder) if cfg.features_folder else default_root()
        identity = {"source": source.identity, "cut": dataclasses.asdict(cut), "network": network.fingerprint}
        self.store = FeatureStore(root, {**identity, "device": device.current().target})
        self._signature = functools.cache(self._read_signature)

    def missing(self, limit: int) -> list[str]:
        """Return which of the first `limit` videos are not on the disk as they are now."""
        names = tqdm(self.order[:limit], desc=f"looking for {self.option}", unit="video", delay=5, leave=False)
        return [name for name in names if not self.store.find(name, self._signature(name))]

    def collect(self, asked: int) -> ClipSet:
        """Return the first `asked` usable clips in the order of the draw, or all if there are fewer.

        Videos that are too short or broken are passed over. Raises UserError if too many are broken, fewer than two
        clips are usable, or features cannot be written.
        """
        limit = min(asked, len(self.order))
        while True:
            self._compute(self.missing(limit))
            known = [self.store.find(name, self._signature(name)) for name in self.order[:limit]]
            entries = [entry for entry in known if entry]
            if len(entries) < limit:
                raise UserError(
                    f"the features of other ranks are not in {self.store.folder}; name a folder that all machines "
                    "share with --features_folder"
                )
            usable = [entry for entry in entries if not entry.problem]
            more = min(asked - len(usable), len(self.order) - limit)
            if not more:
                break
            limit += more
        broken = [entry for entry in entries if entry.problem not in ("", SHORT)]
        self._refuse(broken, limit)
        found = ClipSet(asked, len(self.order), usable, limit - len(usable) - len(broken), broken)
        if len(usable) < 2:
            raise UserError(
                f"{self.option} has {len(usable)} usable clips in {limit} videos: {found.short} are shorter than "
                f"{self.cut.frames * self.cut.stride} frames and {len(broken)} are broken; two clips or more are needed"
            )
        return found

    def _compute(self, names: Sequence[str]) -> None:
        """Compute the features of videos, with the other ranks, and write them."""
        here, size = device.current(), self._batch_size()
        size *= max(1, FRAMES_AT_ONCE // (size * self.cut.frames))
        groups = [names[start : start + size] for start in range(0, len(names), size)]
        numbers = self.sharing.numbers()  # none writes before all know what is missing
        taken = (groups[place] for place in itertools.takewhile(lambda place: place < len(groups), numbers))
        ends = {id(group): min(size * (place + 1), len(names)) for place, group in enumerate(groups)}
        pool, broken = ThreadPoolExecutor(self.cfg.num_workers), []
        bar = tqdm(total=len(names), desc=self.option, unit=" features", disable=here.rank > 0 or not names)
        try:
            with bar, logging_redirect_tqdm([log]):
                for group, loading in _ahead(pool, self._load, taken):
                    entries = self._entries(group, loading, bar.update)
                    self.store.add(entries)
                    broken += [entry for entry in entries if entry.problem not in ("", SHORT)]
                    self._refuse(broken, len(self.order))  # whatever the other videos are
                    bar.update(ends[id(group)] - bar.n)
        finally:
            pool.shutdown(cancel_futures=True)
        self.sharing.wait()
        self.store.reload()

    def _entries(
        self, group: Sequence[str], loading: Sequence[Future], progress: Callable[[int], object]
    ) -> list[Entry]:
        """Return the entries of videos that are being loaded; `progress` gets the number of clips in each batch."""
        entries, clips = [], []
        for name, future in zip(group, loading, strict=True):
            entry = Entry(name, self._signature(name))
            try:
                clip = self.source.finish(future.result(), self.cut)
            except ShortClipError:
                entries.append(entry._replace(problem=SHORT))
            except UserError as error:
                log.warning("left out: %s", error)
                entries.append(entry._replace(problem=str(error)))
            else:
                clips.append(clip.frames)
                entries.append(entry._replace(was=clip.was, flicker=flicker(clip.frames)))
        described = iter(self.describe(np.stack(clips), progress) if clips else ())
        return [entry if entry.problem else entry._replace(feature=next(described)) for entry in entries]

    def describe(self, clips: np.ndarray, progress: Callable[[int], object] = lambda count: None) -> np.ndarray:
        """Return the features (N, D) of clips (N, F, H, W, 3) uint8; the network gets batches of one size.

        `progress` gets the number of clips in each. Raises UserError if they are not finite.
        """
        size, found = self._batch_size(), []
        for start in range(0, len(clips), size):
            part = clips[start : start + size]
            filled = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
            found.append(np.asarray(self.network.describe(filled), np.float32)[: len(part)])
            progress(len(part))
        features = np.concatenate(found)
        if not np.isfinite(features).all():
            raise UserError(f"features of {self.option} are not finite; check the weights of the network, --i3d")
        return features

    def _batch_size(self) -> int:
        together = FRAMES_AT_ONCE // self.cut.frames if device.current().batches_videos else 1
        return self.cfg.batch_size or max(1, together)

    def _load(self, name: str) -> Any:
        return self.source.load(name, self.cut)

    def _read_signature(self, name: str) -> str:
        try:
            return self.source.signature(name)
        except UserError as error:
            return f"unreadable: {error}"

    def _refuse(self, broken: Sequence[Entry], videos: int) -> None:
        """Raise UserError if too many of the videos are broken."""
        if len(broken) > self.cfg.max_bad_fraction * videos:
            raise UserError(
                f"{len(broken)} of {videos} videos of {self.option} cannot be used, the first: {broken[0].problem}; "
                f"that is more than max_bad_fraction {self.cfg.max_bad_fraction:g}"
            )


def _ahead(
    pool: ThreadPoolExecutor, load: Callable[[str], Any], groups: Iterable[Sequence[str]]
) -> Iterator[tuple[Sequence[str], list[Future]]]:
    """Yield groups of names with what is being loaded of them, while the next group is loaded too."""
    waiting: deque[tuple[Sequence[str], list[Future]]] = deque()
    for group in groups:
        waiting.append((group, [pool.submit(load, name) for name in group]))
        if len(waiting) > 1:
            yield waiting.popleft()
    yield from waiting


def measure(cfg: EvaluateConfig, metric: Metric, real: Features, fake: Features) -> dict[str, Any] | None:
    """Return the distances of two sets and what they were computed from; None on all ranks but the first.

    Raises UserError as `Features.collect` does.
    """
    sets = {"real": real.collect(metric.clips), "fake": fake.collect(metric.clips)}
    if device.current().rank:
        return None
    a, b = (each.features for each in sets.values())
    interval = None
    if cfg.bootstrap:
        with tqdm(total=cfg.bootstrap, desc="interval", unit="draw", leave=False) as bar:
            interval = bootstrap(a, b, cfg.bootstrap, cfg.seed, bar.update)
    return {
        "metric": metric.name,
        "value": frechet_distance(statistics(a), statistics(b)),
        "interval": interval,
        "kvd": kernel_distance(a, b),
        "notes": notes(metric, real.cut, sets),
        **{name: _facts(each, features) for (name, each), features in zip(sets.items(), (real, fake), strict=True)},
        "image_size": real.cut.size,
        "jpeg_quality": cfg.jpeg_quality,
        "seed": cfg.seed,
        "bootstrap": cfg.bootstrap,
        "network": real.network.fingerprint,
        "device": device.current().target,
    }


def _facts(clips: ClipSet, features: Features) -> dict[str, Any]:
    return {
        **features.source.identity,
        "videos": clips.found,
        "asked": clips.asked,
        "clips": len(clips.clips),
        "short": clips.short,
        "broken": len(clips.broken),
        "broken_first": [entry.problem for entry in clips.broken[:NAMED]],
        "sizes": clips.sizes,
        "flicker": clips.flicker,
        "stride": features.cut.stride,
        "start": "first frame" if features.cut.seed is None else "drawn",
    }


def notes(metric: Metric, cut: Cut, sets: dict[str, ClipSet]) -> list[str]:
    """Return what a reader of the distance must know of the two sets, a sentence each."""
    said = []
    for name, each in sets.items():
        count = len(each.clips)
        if count < metric.clips:
            said.append(f"{name} has {count} usable clips, fewer than the {metric.clips} of {metric.name}")
        if each.short:
            said.append(f"{each.short} of the videos of {name} that were opened are too short, and left out")
        if each.broken:
            said.append(f"{len(each.broken)} videos of {name} are broken, and left out: {each.broken[0].problem}")
        sizes = each.sizes
        if len(sizes) > 1:
            listed = ", ".join(f"{number} of {size}" for size, number in sorted(sizes.items()))
            said.append(f"{name} has videos of {len(sizes)} sizes ({listed}), all brought to {cut.size} x {cut.size}")
        elif list(sizes) != [f"{cut.size} x {cut.size}"]:
            said.append(f"{name} has videos of {next(iter(sizes))}, brought to {cut.size} x {cut.size}")
    counts = [len(each.clips) for each in sets.values()]
    if len(set(counts)) > 1 or min(counts) < metric.clips:
        said.append("a distance of fewer clips is larger; compare it only with one of the same numbers of clips")
    return said


def describe_result(result: dict[str, Any]) -> str:
    """Return a result as a line to print."""
    interval = result["interval"]
    spread = f" (95 %: {interval[0]:.2f} to {interval[1]:.2f})" if interval else ""
    clips = f"{result['real']['clips']} real and {result['fake']['clips']} generated clips"
    return f"{result['metric']}: {result['value']:.4f}{spread}, KVD {result['kvd']:.4f}, of {clips}"


def sources(cfg: EvaluateConfig, folders: Sequence[str]) -> list[VideoClips | LatentClips]:
    """Return the videos of folders; raises UserError if one has none, or a latent cache no autoencoder."""

    @functools.cache
    def codec() -> Codec:
        if not cfg.vae_checkpoint:
            raise UserError("a latent cache is decoded by its autoencoder; name it with --vae_checkpoint")
        vae = load(cfg.vae_checkpoint, "autoencoder")
        return Codec(vae, cfg.sd_scale_factor, cfg.vae_slice, cfg.vae_tile, cfg.vae_dtype)

    return [open_source(folder, codec) for folder in folders]


def cuts(cfg: EvaluateConfig, metric: Metric, size: int, real_stride: int) -> tuple[Cut, Cut]:
    """Return how real and generated clips are cut: from a drawn frame, and from the first."""
    real = Cut(metric.frames, real_stride, cfg.seed, size, cfg.jpeg_quality)
    return real, dataclasses.replace(real, stride=cfg.fake_stride, seed=None)


def run(cfg: EvaluateConfig, network: Network | None = None) -> list[dict[str, Any]]:
    """Compare two folders by every metric, write a JSON file for each, and return the results; none on other ranks.

    Raises UserError if folders, videos or weights cannot be used, or a file cannot be written.
    """
    pairs = _pairs(cfg, network)
    results = []
    for metric, real, fake in pairs:
        result = measure(cfg, metric, real, fake)
        if result is None:
            continue
        for note in result["notes"]:
            log.warning("%s", note)
        with atomic_path(_file(cfg, metric)) as temporary:
            temporary.write_text(json.dumps(result, indent=1), encoding="utf-8", errors="backslashreplace")
        results.append(result)
    return results


def _pairs(cfg: EvaluateConfig, network: Network | None) -> list[tuple[Metric, Features, Features]]:
    """Return for every metric both sets of features, before any is computed."""
    real, fake = sources(cfg, [cfg.real or "", cfg.fake or ""])  # both are checked by the options
    network = network or load_network(cfg.i3d)
    size = cfg.image_size or fake.size()
    found = []
    for metric in cfg.wanted:
        of_real, of_fake = cuts(cfg, metric, size, cfg.real_stride or REAL_STRIDE)
        found.append(
            (metric, Features(cfg, network, real, of_real, "real"), Features(cfg, network, fake, of_fake, "fake"))
        )
    return found


def _file(cfg: EvaluateConfig, metric: Metric) -> Path:
    name = Path(cfg.fake or "").resolve().name
    return Path(cfg.output_path or OUTPUT) / f"{name}-{metric.name}.json"


def dry_run(cfg: EvaluateConfig, network: Network | None = None) -> str:
    """Return what would be compared, how long that takes by two clips, and what is cached; nothing is written.

    Raises UserError if folders or weights cannot be used.
    """
    lines, todo = [], 0.0
    for metric, *both in _pairs(cfg, network):
        for features in both:
            limit = min(metric.clips, len(features.order))
            missing = features.missing(limit)
            cut = features.cut
            lines.append(
                f"{metric.name}, {features.option}: {limit} of {len(features.order)} {features.source.what} of "
                f"{features.source.identity['folder']}, {cut.frames} frames that are {cut.stride} apart, from "
                f"{'the first' if cut.seed is None else 'a drawn'} frame on, at {cut.size} x {cut.size}; the features "
                f"of {limit - len(missing)} are in {features.store.folder}"
            )
            todo += len(missing) * (_seconds(features, missing) if missing else 0)
        lines.append(f"result in {_file(cfg, metric)}")
    lines.append(f"about {todo / 60:.1f} minutes on one {device.current().target}, as two clips took")
    return "\n".join(lines)


def _seconds(features: Features, names: Sequence[str]) -> float:
    """Return the seconds for one of these videos, by a batch after the first one, which compiles.

    Raises UserError if none of the first ones can be read.
    """
    problem: UserError | None = None
    for name in names[:NAMED]:
        start = time.perf_counter()
        try:
            clip = features.source.finish(features.source.load(name, features.cut), features.cut)
        except UserError as error:
            problem = problem or error
            continue
        reading = time.perf_counter() - start
        batch = np.repeat(clip.frames[None], features._batch_size(), axis=0)
        features.describe(batch)
        start = time.perf_counter()
        features.describe(batch)
        return max(reading / features.cfg.num_workers, (time.perf_counter() - start) / len(batch))
    raise UserError(f"none of the first videos of {features.option} can be used: {problem}")
