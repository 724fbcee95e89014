"""The sample world: drawn scenes, and Chinese posts whose question only picture and post together can answer."""
