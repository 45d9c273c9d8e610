# Every target runs in a virtual environment of the project's own; nothing has to be activated.

PYTHON3 ?= python3
VENV ?= .venv
PYTHON := $(VENV)/bin/python
PIP := $(PYTHON) -m pip --disable-pip-version-check
WORKERS ?= 2
ARGS ?=

# Stamps: made again when what they depend on has changed.
READY := $(VENV)/.ready
LINTER := $(VENV)/.linter
INTEGRATIONS := .venv-integrations
INTEGRATED := $(INTEGRATIONS)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-integrations test-simulator test-asan test-tsan test-sweep test-gpu check-compiled check-release test-all bench bench-workloads bench-gpu tune docs linkcheck lint types format clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  ARGS=... is passed on to pytest and bench: make test ARGS='-k lstm'"

setup: $(READY) ## create the virtual environment, with everything the tests need

demo: $(READY) ## train two small character models, each beside its peer in PyTorch; 1.5 minutes
	@echo "1 of 2: a peephole LSTM, a layer that torch.nn does not have."
	$(PYTHON) examples/char_lm_peers.py --cell peephole_lstm --against eager --steps 1200 --out runs/peephole
	@echo "2 of 2: a GRU in the place of torch.nn.GRU, with its arguments and its weights."
	$(PYTHON) examples/char_lm_peers.py --cell gru --against torch --steps 200 --sample 0 --out runs/gru

# Whether kernels are interpreted or compiled is settled when they are imported: so several runs,
# of which ARGS may leave one without a test (pytest's exit status 5).
RUN := $(PYTHON) -m pytest
SIMULATED := TRITON_INTERPRET=0 $(RUN) tests/compiled tests/simulator -n $(WORKERS)

test: $(READY) ## run the tests that need no GPU and take no minutes each
	$(RUN) -n $(WORKERS) --ignore tests/compiled --ignore tests/simulator -m "not gpu and not slow" $(ARGS) || test $$? -eq 5
	$(SIMULATED) -m "not gpu and not slow" $(ARGS) || test $$? -eq 5

# The environment is another one: these packages bring some fifty more.
test-integrations: $(INTEGRATED) ## run the tests beside the packages that fused_rnn works with
	$(INTEGRATIONS)/bin/python -m pytest -n $(WORKERS) -m "not gpu" tests/integrations $(ARGS)

test-simulator: $(READY) ## execute the compiled kernels in the simulator, and test that
	$(SIMULATED) -m "not gpu and not slow" $(ARGS)

# An error of either sanitizer ends the run. Python itself is not built for them: so they come first,
# and what it never frees is not counted.
SANITIZED := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g -O1
test-asan: $(READY) ## run the C++ engine under AddressSanitizer and UndefinedBehaviorSanitizer
	FUSED_RNN_CXXFLAGS="$(SANITIZED)" ASAN_OPTIONS=detect_leaks=0 \
	LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libubsan.so)" \
	$(RUN) -n 0 -s tests/engines/test_sequence_and_cpp.py tests/kernels/test_cpp_engine.py \
	tests/kernels/test_cpp_products.py tests/kernels/test_team.py tests/ops/test_cpu_layer.py \
	tests/ops/test_input_bias.py tests/cells/test_operations.py \
	-k "cpp or at_once or team or input_bias" $(ARGS)

# With the address randomisation of newer kernels ThreadSanitizer cannot map its shadow memory.
test-tsan: $(READY) ## look for data races between the C++ engine's threads with ThreadSanitizer
	FUSED_RNN_CXXFLAGS="-fsanitize=thread -fno-omit-frame-pointer -g -O1" \
	TSAN_OPTIONS=ignore_noninstrumented_modules=1 OMP_NUM_THREADS=1 \
	LD_PRELOAD="$$(c++ -print-file-name=libtsan.so)" \
	setarch -R $(RUN) -n 0 -s tests/kernels/test_team.py -k "not pytorch" $(ARGS)

