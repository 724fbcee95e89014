"""Where a run's numbers, samples and messages go: metrics.jsonl always, dashboards on request."""

from cromic_ds.tracking.jsonl import read_metrics
from cromic_ds.tracking.log import setup_logging
from cromic_ds.tracking.open_trackers import TrackingSettings, open_trackers
from cromic_ds.tracking.tracker import SampleRow, Tracker

__all__ = ["SampleRow", "Tracker", "TrackingSettings", "open_trackers", "read_metrics", "setup_logging"]
