"""Train on videos that are organized in a way of their own: python examples/add_data_set.py [FOLDER]

Here FOLDER, datasets/own_layout by default, has videos and a clips.json that names them; if it is missing, it is made.
A layout is a function from a folder to records. To have it in `latte train` too, put it into latte/data/index.py, and
its name into data_layout in latte/config/train.py.
"""

import json
import sys
from pathlib import Path

from latte.config import DataOptions, TrainConfig
from latte.data.demo import CLASSES, caption, make_clip
from latte.data.index import LAYOUTS, Record
from latte.errors import UserError
from latte.io.video import save_mp4
from latte.training.build import build, describe
from latte.training.trainer import Trainer


def listed_by_json(root: Path, _: DataOptions) -> tuple[list[Record], list[str]]:
    """Return the videos that clips.json lists, in its order, and the names of their classes."""
    table = root / "clips.json"
    if not table.is_file():
        raise UserError(f"{root} has no {table.name}; name the folder that it is in")
    rows = json.loads(table.read_text(encoding="utf-8"))
    classes = sorted({row["class"] for row in rows})
    return [Record(root / row["file"], classes.index(row["class"]), row["caption"]) for row in rows], classes


def make(root: Path) -> None:
    """Write twelve drawn clips of moving clouds, and clips.json."""
    rows = []
    for label, kind in enumerate(CLASSES):
        for seed in range(4):
            file = f"{kind[0]}{seed}.mp4"
            save_mp4(make_clip(label, seed, num_frames=20), root / file)
            rows.append({"file": file, "class": kind, "caption": caption(label, seed)})
    (root / "clips.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")


LAYOUTS["json"] = listed_by_json
folder = Path(sys.argv[1] if len(sys.argv) > 1 else "datasets/own_layout")
if not folder.exists():
    make(folder)
cfg = TrainConfig(
    data_folder=str(folder),
    data_layout="json",  # type: ignore[arg-type]  # one of the names in latte/config/train.py, and now this one
    pretrained_model_path="models/demo",
    condition="class",
    num_classes=3,
    train_batch_size=2,
    max_steps=4,
    log_interval=2,
    ema_decay=0.5,
    sample_videos=1,
    sample_steps=10,
    output_path="outputs/own_layout",
)
training = build(cfg)
print(describe(cfg, training))
trainer = Trainer(cfg, training)
trainer.fit()
print(trainer.folder)
