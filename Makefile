# On a fresh machine `make run` or `make test` is all it takes; only Python has to be there.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# moved by hand: the numbers of a training depend on it
TORCH := 2.13.0

check_python = $(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || { echo \
	"This needs Python 3.11 or newer with venv, and '$(PYTHON)' is not that. On Debian or Ubuntu: sudo apt install" \
	"python3-venv. Elsewhere: https://www.python.org/downloads. Another interpreter: make PYTHON=python3.12 ..."; exit 1; }

help: ## what there is
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1\t\2/p' Makefile

run: $(INSTALLED) ## prepare, train, validate and ensemble fold 0 of what params.yaml says
	$(BIN)/snakemake --cores all results/fold_0/summary.json

test: $(INSTALLED) ## the tests
	@# a file on one core: two teams of threads on the same cores wait for each other
	OMP_NUM_THREADS=1 PYTHONUTF8=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile \
		--no-loadscope-reorder

slurm: $(INSTALLED) ## the plugin that profiles/slurm needs
	$(BIN)/python -m pip install --requirement requirements.lock --requirement requirements-slurm.lock

lint: $(INSTALLED) ## style, types, and whether dvc.yaml still says what the rules say
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/mypy
	$(BIN)/python workflow/scripts/make_dvc_yaml.py --check

lock: ## newest versions that pyproject.toml allows, into requirements.lock and .venv
	@$(check_python)
	rm -rf .venv
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --editable ".[dev]" torch==$(TORCH)
	@# no local versions (+cpu) and nothing that only a GPU build of torch brings: the file has to hold on any machine
	echo "# What runs and tests the project, exactly. 'make lock' renews it from pyproject.toml." > requirements.lock
	$(BIN)/python -m pip freeze --all --exclude-editable | sed 's/+.*//' \
		| grep -viE '^(pip|wheel|triton|nvidia|cuda)\b' >> requirements.lock
	touch $(INSTALLED)

# The last line marks the installation as whole: one that was interrupted starts anew.
$(INSTALLED): requirements.lock
	@$(check_python)
	rm -rf .venv
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --requirement requirements.lock
	$(BIN)/python -m pip install --no-deps --no-build-isolation --editable .
	touch $@

.PHONY: help run test slurm lint lock
