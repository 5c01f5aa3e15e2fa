# The ways in. `make` alone lists them; what they do is in tools/ and bench/.

BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test soak test-places test-wheels test-programs test-remote test-migrate test-remote-kills check check-native check-mutants test-full-disk test-full-disk-live test-park-wake test-kills test-at-once test-killed-criu fuzz fuzz-restores bench bench-store bench-live bench-files bench-fork bench-scale bench-remote bench-encryption setup-bench lock labextension setup-browser screenshots pictures tour docs wheel clean test-supervisor-kills fuzz-files

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## what the machine lacks: packages, CRIU, .venv
	@tools/setup

demo: setup ## a live kernel saved, restored and forked, in a minute
	$(BIN)/ijfs demo

test: setup setup-browser ## every test that this machine can run; ARGS go to pytest
	$(BIN)/python tools/run_tests.py $(ARGS)

fuzz: setup ## damaged repositories against what the store promises, an hour. ARGS=--seed 2 --seconds 600
	$(BIN)/python tests/engine/fuzz_store.py --workers $$(nproc) $(ARGS)

fuzz-restores: setup ## programs restored from damaged copies of a repository, 5 minutes. ARGS=--count 500 --seed 2
	PYTHONPATH=.:tests $(BIN)/python tests/live/fuzz_restore.py $(ARGS)

fuzz-files: setup ## random work on files in sandboxes, saved and restored in between, against the same outside; 20 minutes, as root. ARGS=--disk
	PYTHONPATH=.:tests:tests/live $(BIN)/python tests/live/files_machine.py $(ARGS)

test-places: setup ## containers of podman, as people have them; installs podman and mmdebstrap. ARGS go to pytest
	@tools/setup-places
	IJFS_TEST_PLACES=1 $(BIN)/pytest tests/places $(ARGS)

test-wheels: setup ## wheels for Python 3.11, 3.13 and 3.14, installed where there is no compiler; fetches Debian, half an hour
	@tools/setup-places
	IJFS_TEST_PLACES=1 IJFS_TEST_WHEELS=1 $(BIN)/pytest tests/places/test_wheels.py $(ARGS)

test-programs: setup ## redis to chromium, each by its own client; installs them, 12 GB, half an hour; writes docs/programs.md
	@tools/setup-programs
	IJFS_TEST_PROGRAMS=1 $(BIN)/pytest tests/programs $(ARGS); status=$$?; $(BIN)/python tools/programs_page.py; exit $$status

test-remote: setup ## remotes against Ceph's S3 gateway on loopback; fetches it, 200 MB. ARGS go to pytest
	IJFS_TEST_RGW=1 $(BIN)/pytest tests/remote $(ARGS)

test-migrate: setup ## programs moved by a real sshd with the connection broken at each step, ten minutes, as root; fetches sshd, 2 MB
	PYTHONPATH=tests:tests/remote $(BIN)/python tests/remote/migrations.py $(ARGS)

test-remote-kills: setup ## machines and gateway killed at random while they push, half an hour. ARGS=--rounds 50 --seed 2
	PYTHONPATH=tests/remote $(BIN)/python tests/remote/campaign.py $(ARGS)

bench-remote: setup ## push, clone, restore and gc through a store 20 and 50 ms away; as root. ARGS=--quick
	$(BIN)/python -m bench.remote $(ARGS)

check: setup ## format, lint, types, import contracts, shell scripts; before each commit
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	@tools/check-shell
	$(BIN)/python tools/pictures.py --check
	$(BIN)/python tools/json_schema.py --check

check-native: setup ## the engine's compiled loops under AddressSanitizer
	tools/check-native

check-mutants: setup ## whether tests notice changes to the engine; 10 minutes. ARGS=--only storage/refs.py
	$(BIN)/python tools/check_mutants.py $(ARGS)

test-full-disk: setup ## every verb on small disks at every level of free space; as root, 2 minutes. ARGS=--kind ext4 gc
	PYTHONPATH=tests $(BIN)/python tests/engine/small_disk.py $(ARGS)

