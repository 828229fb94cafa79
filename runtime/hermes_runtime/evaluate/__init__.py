"""Evaluation: instances in, a measured comparison of arms out.

run.py         a whole run: prepare, seal, start, drive, report; resumable
folder.py      where each thing of a run lies; prepare.py what is found before the seal
processes.py   what is started, with which sockets
shard.py       one shard of a run in a pod, beside sidecars.py; what it tells: termination.py, reporting.py
desk.py        which instance under which arm; what a crash costs; what is recorded
driver.py      one (instance, arm): the conversation of driver, planner, coder, tester
instances.py   the schema of an instance; datasets/ builds them; checkout.py lays one out;
               editable.py what a patch may touch; check.py proves one; grading.py grades one
results.py     what is recorded; manifest.py what ran on what
views.py       everything that is derived: summary.py, report.py, explain.py from act_record.py,
               statistics.py, verdict.py, charts.py, shown.py; progress.py while it runs
fetch.py       a cluster's run as a run's folder here; cluster.py the way to the cluster's store
"""
