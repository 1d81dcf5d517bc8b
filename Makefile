# Two commands: `make ticket` runs the main job, `make test` the tests. Each sets up .venv by itself.
PYTHON ?= python3
RUN := .venv/bin/
# One thread a process: on few cores, two threads of a small network wait for each other.
export OMP_NUM_THREADS ?= 1

.PHONY: ticket structured test slow-test lint docs clean

ticket: .venv/installed
	$(RUN)accelerate launch --config_file recipes/accelerate/one_process.yaml \
		recipes/find_ticket.py --config recipes/digits/imp.yaml --compare 5

# Three structured searches with their controls, and a table of them: a few minutes.
structured: .venv/installed
	for seed in 0 1 2; do \
		$(RUN)python recipes/find_ticket.py --config recipes/digits/structured.yaml \
			--seed $$seed --output_dir outputs/digits-structured/seed-$$seed || exit 1; \
	done
	$(RUN)hf-lottery levels outputs/digits-structured/seed-* --intervals

# worksteal keeps neighbours together, which share what they set up.
test: .venv/installed
	$(RUN)python -m pytest --numprocesses 2 --dist worksteal

slow-test: .venv/installed
	$(RUN)python -m pytest --numprocesses 2 --dist worksteal -m slow

lint: .venv/installed
	$(RUN)ruff check
	$(RUN)ruff format --check
	$(RUN)pyright

# The site, in outputs/site. Nothing is fetched, and every warning is an error: a dead link, a name that is not there.
docs: .venv/installed
	$(RUN)sphinx-build --quiet --fail-on-warning --conf-dir docs --doctree-dir outputs/doctrees . outputs/site

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(RUN)python -m pip install --quiet --constraint constraints.txt --editable ".[recipes,dev,docs]"
	touch $@

clean:
	rm -rf .venv outputs
