"""Dialects: how a task is put to a model, and how its answer is read.

line_repair.py  the format that the bundled model was trained on
chat.py         any instruct model: its own chat template, search/replace edits
"""
