"""HERMES runtime: the processes of a run, from store to report. Start reading at `evaluate/run.py`."""
