"""The results table: every model is pretrained, fine-tuned on every task and evaluated, as a folder of jobs."""
