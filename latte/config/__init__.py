"""The options of all commands, and how they are read from YAML files and the command line."""

from latte.config.evaluate import EvaluateConfig
from latte.config.export import ExportConfig
from latte.config.parser import OptionError, Options, in_range, option, parse_config, save_config
from latte.config.sample import SampleConfig, keep_config
from latte.config.schedule import ScheduleConfig
from latte.config.train import TEXT_TO_VIDEO, CacheConfig, DataConfig, DataOptions, TrainConfig
from latte.config.train_vae import VaeTrainConfig

__all__ = [
    "TEXT_TO_VIDEO",
    "CacheConfig",
    "DataConfig",
    "DataOptions",
    "EvaluateConfig",
    "ExportConfig",
    "OptionError",
    "Options",
    "SampleConfig",
    "ScheduleConfig",
    "TrainConfig",
    "VaeTrainConfig",
    "in_range",
    "keep_config",
    "option",
    "parse_config",
    "save_config",
]
