"""What is predicted of a run: beside plans of MindSpore's own back end, figures counted by hand, and published ones."""

import json
import math
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from support.golden_values import FIXTURES, ROOT

from ascend import plan_words, standin
from latte.commands import estimate as command
from latte.config import SampleConfig, TrainConfig, parse_config
from latte.errors import UserError
from latte.inference import estimate, published
from latte.models.autoencoder import AutoencoderConfig
from latte.models.latte import LatteConfig
from latte.runtime import device, roofline
from latte.runtime.roofline import Launch, Sizes
from latte.training.build import build, predict
