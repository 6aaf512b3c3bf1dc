# Two commands do everything on a fresh machine: `make demo` and `make test`. Needs Python 3.11 or newer, git and make.
PYTHON ?= python3
UV_VERSION = 0.13.9
BIN = .venv/bin
# Images of containers often set it; here every command would then compile all it imports again, for seconds.
unexport PYTHONDONTWRITEBYTECODE
# The certificates that this machine trusts, as pip does: a network that inspects TLS has one of its own.
export UV_SYSTEM_CERTS ?= 1
FILES = --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-pipeline test-others quick lint types docs dist clean constraints

demo: .venv/ready
	PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/demo.sh

# Each package is tested in an environment that holds only its own extra; what joins them in one that holds all. Two of
# these jobs at once: tests of clusters and kills wait a third of their time, and have their processes come first.
test: lint .venv-pipeline/ready .venv-training/ready
	$(MAKE) --no-print-directory --jobs 2 types test-pipeline test-others

# Files go to the next free worker in the order of tests/conftest.py. What is compiled is compiled before, once for all.
test-pipeline: .venv-pipeline/ready
	.venv-pipeline/bin/python -c "import pipeline.kernel.render, pipeline.cache.lz4, pipeline.dicom.elements"
	.venv-pipeline/bin/python -m pytest tests/pipeline -n 3 $(FILES) $(PYTEST)

test-others: .venv/ready .venv-training/ready
	OMP_NUM_THREADS=1 nice .venv-training/bin/python -m pytest tests/training -n 2 $(FILES) $(PYTEST)
	OMP_NUM_THREADS=1 nice $(BIN)/python -m pytest tests --ignore tests/pipeline --ignore tests/training -n 2 $(FILES) $(PYTEST)

# While you work, under a minute: the rules of the house, and what needs neither processes nor a trained run.
QUICK = tests/test_imports.py tests/test_pages.py $(addprefix tests/pipeline/,dicom kernel planning source tables) \
	tests/training/data tests/training/scores tests/training/model/test_augment.py tests/training/model/test_loss.py
SLOW = $(addprefix --ignore tests/training/,scores/test_ablate.py scores/test_bootstrap.py data/test_dataset.py)
quick: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(QUICK) $(SLOW) -n 2 $(FILES) $(PYTEST)

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready
	$(BIN)/mypy

.venv/ready: EXTRA = all
.venv-pipeline/ready: EXTRA = pipeline,codecs,s3,cluster,test,oracles
.venv-training/ready: EXTRA = training,export,test
.venv/ready .venv-pipeline/ready .venv-training/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than Python 3.11: make PYTHON=python3.12 ..." >&2; exit 1; }
	@rm -rf $(@D)
	@$(PYTHON) -m venv $(@D) 2>/dev/null || bash scripts/make_venv.sh $(PYTHON) $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	VIRTUAL_ENV=$(@D) $(@D)/bin/uv pip install --quiet -c constraints.txt -e ".[$(EXTRA)]"
	@touch $@

# The documentation, in site/; a broken link is an error.
docs: .venv/ready
	$(BIN)/mkdocs build --quiet --strict

# Wheel and source package, in dist/: checked, and the wheel tried in an environment that holds nothing else.
dist: .venv/ready
	rm -rf dist build
	$(BIN)/python -m build --quiet
	$(BIN)/twine check --strict dist/*
	bash scripts/try_wheel.sh $(PYTHON) dist/*.whl

# Versions only, for every supported Python; no download address is recorded.
constraints: .venv/ready
	$(BIN)/uv pip compile --quiet --universal --extra all --no-header --no-annotate --upgrade pyproject.toml -o constraints.txt

clean:
	rm -rf .venv .venv-pipeline .venv-training demo build dist site *.egg-info
