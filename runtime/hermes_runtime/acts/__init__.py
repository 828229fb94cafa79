"""Acts: built, checked, encoded, anchored, delivered, accounted.

build.py      ids from what they name; acts and contents made and checked
arms.py       the arms' profiles
codec.py      which codec an encoding stands for (proto_codec.py; json_codec.py with sentences.py)
anchors.py    the benefit rule: inline, or anchor (ahead.py: for whom, and how often)
post.py       what is said goes out: the driver's post office, an agent's reply
resolve.py    anchors back to contents, through a cache of verified blobs
receive.py    at-least-once delivery: duplicates are answered with the first answer
ledger.py     the bill of a delivery; sums by class of payload size
"""
