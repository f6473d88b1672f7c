# All targets set up their environment themselves, once; see "Install" in README.md.
#   make PYTHON=python3.12 ...   the Python (>= 3.10) that .venv is made of
#   make VENV=/some/folder ...   another place for the environment
#   make VENV= ...               no environment of ours: use $(PYTHON) as it is
#   make demo ARGS="..."         arguments for the command behind the target
PYTHON ?= python3
VENV ?= .venv
ARGS ?=

ifeq ($(strip $(VENV)),)
PY := $(PYTHON)
READY := check-environment
else
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
endif
PIP := $(PY) -m pip --disable-pip-version-check --no-input

.PHONY: help demo demo-ava test test-all lint zoo-table clean check-environment
.DELETE_ON_ERROR:

help:
	@echo "make demo       train and evaluate a small Mask R-CNN with a non-local block: 5 minutes on 2 CPU cores"
	@echo "make demo-ava   train a small SlowFast on drawn clips, evaluate it by AVA's protocol: 5 minutes on 2 CPU cores"
	@echo "make test       the fast tests (what CI runs)"
	@echo "make test-all   all tests, those of minutes too"
	@echo "make lint       ruff: rules and format"
	@echo "make zoo-table  write configs/README.md: size, cost and published results of all configs"
	@echo "make clean      delete build products and caches; keeps the environment and output/"

demo: $(READY)
	$(PY) tools/quickstart.py $(ARGS)

demo-ava: $(READY)
	$(PY) tools/quickstart.py --clips $(ARGS)

test: $(READY)
	$(PY) -m pytest -m "not slow" $(ARGS)

test-all: $(READY)
	$(PY) -m pytest $(ARGS)

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

zoo-table: $(READY)
	$(PY) tools/analyze.py --table configs/README.md

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	find nlnet_d2 nlnet_d2_command tests tools projects -name __pycache__ -type d -prune -exec rm -rf {} +

# Every step can be repeated, so whatever interrupted this recipe, the next call goes on. The `find` removes the
# traces of packages that pip was killed in the middle of (it writes RECORD last) and would take for installed.
$(VENV)/.ready: setup.py pyproject.toml tools/install_detectron2.py tools/detectron2_stand_in.py
	@$(PYTHON) -c "import sys; sys.version_info < (3, 10) and \
	    sys.exit('$(PYTHON) is Python %d.%d, 3.10 or later is needed: make PYTHON=python3.12 ...' % sys.version_info[:2])"
	@echo "Setting up $(VENV), once: PyTorch comes with its CUDA libraries, which machines without a GPU load"
	@echo "too (5.4 GB, minutes on a fast network); then detectron2, without a compiler, and nlnet_d2."
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@find $(VENV)/lib/*/site-packages -name '*.dist-info' ! -exec test -e {}/RECORD \; -prune -exec rm -rf {} +
	$(PIP) install -e ".[dev,video,export]"
	@$(PY) -c "import cv2" 2>/dev/null || $(PIP) install -e ".[opencv]"
	$(PY) tools/install_detectron2.py
	@touch $@

check-environment:
	@$(PY) -c "import sys, importlib.util as util; sys.path = [p for p in sys.path if p]; \
	    missing = [name for name in sys.argv[1:] if not util.find_spec(name)]; \
	    sys.exit(f'$(PY) lacks {missing}: see Install in README.md, or call make without VENV=' if missing else 0)" \
	    torch torchvision cv2 detectron2 nlnet_d2 pytest
