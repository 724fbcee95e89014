"""The results table: every model pretrained, fine-tuned on every task and evaluated, as a folder of jobs."""
