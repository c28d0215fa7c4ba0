"""Export a part of a pipeline as a MindIR file: network with guidance, encoder, decoder, or text encoder.

    python tools/export_mindir.py -c configs/inference/demo.yaml --part denoiser --target outputs/denoiser.mindir

The options are those of sample.py; they fix the shapes, the dtype and the device, which need not be on this machine. A
YAML file beside the graph lists its inputs. Weights of more than 1 GB go to a folder NAME_variables, and the graph is
NAME_graph.mindir then. --report counts the operations of each kind per block; without --target it does only that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from latte.config import ExportConfig, parse_config

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the options, export the part, and print a report."""
    cfg = parse_config(ExportConfig, argv, __doc__)
    cfg.require_checkpoint()

    from latte.inference import export  # after the options: MindSpore takes seconds to import
    from latte.runtime import device

    device.init_for_export(cfg.device_target, cfg.device_id, cfg.jit_level)
    print(export.dry_run(cfg) if cfg.dry_run else export.export(cfg))
