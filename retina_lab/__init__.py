"""retina_lab: the helper library of an executable course on retinal vessels.

Data flows one way: ``datasets`` → ``augment`` → ``models`` → ``losses`` → ``train`` →
``predict`` → ``metrics`` / ``evaluate`` → ``plots`` / ``widgets``. Import the module you
need; importing the package alone costs almost nothing.
"""

import os

__version__ = "0.1.0"

# The threads of torch wait for each other by spinning. On a laptop where anything else runs,
# a spinning thread keeps the very thread it waits for from running, and a training step takes
# ten times as long. After this many turns they sleep instead: nothing is lost on a quiet
# machine and a step takes twice as long on a busy one. It counts only if it is set before
# torch is loaded, and it leaves a user's own setting alone.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
