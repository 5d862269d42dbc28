# make demo   a report of a small COOPER, trained for some steps before your eyes: outputs/demo/report.html
# make test   everything that can be checked without a GPU
# make install  only what both do first: .venv with the exact versions of constraints.txt
# Each makes .venv on its first run. Nothing else has to be installed by hand, but Python 3.11 or newer.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

# Big tensors come and go in every step. Left to its defaults the allocator maps fresh pages for each, and first touching them took longer than the
# arithmetic (nbs/90_log.ipynb). Huge pages, kept by the process, are the cure; other platforms ignore these names.
export THP_MEM_ALLOC_ENABLE = 1
export MALLOC_MMAP_THRESHOLD_ = 4294967296
export MALLOC_TRIM_THRESHOLD_ = 8589934592

.PHONY: demo test install notebooks pytest runs readme clean
.DEFAULT_GOAL := help

PY     := .venv/bin/python
STAMP  := .venv/.installed
README ?= README.md
# RUN notebooks are not lessons with tests: papermill runs them, with small parameters (tests/run_notebooks.py)
RUN    := ^([1-9]0_|45_|5[0-9]_|index|[_.])

help:
	@sed -n 's/^# //p' Makefile | head -4

demo: $(STAMP)
	$(PY) -m cooper.present.report demo --out outputs/demo

test: $(STAMP) notebooks pytest runs

notebooks: $(STAMP)
	OMP_NUM_THREADS=1 COOPER_QUIET=1 .venv/bin/nbdev_test --path nbs --n_workers 2 --skip_file_re '$(RUN)' --timing

pytest: $(STAMP) notebooks
	$(PY) -m pytest tests -n 2 --dist loadfile

runs: $(STAMP) pytest
	$(PY) tests/run_notebooks.py --out outputs/test

# The home page is nbs/index.ipynb; its links are seen from nbs/, those of the README from the root. Cleaning drops the language, awk gives it back.
readme: $(STAMP)
	$(PY) -m nbconvert --to markdown --log-level WARN --stdout --TagRemovePreprocessor.enabled=True --TagRemovePreprocessor.remove_cell_tags hide \
		--TemplateExporter.exclude_output=True nbs/index.ipynb | sed 's#](\.\./#](#g' | awk '/^```$$/ && ++fence % 2 {$$0 = "```python"} 1' > $(README)

install: $(STAMP)

# torch first: the rest must be resolved against the pinned release. The stamp is newer than what it was made from.
$(STAMP): constraints.txt settings.ini setup.py
	@for p in python3.11 python3.12 python3.13 python3.14 python3; do \
		if $$p -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$p; break; fi; done; \
	if [ -z "$${python:-}" ] && [ ! -x $(PY) ]; then echo "Python 3.11 or newer with ensurepip (Debian: python3-venv) was not found" >&2; exit 1; fi; \
	if [ ! -x $(PY) ]; then echo "making .venv with $$($$python --version)"; $$python -m venv .venv; fi
	$(PY) -m pip install -q -c constraints.txt "$$(grep '^torch==' constraints.txt)" setuptools wheel
	$(PY) -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf outputs/test outputs/demo .pytest_cache
