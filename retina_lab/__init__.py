"""retina_lab: the helper library of an executable course on retinal vessels.

Data flows one way: ``datasets`` → ``augment`` → ``models`` → ``losses`` → ``train`` →
``predict`` → ``metrics`` / ``evaluate`` → ``plots`` / ``widgets``. Import the module you
need; importing the package alone costs almost nothing.
"""

__version__ = "0.1.0"
