"""The training loop: fetch a batch, take a step, and at intervals report, save and sample."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

import mindspore as ms
import numpy as np
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from latte.components.runs import CHECKPOINTS, CONFIG_FILE
from latte.data.loader import WorkerLostError, fetch, make_loader, unwrapped, watching
from latte.diffusion.distillation import WALK
from latte.errors import DETAIL, UserError
from latte.io.atomic import remove_leftovers
from latte.io.video import grid, save_video
from latte.runtime import compile_cache, device, graphs
from latte.runtime.profiling import Profile
from latte.training import reconstruction, run_folder
from latte.training.checkpoints import Checkpoints
from latte.training.collective import agree_on, any_rank, sum_over_ranks
from latte.training.gallery import machine_line
from latte.training.health import MAX_SKIPPED, REMEDY, SkippedSteps, unsound
from latte.training.held_out import Evaluation, describe_evaluation
from latte.training.identity import compare, identity
from latte.training.metrics import Metrics, describe, describe_losses
from latte.training.next_command import next_command
from latte.training.previews import Previews
from latte.training.state import load_state, net_to_sample, state_of, weights_of
from latte.training.stopping import StopSignal
from latte.training.tracker import Tracker
from latte.training.update import SUMS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from latte.config import TrainConfig
    from latte.training.build import Training

log = logging.getLogger("latte")
GIB = 2**30
# Options that no graph depends on, so that a run with another folder finds the graph of the last one.
NOT_COMPILED = {"output_path", "resume", "profile", "compile_cache", "device_id", "num_workers", "ckpt_max_keep"}
NOT_COMPILED |= {"held_out", "eval_every", "eval_clips", "eval_metrics", "eval_real", "i3d"}
NOT_COMPILED |= {"ckpt_keep_every", "sample_videos", "sample_steps", "guidance_scale", "vae_check", "log_interval"}
NOT_COMPILED |= {"tensorboard", "tracker"}


class Trainer:
    """A run: its folder, its current step, and its reports, checkpoints and samples."""

    def __init__(self, cfg: TrainConfig, training: Training):
        self.cfg, self.training = cfg, training
        here = device.current()
        self.is_first = here.rank == 0
        name = (cfg.model_name or "Latte").replace("/", "-")
        found = str(run_folder.find_run(cfg.output_path, cfg.resume, name)) if self.is_first else ""
        self.folder = Path(agree_on(found))
        self.checkpoints = Checkpoints(self.folder / CHECKPOINTS, cfg.ckpt_max_keep, cfg.ckpt_keep_every)
        self.lock = run_folder.lock(self.folder) if self.is_first else None
        self.identity = identity(cfg, training)
        self.changes: list[str] = []  # of options, since the state that the run goes on from
        self.step = self._resume() if cfg.resume else 0
        self.at_end = self.step >= training.total_steps
        self.profile = Profile(cfg.profile_span, self.folder)
        self.bad: dict[int, str] = {}
        self.called: set = set()  # whether the step is compiled, see `graphs.first_call`
        self.seen = time.perf_counter(), self.step
        per_epoch = max(1, len(training.source.dataset) // training.batch)
        self.save_interval = cfg.ckpt_save_interval * (1 if cfg.step_mode else per_epoch)
        if self.is_first:
            for place in (self.folder, self.checkpoints.folder, self.folder / "samples"):
                remove_leftovers(place)
        if self.is_first and not self.at_end:
            run_folder.save_options(cfg, self.folder, self.step)
            run_folder.log_to(self.folder)
            tracker = Tracker(cfg.tracker, self.folder, dataclasses.asdict(cfg)) if cfg.tracker else None
            self.metrics = Metrics(self.folder, self.step, training.held_out is not None, cfg.tensorboard, tracker)
        for change in self.changes:
            log.warning("%s", change)
        if not self.at_end:
            log.info("%s: from step %d to %d", self.folder, self.step, training.total_steps)
            log.info("%s", machine_line(device.describe_machine()), extra=DETAIL)

    def fit(self) -> None:
        """Take steps until the end or until a signal asks to stop; then save. A run at its end stays as it is.

        Samples of the step it goes on from are made if they are missing. The run is free for another process, or
        another trainer of this one, when this ends.
        Raises UserError if too many videos are bad, the training has gone wrong, or a file cannot be written.
        """
        try:
            self._fit()
        finally:
            self.profile.close()
            if self.lock:
                self.lock.release()

    def _fit(self) -> None:
        training, cfg = self.training, self.cfg
        if self.cfg.resume and self.step and any_rank(self.is_first and not self._samples_file().exists()):
            self._sample()  # the process that saved this step was killed before it had its samples
        if self.at_end:
            log.info(
                "%s has reached its end, step %d of %d; for more steps raise max_steps or epochs",
                self.folder,
                self.step,
                training.total_steps,
            )
            return
        self._evaluate()  # also where the run was told to stop before it did
        self._compare(self.step in self.checkpoints.steps())
        first, last = (n * cfg.gradient_accumulation_steps for n in (self.step, training.total_steps))
        here = device.current()
        loader = make_loader(
            training.source, cfg.train_batch_size, first, last, here.data_rank, here.data_ranks, cfg.num_workers
        )
        bar = tqdm(
            total=training.total_steps,
            initial=self.step,
            desc="training",
            unit="step",
            disable=not self.is_first,
            smoothing=0.05,
        )
        if self.is_first and self.step == 0 and cfg.vae_check and not cfg.cache_folder:
            frames = [training.source[position][0][0] for position in range(reconstruction.SHOWN)]
            name = cfg.vae_checkpoint or f"of {cfg.pretrained_model_path}"
            reconstruction.report(training.codec, frames, self.folder, name)
        with StopSignal() as signal, bar, logging_redirect_tqdm([log]):
            self.seen = time.perf_counter(), self.step
            skipped, due = SkippedSteps(int(training.step.skipped.asnumpy())), False
            sinks = cfg.dataset_sink_mode and here.sinks_data
            if cfg.dataset_sink_mode and not sinks:
                device.warn_once(f"dataset_sink_mode: {here.target} cannot fetch data itself; the loop does the same")
            together = max(1, self._sink_size(last - first) // cfg.gradient_accumulation_steps) if sinks else 1
            self.profile.begin(self.step, together)
            for batches, loss in self._sunk(loader, first, last) if sinks else self._called(loader, first):
                done = batches // cfg.gradient_accumulation_steps
                if done == self.step:
                    continue  # gradients are being accumulated
                bar.update(done - self.step)
                self._check_skipped(skipped, done)
                self.step = done
                bar.set_postfix(loss=f"{float(loss):.4f}", refresh=False)
                stop = any_rank(bool(signal.requested))
                self.profile.done(done)
                ends = stop or self.step == training.total_steps
                if self.step % cfg.log_interval == 0 or self.step == training.total_steps:
                    self._report()
                measures = not stop or self.step == training.total_steps
                if measures:
                    self._evaluate()
                due = due or self._is_due()
                if ends or (due and not skipped.now):  # weights that may be spoiled are not to replace whole ones
                    self._save(prune=not skipped.now)
                    due = False
                    self._compare(measures)
                if stop:
                    by = f" by {signal.requested}" if signal.requested else ""
                    log.info("stopped%s at step %d; continue with --resume auto", by, self.step)
                    break
                self.profile.begin(done, together)
        if self.is_first:
            self.metrics.close()
            self._say_where()
            log.info("to sample from this run: %s", next_command(cfg, self.folder))

    def _say_where(self) -> None:
        """Log the course of the loss, and which files of the run a person looks for."""
        if line := describe_losses(self.metrics.table.rows):
            log.info("%s", line)
        newest = max(self.checkpoints.steps(), default=self.step)
        kinds = [*self.checkpoints.folder.glob(f"*-{newest:08d}.ckpt"), self._samples_file()]
        names = ("loss.png", "eval.png", "metrics.csv", "log.txt", "tensorboard")
        found = [path for path in (*kinds, *(self.folder / name for name in names)) if path.exists()]
        log.info("%s has %s", self.folder, ", ".join(str(path.relative_to(self.folder)) for path in found))

    def _called(self, loader: ms.dataset.Dataset, batches: int) -> Iterator[tuple[int, ms.Tensor]]:
        """Yield the number of batches so far, of which `batches` were before, and the loss after each one.

        The host waits for the device once a step only, to see whether the gradients are finite.
        """
        training = self.training
        try:
            for batch in fetch(loader, self._rescue):
                x, posterior_noise, t, noise, skipped, *condition = batch
                self._note_bad(skipped)
                if training.encodes:
                    x = training.encode(x)
                tensors = [ms.Tensor(array) for array in (x, posterior_noise, t, noise, skipped, *condition)]
                with graphs.first_call(
                    "the training step", self.called, keep=functools.partial(self._graph_name, tensors)
                ):
                    loss = training.call(*tensors)
                batches += 1
                yield batches, loss
        except WorkerLostError as error:
            raise UserError(f"{error}; {self._rescue()}") from None
        except RuntimeError as error:
            raise unwrapped(error) from error

    def _graph_name(self, inputs: list[ms.Tensor]) -> str | None:
        """Return the name of the step's graph in the compile cache, or None if it is not to be kept."""
        training, step = self.training, self.training.step
        if not self.cfg.compile_cache or not device.current().graph_mode:
            return None
        options = {key: value for key, value in vars(self.cfg).items() if key not in NOT_COMPILED}
        facts = {
            "options": options,
            "network": training.config.to_json(),
            "autoencoder": str(training.codec.vae.config),
            "step": str(step.options),
            "frames": training.num_frames,
        }
        return compile_cache.fingerprint(step, tuple(inputs), facts)

    def _sink_size(self, batches: int) -> int:
        """Return how many of so many batches the device takes between two looks at it."""
        cfg, accumulation = self.cfg, self.cfg.gradient_accumulation_steps
        intervals = (cfg.log_interval, self.save_interval, cfg.eval_every)
        return math.gcd(cfg.sink_size, batches, *(steps * accumulation for steps in intervals))

    def _sunk(self, loader: ms.dataset.Dataset, first: int, last: int) -> Iterator[tuple[int, ms.Tensor]]:
        """Yield what `_called` yields, after every `sink_size` batches, which the device fetches itself."""
        size = self._sink_size(last - first)
        if size < self.cfg.sink_size:
            log.info(
                "sink_size is %d, so that it divides the steps between two reports, saves or evaluations",
                size,
            )
        with watching(lambda: "continue with --resume auto") as watch:
            step = self.training.step
            sink = ms.data_sink(step.construct, loader, sink_size=1, jit_config=graphs.jit_config())
            for batches in range(first + 1, last + 1):
                with graphs.first_call("the training step", self.called):
                    loss = self.training.call.finish(sink())
                watch.begun = True
                if (batches - first) % size == 0:
                    yield batches, loss

    def _check_skipped(self, skipped: SkippedSteps, done: int) -> None:
        """Raise UserError, on all ranks alike, if there were too many skipped steps in a row up to step `done`."""
        step = self.training.step
        falls = step.options.loss_scale_window > 0 and float(step.loss_scale.asnumpy()) > 1
        if skipped.note(done - self.step, int(step.skipped.asnumpy()), falls):
            raise UserError(
                f"the last {skipped.in_a_row} steps up to step {done} (at least {MAX_SKIPPED} in a row) had gradients "
                f"that are not finite, so that nothing is learned; {self.folder} keeps its checkpoints; {REMEDY}"
            )

    def _rescue(self) -> str:
        """Save the last step, if this process alone can, and return what was saved; there is no next batch."""
        begun = int(self.training.step.batch.asnumpy())  # gradients are being accumulated, which no checkpoint has
        if device.current().world_size == 1 and not begun and self.step not in (0, *self.checkpoints.steps()):
            self._save(samples=False)
        self.metrics.close()
        newest = max(self.checkpoints.steps(), default=None)
        return "nothing was saved yet" if newest is None else f"step {newest} is saved: continue with --resume auto"

    def _note_bad(self, skipped: np.ndarray) -> None:
        """Warn about the videos that were skipped, each once; raises UserError if there are too many."""
        dataset = self.training.source.dataset
        for number in map(int, skipped[skipped >= 0]):
            if number not in self.bad:
                self.bad[number] = dataset.reason(number)
                log.warning("skipped: %s (%d bad of %d videos)", self.bad[number], len(self.bad), len(dataset))
        if len(self.bad) > self.cfg.max_bad_fraction * len(dataset):
            raise UserError(
                f"{len(self.bad)} of {len(dataset)} videos are broken or too short, more than max_bad_fraction "
                f"{self.cfg.max_bad_fraction:g}; the last one: {list(self.bad.values())[-1]}"
            )

    def _report(self) -> None:
        """Report the means since the last report; a stop inside an interval only logs, so that a resume is exact."""
        between = self.step % self.cfg.log_interval != 0
        step, cfg = self.training.step, self.cfg
        sums = dict(zip(SUMS, _summed(ms.Tensor(step.sums.asnumpy())).asnumpy().tolist(), strict=True))
        if not between:
            step.sums.set_data(ms.Tensor(np.zeros(len(SUMS), np.float32)))
        if not self.is_first:
            return
        now = time.perf_counter()
        seconds, steps = now - self.seen[0], self.step - self.seen[1]
        self.seen = now, self.step
        values = {
            "step": self.step,
            "epoch": round(self.step * self.training.batch / len(self.training.source.dataset), 4),
            **{name: sums[name] / max(sums["batches"], 1) for name in ("loss", "mse", "bound")},
            "grad_norm": sums["grad_norm"] / max(sums["updates"], 1),
            "learning_rate": float(step.learning_rates[self.step - 1]),
            "loss_scale": float(step.loss_scale.asnumpy()),
            "skipped_steps": int(step.skipped.asnumpy()),
        }
        rate = steps * self.training.batch / seconds
        frames = self.training.num_frames + cfg.images_per_video
        others = {
            "seconds_per_step": seconds / max(steps, 1),
            "videos_per_second": rate,
            "images_per_second": rate * frames,
            "memory_gib": device.peak_memory() / GIB,
            "bad_videos": len(self.bad) or sums["skipped_videos"] / device.current().sequence,
        }
        if not between:
            self.metrics.write(values, others)
        log.info(describe(values, others), extra=DETAIL)

    @functools.cached_property
    def evaluation(self) -> Evaluation:
        """The held-out clips, which are read at the first evaluation."""
        cfg, training = self.cfg, self.training
        assert training.held_out is not None
        # The number of videos for which the previews' graph is compiled.
        together = (cfg.sample_videos or cfg.train_batch_size) if device.current().batches_videos else 1
        loss = training.step.loss
        return Evaluation(training.held_out, training.codec, self.previews.latents, loss, cfg.eval_clips, together)

    def _evaluate(self) -> None:
        """Measure the loss on held-out videos with the weights that are sampled from, if it is time to, once only.

        Every rank must call this function. It changes nothing that the training depends on.
        """
        if not self.training.held_out or not self._measures():
            return
        if any_rank(self.is_first and self.metrics.is_evaluated(self.step)):
            return
        with net_to_sample(self.training.step), device.alone():
            values = self.evaluation.measure()
        if self.is_first:
            self.metrics.write_evaluation({"step": self.step, **values})
            log.info("step %d, held-out videos: %s", self.step, describe_evaluation(values))
        self.seen = time.perf_counter(), self.step  # as in `_save`

    def _is_due(self) -> bool:
        """Return whether a checkpoint is to be saved after this step."""
        measured = bool(self.training.quality) and self._measures()
        return measured or self.step % self.save_interval == 0

    def _measures(self) -> bool:
        """Return whether it is time for what eval_every is about: at its steps, and at the end."""
        return self.step % self.cfg.eval_every == 0 or self.step == self.training.total_steps

    def _compare(self, saved: bool) -> None:
        """Compare samples of the checkpoint of this step with real videos, if it is saved and time to, once only.

        Every rank must call this function.
        """
        quality = self.training.quality
        if quality and saved and self._measures():
            with device.alone():
                quality.measure(self.folder, self.step)
            self.seen = time.perf_counter(), self.step  # as in `_save`

    def _save(self, samples: bool = True, prune: bool = True) -> None:
        """Write a checkpoint, remove old ones if asked for, write loss.png and, if asked for, samples.

        Raises UserError, on all ranks alike, and writes nothing if an element of the state is not finite.
        """
        state = state_of(self.training.step)  # on every rank, because it gathers parts
        if wrong := agree_on((unsound(state) or "") if self.is_first else ""):
            raise UserError(
                f"step {self.step} has numbers in {wrong} that are not finite, so it is not saved; {self.folder} keeps "
                f"its checkpoints; {REMEDY}"
            )
        if self.is_first:
            self._write(state, prune)
        if samples:
            self._sample()
        self.seen = time.perf_counter(), self.step  # the time to save does not count as training time

    def _write(self, state: dict[str, np.ndarray], prune: bool) -> None:
        """Write a checkpoint of this state, on one rank only."""
        if not (self.folder / CONFIG_FILE).exists():  # somebody removed it; without it nothing is resumed
            run_folder.save_options(self.cfg, self.folder, self.step)
        self.metrics.sync()  # before the checkpoint that counts on its rows
        place = {"step": str(self.step), "world_size": str(device.current().world_size)}
        metadata = self.training.metadata | place
        weights = weights_of(self.training.step, state, trained_only=self.cfg.trainable == "lora")
        kind = "ema" if self.cfg.use_ema else "model"
        file = self.checkpoints.save(self.step, state, weights, metadata, kind, of_state=self.identity, prune=prune)
        log.info("saved %s", file)
        self.metrics.plot()

    @functools.cached_property
    def previews(self) -> Previews:
        """The sampler of all checkpoints, so that the network is compiled only at the first one."""
        cfg, training = self.cfg, self.training
        _, channels, height, width = training.source.latent_shape
        return Previews(
            training.step.ema or training.step.net,  # with the weights that `net_to_sample` gives it
            training.codec,
            (training.num_frames, channels, height, width),
            training.source,
            count=cfg.sample_videos,
            steps=cfg.distill_steps or cfg.sample_steps,
            guidance_scale=cfg.guidance_scale,
            solver=WALK if cfg.distill_steps else None,
        )

    def _samples_file(self) -> Path:
        return self.folder / "samples" / f"step-{self.step:08d}.gif"

    def _sample(self) -> None:
        """Write a grid of videos sampled with the current weights, always from the same seeds, on one rank only.

        Every rank must call this function, as EMA weights may be shared; where weights are, all sample the same videos.
        """
        count, step = self.cfg.sample_videos, self.training.step
        if not count or not (self.is_first or step.shares_gradients):
            return
        with net_to_sample(step), device.alone():
            if not (self.is_first or step.gathered):
                return
            total = count * self.cfg.sample_steps
            with tqdm(total=total, desc="sampling", unit="step", leave=False, disable=not self.is_first) as bar:
                videos = self.previews.make(bar.update)
        if not self.is_first:
            return
        board = grid(videos, columns=math.ceil(math.sqrt(count)))
        save_video(board, self._samples_file().with_suffix(""), ["gif"])
        if not self.at_end:  # else nothing is open to show them in
            self.metrics.show_samples(self._samples_file(), board.shape, self.step)

    def _resume(self) -> int:
        """Restore the newest checkpoint that is not damaged and return its step; 0 if there is none.

        Raises UserError if there are checkpoints, but all are damaged, cannot be read or are of another training.
        """
        newest = self.checkpoints.newest() if self.is_first else None
        text = agree_on("" if newest is None else str(newest))
        if not text:
            return 0
        state, metadata = self.checkpoints.load(int(text))
        source = f"{self.folder}, step {text}"
        self.changes = compare(metadata, self.training.metadata | self.identity, source)
        load_state(self.training.step, state, source)
        return int(text)


def _summed(sums: ms.Tensor) -> ms.Tensor:
    """Return the sums (n,) over all ranks."""
    if device.current().world_size == 1:
        return sums
    return graphs.compile_training(sum_over_ranks)((sums,))[0]
