# `make demo` and `make test` set up everything they need. Requires Python 3.11 or newer, git and make.
PYTHON ?= python3
UV_VERSION = 0.13.9
BIN = .venv/bin
# Container images often set it, but then every command would take seconds to compile its imports again.
unexport PYTHONDONTWRITEBYTECODE
# Trust the machine's certificates, as pip does, because networks that inspect TLS use their own.
export UV_SYSTEM_CERTS ?= 1
FILES = --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-pipeline test-training test-together quick lint docs dist clean constraints

demo: .venv/ready
	PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/demo.sh

# Each package is tested in an environment with only its own extra, tests across packages in one with all extras. The
# three run side by side, because tests of clusters and kills wait a third of their time; the longest has lower priority.
# The import before each compiles what all of its workers need, once.
test:
	$(MAKE) --no-print-directory --jobs 3 test-pipeline test-training test-together

test-pipeline: .venv-pipeline/ready
	.venv-pipeline/bin/python -c "import pipeline.kernel.render, pipeline.cache.lz4, pipeline.dicom.elements"
	.venv-pipeline/bin/python -m pytest tests/pipeline -n 3 $(FILES) $(PYTEST)

test-training: .venv-training/ready
	.venv-training/bin/python -c "import torchvision, training.run.loop"
	OMP_NUM_THREADS=1 nice .venv-training/bin/python -m pytest tests/training -n 2 $(FILES) $(PYTEST)

test-together: .venv/ready
	$(BIN)/python -c "import torchvision, training.run.loop, pipeline.kernel.render"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests --ignore tests/pipeline --ignore tests/training -n 1 $(FILES) $(PYTEST)

# Fast tests for development, under a minute: the design rules, and tests without processes or trained runs.
QUICK = tests/test_imports.py tests/test_pages.py $(addprefix tests/pipeline/,dicom kernel planning source tables) \
	tests/training/data tests/training/scores tests/training/model/test_augment.py tests/training/model/test_loss.py
SLOW = $(addprefix --ignore tests/training/scores/,test_ablate.py test_bootstrap.py test_evaluation.py) \
	--ignore tests/training/data/test_dataset.py
quick: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(QUICK) $(SLOW) -n 2 $(FILES) $(PYTEST)

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell $$(git ls-files)
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

# The documentation, in site/; broken links are errors.
docs: .venv/ready
	$(BIN)/mkdocs build --quiet --strict

# Wheel and source package in dist/, checked; the wheel is tried in an environment of its own.
dist: .venv/ready
	rm -rf dist build
	$(BIN)/python -m build --quiet
	$(BIN)/twine check --strict dist/*
	bash scripts/try_wheel.sh $(PYTHON) dist/*.whl

# Versions only, for all supported Python versions, without download addresses.
constraints: .venv/ready
	$(BIN)/uv pip compile --quiet --universal --extra all --no-header --no-annotate --upgrade pyproject.toml -o constraints.txt

clean:
	rm -rf .venv .venv-pipeline .venv-training demo build dist site *.egg-info
