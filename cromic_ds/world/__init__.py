"""The sample world: drawn scenes, and Chinese posts whose question needs both the picture and the post to be answered."""
