"""Make a video of a prompt with Latte-1: python examples/text_to_video.py "a dog in space" [FOLDER]

FOLDER is models/Latte-1 by default, where `latte download Latte-1` puts it.
"""

import sys

from latte import LattePipeline, Solver, export_to_video

prompt, folder = [*sys.argv[1:], "models/Latte-1"][:2]
pipe = LattePipeline.from_pretrained(folder)
pipe.scheduler = Solver.from_config(pipe.scheduler.config, "unipc")  # 20 steps in place of 50
video = pipe(prompt, num_inference_steps=20, guidance_scale=7.5, seed=0).frames[0]
print(export_to_video(video, "video.mp4"))