test-gpu: $(READY) ## run the tests that need a GPU; without one they are skipped
	$(PYTHON) -m pytest -m gpu $(ARGS)

test-sweep: $(READY) ## execute every core cell in every dtype, and mutants of the kernels; random cells
	$(SIMULATED) -m "slow and not gpu" -k "not every_plan" $(ARGS)
	$(RUN) tests/cells/test_random_cells.py -n $(WORKERS) -m slow $(ARGS)

check-compiled: $(READY) ## compile every plan for six architectures; hours, ARGS='--minutes 10' for a part
	$(PYTHON) -m bench.machine_code $(ARGS)

check-release: ## build the sdist and the wheel, and try both in clean environments
	$(PYTHON3) packaging/check_release.py $(ARGS)

test-all: $(READY) ## run every test, the slow ones too
	$(RUN) -n $(WORKERS) --ignore tests/compiled --ignore tests/simulator -m "not gpu" $(ARGS) || test $$? -eq 5
	$(SIMULATED) -m "not gpu" $(ARGS) || test $$? -eq 5
	$(RUN) -m gpu $(ARGS) || test $$? -eq 5

bench: $(READY) ## race the backends; writes bench/results
	$(PYTHON) -m bench $(ARGS)

bench-workloads: $(READY) ## what people run recurrent layers for, beside what they run today; 15 minutes
	$(PYTHON) -m bench.workloads $(ARGS)

bench-gpu: $(READY) ## check and measure everything on one GPU, in ten minutes; ARGS=--dry-run without one
	$(PYTHON) -m bench.gpu $(ARGS)

tune: $(READY) ## time plans and cuDNN on this GPU; ARGS=--offline searches the plans by compiling, hours
	$(PYTHON) -m bench.tune $(ARGS)

SPHINX := $(PYTHON) -m sphinx -W --keep-going -q -c docs

docs: $(READY) ## build the documentation site in build/docs; a warning is an error
	$(SPHINX) -b html . build/docs $(ARGS)

linkcheck: $(READY) ## ask every address that the documents link; needs a network
	$(SPHINX) -b linkcheck . build/linkcheck $(ARGS)

lint: $(LINTER) ## check style, formatting and types
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(MAKE) types

# The kernels lie beside the package, and inside it once it is installed: the checker sees the latter.
types: $(LINTER) ## check the types of the package and of a user's program
	rm -rf build/types && mkdir -p build/types
	cp -rs $(CURDIR)/fused_rnn build/types/
	cp -rs $(CURDIR)/kernels build/types/fused_rnn/
	$(PYTHON) -m basedpyright --project pyproject.toml --pythonpath $(PYTHON)

format: $(LINTER) ## correct what ruff can correct
	$(PYTHON) -m ruff check --fix
	$(PYTHON) -m ruff format

clean: ## remove caches and what demo and build wrote
	rm -rf build dist runs .pytest_cache .ruff_cache .hypothesis
	find . -path "./.venv*" -prune -o -type d -name __pycache__ -print | xargs rm -rf

distclean: clean ## remove the virtual environment too
	rm -rf .venv $(INTEGRATIONS) *.egg-info

$(READY): pyproject.toml constraints.txt
	@$(PYTHON3) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "fused_rnn needs Python 3.10 or newer, $(PYTHON3) is " + sys.version)'
	test -x $(PYTHON) || $(PYTHON3) -m venv $(VENV)
	$(PIP) install -c constraints.txt -e '.[test]'
	@touch $@

$(INTEGRATED): pyproject.toml constraints.txt
	test -x $(INTEGRATIONS)/bin/python || $(PYTHON3) -m venv $(INTEGRATIONS)
	$(INTEGRATIONS)/bin/python -m pip --disable-pip-version-check install -c constraints.txt -e '.[test,integrations]'
	@touch $@

$(LINTER): $(READY)
	$(PIP) install -c constraints.txt ruff basedpyright
	@touch $@
