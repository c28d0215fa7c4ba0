"""The options of the train and cache commands."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from latte.config.common import CodecOptions, LayoutOptions, ModelOptions, ProfileOptions
from latte.config.evaluate import metrics_of
from latte.config.parser import OptionError, Options, in_range, option
from latte.io import resources

TEXT_TO_VIDEO = "LatteT2V"  # the model_name of the text-to-video network
FRAMES = 16  # of a training by default


@dataclasses.dataclass(kw_only=True)
class DataOptions(Options):
    """Data"""

    data_folder: str | None = option(None, "folder of the videos")
    cache_folder: str | None = option(
        None, "folder of cached latents: embedding_cache.py writes to it, train.py reads it in place of data_folder"
    )
    cache_dtype: Literal["fp16", "fp32"] | None = option(
        None, "precision of cached latents; null = the precision of the cache, or fp16 for a new cache"
    )
    data_layout: Literal["frame_folders", "video_files", "class_folders", "csv"] = option(
        "frame_folders", "how data_folder is organized, see docs/train.md"
    )
    csv_path: str | None = option(None, "csv: the table, with paths relative to data_folder")
    video_column: str = option("video", "csv: header of the column of paths")
    class_column: str | None = option(None, "csv: header of the column of classes, numbers or names")
    caption_column: str | None = option(None, "csv: header of the column of captions")
    frame_list: str | None = option(
        None, "images for joint training, a file of lines `video/frame.jpg`; null = frames of all videos"
    )
    images_per_video: int = option(0, "single images per video, for joint training; they skip temporal attention")
    sample_stride: int = option(1, "take every sample_stride-th frame of a video")
    transform: Literal["crop_resize", "resize_crop"] = option(
        "crop_resize", "crop_resize = crop the centre, then resize; resize_crop = the other way round"
    )
    random_flip: bool = option(False, "mirror half of the clips")
    demo_clips: int = option(
        0, "embedding_cache.py: if data_folder is missing, draw the demo data with this many clips per class; 0 = never"
    )
    held_out: int = option(
        0, "keep every held_out-th video, from the first on, out of training, for eval_every; 0 = none"
    )
    max_bad_fraction: float = option(0.1, "stop when more than this fraction of the videos is broken or too short")
    num_workers: int = option(2, "processes that decode videos")

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, "images_per_video", 0)
        in_range(self, "demo_clips", 0)
        in_range(self, "sample_stride", 1)
        in_range(self, "held_out", 0)
        if self.held_out == 1:
            raise OptionError("held_out", 1, "0, or at least 2, so that other videos are left to train on")
        in_range(self, "max_bad_fraction", 0, 1)
        in_range(self, "num_workers", 1)


@dataclasses.dataclass(kw_only=True)
class ConditionOptions(Options):
    """Condition"""

    class_dropout_prob: float = option(
        0.1, "probability that a condition is replaced by the null condition, for guidance"
    )
    condition_frames: int = option(
        0,
        "learn to continue videos: of each, a random number of first frames up to this stays without noise; sampling "
        "with init_frames then follows them; 0 = all frames are noisy",
    )
    text_embeddings: str | None = option(
        None, "CLIP embeddings, an .npz of `text` (N, 77, 768), `captions` (N,) and `null` (77, 768)"
    )
    text_encoder_path: str | None = option(
        None,
        "folder with tokenizer and text_encoder: T5's for LatteT2V, null = the folder of pretrained_model_path; CLIP's "
        "for condition text, in place of text_embeddings",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, "class_dropout_prob", 0, 1)
        in_range(self, "condition_frames", 0)


@dataclasses.dataclass(kw_only=True)
class FineTuningOptions(Options):
    """Fine-tuning of LatteT2V"""

    trainable: Literal["all", "temporal", "lora"] = option(
        "all", "weights to train: all weights, only the temporal blocks, or LoRA adapters"
    )
    lora_rank: int = option(16, "rank of the LoRA adapters of the attention projections")
    lora_alpha: float | None = option(None, "LoRA adapters are scaled by lora_alpha / lora_rank; null = lora_rank")

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, "lora_rank", 1)
        if self.lora_alpha is not None and not self.lora_alpha > 0:
            raise OptionError("lora_alpha", self.lora_alpha, "a number above 0")

    @property
    def lora_factor(self) -> float:
        """The scale of the LoRA adapters."""
        return (self.lora_alpha or self.lora_rank) / self.lora_rank


@dataclasses.dataclass(kw_only=True)
class OptimizerOptions(Options):
    """Optimizer"""

    train_batch_size: int = option(5, "videos per batch and device")
    gradient_accumulation_steps: int = option(1, "batches whose gradients are averaged for one step")
    epochs: int = option(3000, "passes over the data")
    max_steps: int | None = option(None, "stop after this many steps; null = after the epochs")
    start_learning_rate: float = option(1e-4, "learning rate after the warm-up")
    end_learning_rate: float = option(0.0, "learning rate at the last step of the cosine and polynomial schedules")
    scheduler: Literal["constant", "cosine", "polynomial"] = option(
        "constant", "schedule of the learning rate after the warm-up"
    )
    warmup_steps: int = option(0, "steps over which the learning rate rises linearly from 0")
    betas: list[float] = option([0.9, 0.999], "decay rates of AdamW's two moments")
    optim_eps: float = option(1e-8, "epsilon of AdamW")
    weight_decay: float = option(0.0, "weight decay of AdamW")
    clip_grad: bool = option(False, "scale gradients down to a norm of max_grad_norm")
    max_grad_norm: float = option(0.1, "largest norm of the gradients with clip_grad")
    start_clip_step: int = option(0, "first step at which gradients are clipped")
    use_ema: bool = option(
        True, "keep EMA weights, an exponential moving average of the weights; samples are made with them"
    )
    ema_decay: float = option(0.9999, "decay of the EMA weights per step")
    loss_weighting: Literal["uniform", "min_snr", "v"] = option(
        "uniform", "weight of the timesteps: uniform = predicted noise as the official code; min_snr; v = velocity"
    )
    distill_steps: int = option(
        0,
        "learn to make videos in so many steps, each of which is to land where four of the network in "
        "pretrained_model_path do; 0 = learn from the data",
    )
    loss_scaler_type: Literal["dynamic", "static"] = option("dynamic", "scaling of the fp16 loss")
    init_loss_scale: float = option(65536.0, "first scale of the fp16 loss")
    loss_scale_window: int = option(2000, "dynamic: double the scale after this many steps without an overflow")
    zero_stage: Literal[0, 1, 2, 3] = option(
        0,
        "what ranks share: 1 = AdamW's moments, 2 = gradients and EMA weights too, 3 = also weights of blocks, which "
        "needs use_recompute; 0 = nothing",
    )
    offload_optimizer: bool = option(
        False,
        "keep AdamW's moments, the EMA weights and, on Ascend, the float32 weights in host memory, and update there: "
        "12 to 16 bytes less of device memory per parameter, for a slower step",
    )
    use_recompute: bool = option(False, "recompute each block in the backward pass, to save memory")
    recompute_every: int = option(
        1, "with use_recompute: one pair of blocks in so many is recomputed, which saves time where memory is left"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = "train_batch_size", "gradient_accumulation_steps", "epochs", "max_steps", "loss_scale_window"
        for key in (*counts, "recompute_every"):
            in_range(self, key, 1)
        for key in ("start_learning_rate", "end_learning_rate", "warmup_steps", "weight_decay", "start_clip_step"):
            in_range(self, key, 0)
        in_range(self, "ema_decay", 0, 1)
        in_range(self, "distill_steps", 0, 250)
        in_range(self, "init_loss_scale", 1)
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise OptionError("betas", self.betas, "two numbers from 0 to below 1")
        for key in ("optim_eps", "max_grad_norm"):
            if not getattr(self, key) > 0:
                raise OptionError(key, getattr(self, key), "above 0")
        if self.zero_stage == 3 and not self.use_recompute:
            raise OptionError("use_recompute", False, "true with zero_stage 3, lest each block keeps what it gathers")
        if self.zero_stage == 3 and self.offload_optimizer:
            raise OptionError("offload_optimizer", True, "false with zero_stage 3, whose moments are parts already")
        if self.zero_stage == 3 and self.recompute_every != 1:
            raise OptionError("recompute_every", self.recompute_every, "1 with zero_stage 3, lest blocks keep weights")


@dataclasses.dataclass(kw_only=True)
class RunOptions(Options):
    """Run"""

    data_config: str | None = option(
        None,
        "YAML file with the options of the data, relative to the file that names it; all other options override it",
    )
    pretrained_model_path: str | None = option(
        None,
        "weights to start from: a Latte or its folder, which also gives what of the model is null; the .pt of an "
        "ImageNet DiT; or the folder of Latte-1",
    )
    output_path: str = option("outputs/train", "folder in which each run gets a folder of its own")
    resume: str | None = option(None, "auto = continue the newest run of output_path; or the folder of a run")
    seed: int = option(3407, "random seed of the weights, the order of the data and all noise")
    dataset_sink_mode: bool = option(
        False, "let the device fetch the data itself; it reports once per sink_size batches"
    )
    sink_size: int = option(100, "batches between two reports with dataset_sink_mode; logging and saving wait for them")
    log_interval: int = option(100, "steps between two rows of metrics.csv")
    step_mode: bool = option(True, "count ckpt_save_interval in steps; false = in epochs")
    ckpt_save_interval: int = option(1000, "steps or epochs between two checkpoints")
    ckpt_max_keep: int = option(3, "number of newest checkpoints to keep")
    ckpt_keep_every: int = option(0, "also keep checkpoints whose step is a multiple of this; 0 = none")
    eval_every: int = option(
        0, "steps between two measurements: of the loss on the held_out videos, and of eval_metrics; 0 = none"
    )
    eval_clips: int = option(
        100, "clips that eval_every measures, always the same: a tenth of them for each tenth of the timesteps"
    )
    eval_metrics: list[str] = option(
        [], "compare samples with real videos, by names like fvd256_16f, as `latte evaluate --run` does"
    )
    eval_real: str | None = option(
        None, "folder of the real videos of eval_metrics; null = cache_folder, or data_folder without one"
    )
    i3d: str | None = option(
        None, "weights of the network of eval_metrics; null = those of `latte evaluate --fetch_i3d`"
    )
    sample_videos: int = option(4, "videos sampled at each checkpoint; 0 = none")
    sample_steps: int = option(50, "DDIM steps of the sampled videos, and of those of eval_metrics")
    guidance_scale: float = option(1.0, "classifier-free guidance of the sampled videos; 1 = no guidance")
    vae_check: bool = option(
        True, "at the start reconstruct frames of the data, write them to vae.png, and warn if the autoencoder is poor"
    )
    tensorboard: bool = option(
        True, "write scalars, samples and histograms of the held-out loss by timestep for TensorBoard"
    )
    tracker: Literal["wandb", "swanlab"] | None = option(
        None, "also send metrics and samples to Weights & Biases or SwanLab, by their own package; null = neither"
    )
    compile_cache: bool = option(
        True, "keep the compiled training step in the user's cache folder, so that the next start does not compile"
    )
    dry_run: bool = option(False, "check options and files, open some videos, print what would be done, and stop")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pretrained_model_path:
            self.pretrained_model_path = str(resources.find(self.pretrained_model_path))  # as for a checkpoint
        in_range(self, "seed", 0, 2**32 - 1)
        for key in ("sink_size", "log_interval", "ckpt_save_interval", "ckpt_max_keep"):
            in_range(self, key, 1)
        in_range(self, "ckpt_keep_every", 0)
        in_range(self, "eval_every", 0)
        if self.eval_clips < 10 or self.eval_clips % 10:
            raise OptionError("eval_clips", self.eval_clips, "a multiple of 10, from 10 on")
        if metrics_of(self.eval_metrics, "eval_metrics") and not self.eval_every:
            raise OptionError("eval_metrics", self.eval_metrics, "empty without eval_every, the steps between two")
        in_range(self, "sample_videos", 0, 64)
        in_range(self, "sample_steps", 1, 1000)


@dataclasses.dataclass(kw_only=True)
class CacheOptions(Options):
    """Cache"""

    cache_file_type: Literal["numpy", "mindrecord"] = option(
        "numpy", "numpy = one file per video; mindrecord = files of MindSpore's record format"
    )
    flip: bool = option(False, "also store the mirrored videos, for random_flip")
    resume_cache_index: int = option(0, "skip the videos before this one; 0 = skip only videos that are cached already")
    verify: bool = option(False, "check every file of a cache, and write nothing")

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, "resume_cache_index", 0)


@dataclasses.dataclass(kw_only=True)
class DataConfig(DataOptions):
    """Options that a YAML file in configs/training/data may hold."""


@dataclasses.dataclass(kw_only=True)
class TrainConfig(
    ProfileOptions,
    RunOptions,
    OptimizerOptions,
    FineTuningOptions,
    ConditionOptions,
    DataOptions,
    CodecOptions,
    ModelOptions,
    LayoutOptions,
):
    """Options of train.py."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eval_every and not (self.held_out or self.eval_metrics):
            raise OptionError(
                "eval_every",
                self.eval_every,
                "0 without held_out and eval_metrics; keep videos back with --held_out 20, or measure fvd256_16f",
            )
        if self.eval_metrics and (self.condition == "text" or self.model_name == TEXT_TO_VIDEO):
            raise OptionError("eval_metrics", self.eval_metrics, "empty for text, of which it makes no samples")
        self._check_frames()
        self._check_distillation()
        if self.zero_stage == 3 and (self.variant or 1) > 2:
            raise OptionError("zero_stage", 3, "0, 1 or 2 for variants 3 and 4, whose blocks run in parts")
        if self.model_name != TEXT_TO_VIDEO:
            if self.trainable != "all":
                raise OptionError("trainable", self.trainable, f"all unless model_name is {TEXT_TO_VIDEO}")
            return
        if not self.pretrained_model_path:
            raise OptionError("pretrained_model_path", None, f"the folder of a Latte-1 for model_name {TEXT_TO_VIDEO}")
        sizes = ("hidden_size", "depth", "num_heads", "patch_size", "num_classes")
        choices = ("variant", "patch_embedding", "injection", "temporal_position", "prediction_type")
        for key in (*sizes, *choices, "frame_list"):
            if getattr(self, key) is not None:
                raise OptionError(key, getattr(self, key), f"null for {TEXT_TO_VIDEO}, whose folder determines it")
        if self.condition == "class":
            raise OptionError(
                "condition", self.condition, f"text or null for {TEXT_TO_VIDEO}, which is conditioned on captions"
            )

    def _check_distillation(self) -> None:
        if not self.distill_steps:
            return
        if self.model_name == TEXT_TO_VIDEO:
            raise OptionError("distill_steps", self.distill_steps, f"0 for {TEXT_TO_VIDEO}, which needs guidance")
        if not self.pretrained_model_path:
            raise OptionError("pretrained_model_path", None, "the network to learn from, with distill_steps")
        wrong = {"images_per_video": 0, "condition_frames": 0, "held_out": 0, "guidance_scale": 1.0}
        for key, value in wrong.items():
            if getattr(self, key) != value:
                raise OptionError(key, getattr(self, key), f"{value:g} with distill_steps")
        if self.loss_weighting != "uniform":
            raise OptionError("loss_weighting", self.loss_weighting, "uniform with distill_steps, which has its own")

    def _check_frames(self) -> None:
        if self.condition_frames >= (self.num_frames or FRAMES):
            raise OptionError("condition_frames", self.condition_frames, "less than num_frames: some are to be learned")
        if self.condition_frames and (self.model_name == TEXT_TO_VIDEO or self.sequence_parallel > 1):
            raise OptionError("condition_frames", self.condition_frames, "0 for LatteT2V and with sequence_parallel")
        if self.patch_embedding == "compression":  # joins two frames
            for key in ("images_per_video", "condition_frames"):
                if getattr(self, key):
                    raise OptionError(key, getattr(self, key), "0 with patch_embedding compression, which joins frames")


@dataclasses.dataclass(kw_only=True)
class CacheConfig(CacheOptions, TrainConfig):
    """Options of tools/embedding_cache.py: the options of train.py, and its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.cache_folder:
            raise OptionError("cache_folder", self.cache_folder, "the folder to write to")

    @property
    def cache_path(self) -> Path:
        """The cache_folder, which is never null here."""
        assert self.cache_folder is not None
        return Path(self.cache_folder)
