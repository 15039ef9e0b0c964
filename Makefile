# Each target makes .venv by itself. Without make: python -m retina_lab.course lab|book|test.
#
#   make lab     opens the course in JupyterLab
#   make book    executes every notebook and renders the book
#                (make book DATASET=chase_db1 PROFILE=class on real images; without these
#                words RETINA_LAB_DATASET and RETINA_LAB_PROFILE, or else phantoms in class)
#   make test    runs everything that guards the course
#   make bench   measures
#   make clean   removes what these made, .venv aside
#
# RETINA_LAB_DATA=FOLDER says where real images lie (otherwise data/).

# The first Python that is new enough; the tested one first.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	then echo $$p; break; fi; done)

VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

.PHONY: lab book test bench clean

lab: $(INSTALLED)
	$(PY) -m retina_lab.course lab

book: $(INSTALLED)
	$(PY) -m retina_lab.course book $(if $(PROFILE),--profile $(PROFILE)) $(if $(DATASET),--dataset "$(DATASET)")

test: $(INSTALLED)
	$(PY) -m retina_lab.course test

bench: $(INSTALLED)
	$(PY) -m retina_lab.bench run
	$(PY) -m retina_lab.bench table

clean:
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: install it, or make PYTHON=…" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet -c constraints.txt -e '.[book,test]'
	touch $@
