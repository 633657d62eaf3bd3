# `make demo` and `make test`, each from nothing; the environment is made once and reused.
PYTHON ?= python3
PY := .venv/bin/python
CAN_INSTALL := .venv/bin/uv pip install --quiet --dry-run --target build/none --only-binary :all: --no-binary antlr4-python3-runtime --require-hashes -r requirements.lock --python-version 3.11

.PHONY: check demo test slow bench browser lint docs picture platforms clean

.venv/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else f"cxrlt_ray needs Python 3.11 to 3.13; $(PYTHON) is {v.major}.{v.minor}. Give another: make PYTHON=python3.11 ...")'
	@echo "Making .venv (about 6.5 GB, a minute or two)"
	@$(PYTHON) -m venv .venv
	@$(PY) -m pip install --quiet --disable-pip-version-check uv
	@# compiled once here: where Python may not keep what it compiles, an import of torch and ray takes 3 times as long
	@.venv/bin/uv pip install --quiet --compile-bytecode --python $(PY) --require-hashes -r requirements.lock
	@.venv/bin/uv pip install --quiet --python $(PY) --no-deps -e .
	@touch $@

demo: .venv/.ready
	$(PY) -m cxrlt_ray.sweep task1 --trials 2 --time-budget 270s
	@echo
	@echo "Then the ensemble of the best trials. All of it is in runs/:"
	@echo "  .venv/bin/python -m cxrlt_ray.trials              the runs and their trials"
	@echo "  .venv/bin/python -m cxrlt_ray.cohort DIR          what your own data holds"
	@echo "  .venv/bin/python -m cxrlt_ray.sweep task1 --data DIR    the same on it (docs/data.md)"
	@echo
	$(PY) -m cxrlt_ray.ensemble --select greedy

# the platforms are reported, not judged: a registry may keep the files of one platform only
check: lint test
	-@$(MAKE) --no-print-directory platforms

test: .venv/.ready
	$(PY) -m pytest

slow: .venv/.ready
	$(PY) -m pytest -m slow

bench: .venv/.ready
	$(PY) benchmarks/selection.py --write
	$(PY) benchmarks/prepare.py --write
	$(PY) benchmarks/prepare.py --map --write
	$(PY) benchmarks/stream.py --write
	$(PY) benchmarks/trials.py --write
	$(PY) benchmarks/growth.py --write
	$(PY) benchmarks/search.py --write
	$(PY) benchmarks/gpu.py --write
	$(PY) benchmarks/honesty.py --write
	$(PY) benchmarks/contention.py --write
	$(PY) benchmarks/intervals.py --write

# for the tests of the report page: Debian's chromium, and axe-core
browser:
	sh tests/page/browser.sh

lint: .venv/.ready
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy cxrlt_ray
	@$(MAKE) --no-print-directory docs

# a link that leads nowhere ends it
docs: .venv/.ready
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict
	@echo "build/site/index.html"

# the README's, of the newest run's report.html
picture: .venv/.ready
	$(PY) docs/picture.py

# what the lock holds has wheels for these, too: nothing is installed
platforms: .venv/.ready
	MACOSX_DEPLOYMENT_TARGET=14.0 $(CAN_INSTALL) --python-platform aarch64-apple-darwin
	$(CAN_INSTALL) --python-platform x86_64-pc-windows-msvc

clean:
	rm -rf .venv
