"""Sample a video with the shipped model, and write it as a gif: python examples/sample.py"""

from latte import LattePipeline, export_to_gif

pipe = LattePipeline.from_pretrained("models/demo")
video = pipe(class_labels=2, seed=7, sampler="dpmpp_2m", num_inference_steps=20).frames[0]
print(export_to_gif(video, "sunset.gif"))
