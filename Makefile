# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OUT ?= demo
PYTEST_ARGS ?=
EXTRAS ?=
WHEELHOUSE ?= wheelhouse

.PHONY: demo test browser ray remote faults lint ladder capacity docs notebooks wheelhouse audit-dependencies

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

demo: $(READY)
	$(BIN)/medlt demo --out $(OUT)

# in two processes of one torch thread each, which on two cores is faster than one process of two. PYTEST_ARGS are options;
# for single files call .venv/bin/pytest
HEAVY := tests/recipes tests/synthesis tests/report
test: export OMP_NUM_THREADS = 1
test: $(READY) lint
	$(BIN)/python -m pytest $(PYTEST_ARGS) $(HEAVY) > .pytest-heavy.log 2>&1 & heavy=$$!; \
	$(BIN)/python -m pytest $(PYTEST_ARGS) $(HEAVY:%=--ignore=%) -p no:cacheprovider tests; others=$$?; \
	wait $$heavy; heavy=$$?; cat .pytest-heavy.log; \
	case $$others,$$heavy in 0,0|0,5|5,0) ;; *) exit 1 ;; esac  # 5: nothing there is selected

# the pages in Chromium, which is downloaded if the machine has none; where it cannot be had, the tests are skipped
browser: $(READY)
	MEDLT_BROWSER=$$(tests/browser/chromium.sh) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m browser -p no:cacheprovider tests/browser

# `--engine ray`, with Ray installed for it: 250 MB that nothing else needs; where it cannot be had, the tests are skipped
ray: $(READY)
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[ray]' \
		|| echo "ray: Ray cannot be installed here, so its tests are skipped"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m ray -p no:cacheprovider tests/engine tests/recipes/test_ray.py

# S3 as moto serves it on this machine. moto and botocore are large, so they are in an environment of their own, which sees
# the packages of $(VENV); where they cannot be had, the tests are skipped
REMOTE := .remote-venv
SITE := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
remote: $(READY)
	test -x $(REMOTE)/bin/python || $(PYTHON) -m venv $(REMOTE)
	$(BIN)/python $(SITE) > $$($(REMOTE)/bin/python $(SITE))/dev.pth
	$(REMOTE)/bin/python -m pip install --quiet --no-deps --requirement tests/export/object_store.txt \
		|| echo "remote: s3fs and moto cannot be installed here, so the tests are skipped"
	OMP_NUM_THREADS=1 $(REMOTE)/bin/python -m pytest -p no:cacheprovider tests/export/test_object_store.py

# every command is killed, its disk filled, its files damaged; SHORT=1 strikes several files at once, WRITE=1 writes what
# came of it to docs/reference/faults.md
faults: $(READY)
	MEDLT_FAULTS_SHORT=$(SHORT) MEDLT_FAULTS_WRITE=$(WRITE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m faults \
		-p no:cacheprovider $(PYTEST_ARGS) tests/faults

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# an experiment whose outcome is known; it ends with 1 unless pasted lesions help and coded copies harm
# nothing of an earlier call is used: its images and classifiers would hide what a change has broken
ladder: $(READY)
	rm -rf runs/small_ladder runs/small_ladder_paste runs/small_ladder_artifacts
	$(BIN)/medlt evaluate --ladder phantom/small_ladder

# the cost of each stage with few images; it ends with 1 if the cost of one grows too fast with their number
capacity: export OMP_NUM_THREADS = 1
capacity: $(READY)
	$(BIN)/python benchmarks/capacity.py --short

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# in two processes of one torch thread each, as `make test`
NBMAKE := -m pytest --nbmake --nbmake-timeout=900 -m '' -p no:cacheprovider
notebooks: export OMP_NUM_THREADS = 1
notebooks: $(READY)
	$(BIN)/python $(NBMAKE) notebooks/*[1357]_*.ipynb > .pytest-notebooks.log 2>&1 & odd=$$!; \
	$(BIN)/python $(NBMAKE) notebooks/*[2468]_*.ipynb; even=$$?; \
	wait $$odd; odd=$$?; cat .pytest-notebooks.log; [ $$odd,$$even = 0,0 ]

# the wheel of medlt, the wheels of all that it needs in the versions of constraints.txt, and their SHA-256 sums
wheelhouse: $(READY)
	mkdir -p $(WHEELHOUSE)
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip wheel --quiet --constraint constraints.txt --wheel-dir $(WHEELHOUSE) \
		'.$(if $(EXTRAS),[$(EXTRAS)])'
	cp constraints.txt $(WHEELHOUSE)/
	cd $(WHEELHOUSE) && sha256sum -- *.whl constraints.txt > SHA256SUMS

# known vulnerabilities of the versions of constraints.txt, by pip-audit in an environment of its own; it needs pypi.org
AUDIT := .audit-venv
audit-dependencies:
	@test -x $(AUDIT)/bin/pip-audit || { $(PYTHON) -m venv $(AUDIT) && $(AUDIT)/bin/python -m pip install --quiet pip-audit; } \
		|| { echo "audit-dependencies: pip-audit cannot be installed here; run this where pypi.org is reachable"; exit 1; }
	@$(AUDIT)/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off --requirement constraints.txt \
		|| { echo "audit-dependencies: packages with known vulnerabilities are listed above, or pypi.org does not answer"; exit 1; }