test-full-disk-live: setup ## verbs of live programs on full disks, 10 minutes. ARGS=--kind ext4 save
	PYTHONPATH=tests $(BIN)/python tests/live/small_disk_live.py $(ARGS)

test-park-wake: setup ## a server under load, parked and woken 1,000 times, 10 minutes; as root. ARGS=--cycles 100
	PYTHONPATH=.:tests $(BIN)/python tests/deployments/park_wake_campaign.py $(ARGS)

test-supervisor-kills: setup ## deployments whose supervisor is killed in the middle of everything; as root, 5 minutes. ARGS=--seed 2
	PYTHONPATH=.:tests $(BIN)/python tests/deployments/kill_campaign.py $(ARGS)

test-kills: setup ## 2,000 deaths of processes and machines at random steps, 10 minutes. ARGS=--kills 100 --seed 2
	$(BIN)/python tests/engine/kill_campaign.py $(ARGS)

test-at-once: setup ## processes that save, remove, collect and check in one repository at once, 5 minutes. ARGS=--seconds 60 --seed 2
	$(BIN)/python tests/engine/at_once.py $(ARGS)

test-killed-criu: setup ## CRIUs killed at random moments of saves and restores; 5 minutes. ARGS=--count 50 --seed 2
	PYTHONPATH=.:tests $(BIN)/python tests/live/kill_criu.py $(ARGS)

soak: setup ## a server's sandboxes made, forked and killed: what is left, how long calls take. ARGS=--cycles 1000
	$(BIN)/python -m bench.serve_soak $(ARGS)

bench: bench-store bench-live ## both benchmarks

bench-store: setup ## the store against its peers, on real kernels; as root. ARGS=--quick for a small tree
	$(BIN)/python -m bench.store $(ARGS)

bench-live: setup ## save, restore and fork of live kernels
	$(BIN)/python -m bench.live $(ARGS)

bench-files: setup ## saves of many files, and work on files inside against outside; as root. ARGS=--rounds 1
	$(BIN)/python -m bench.files $(ARGS)

bench-fork: setup ## many copies of one kernel at once: when they answer, what memory they take; as root. ARGS=--only 8
	$(BIN)/python -m bench.fork $(ARGS)

bench-scale: setup ## the store at 1 and 10 million chunks; 15 minutes, 4 GB of disk
	$(BIN)/python -m bench.store_scale $(ARGS)

bench-encryption: setup ## what encryption costs: the same stored and read in plain and encrypted, in turns. ARGS=--mib 1000
	$(BIN)/python -m bench.encryption $(ARGS)

setup-bench: setup ## the peers that bench-store compares with; ARGS=--torch for torch kernels
	@tools/setup-bench $(ARGS)

setup-browser: setup ## what the tests in a browser need: chromium, JupyterLab, playwright
	@tools/setup-browser

labextension: ## the panel for JupyterLab from its sources into labextension/built; needs node and npm
	tools/labextension

screenshots: setup setup-browser ## docs/jupyter-panel.png, the panel in JupyterLab as it is now
	IJFS_SCREENSHOTS=docs $(BIN)/pytest tests/browser/test_screenshots.py

lock: ## resolve the dependencies anew; ARGS=--upgrade for the newest
	tools/lock $(ARGS)

pictures: ## docs/internals/pictures from their sources; needs graphviz
	@$(BIN)/python tools/pictures.py

tour: setup ## type README.md's commands: what they print now goes into it, and docs/tour.svg shows it
	$(BIN)/python tools/transcripts.py README.md
	$(BIN)/python tools/transcripts.py --svg README.md docs/tour.svg

docs: setup ## the pages as a site, in docs/_site
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_site

wheel: setup ## wheels that need no compiler, in dist/
	tools/wheel

clean: ## what is built or cached, but not .venv and .prefix, which take longest to make
	rm -rf build dist .cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis docs/_site *.egg-info
	find ijfs engine tests bench tools -name __pycache__ -prune -exec rm -rf {} +
	find engine ijfs -name '*.so' -delete
	rm -f .venv/.made-from-extensions
