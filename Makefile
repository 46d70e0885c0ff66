# Bocage: two commands matter, "make demo" and "make test". Both install what
# the machine lacks (scripts/setup), so they want root on Debian 12 or 13.

SHELL := /bin/sh
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
GO_FILES = $(shell git ls-files -co --exclude-standard '*.go')
# A repository that belongs to somebody else is no reason not to build it as root.
GOBUILD = go build -trimpath -buildvcs=false
# Where tests may use the kernel, one that skips is one that fails.
REQUIRE_ROOT = $(shell [ "$$(id -u)" = 0 ] && echo 1)
TEST_FLAGS ?=
BENCH ?=

.PHONY: help
help: ## say what there is
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 24

.PHONY: demo
demo: ## the whole loop on this machine; KEEP=1 leaves it running
	@scripts/setup demo
	@$(MAKE) --no-print-directory build
	@bin/bocage demo $(if $(KEEP),--keep)

.PHONY: build
build: ## bin/bocage
	@mkdir -p bin
	$(GOBUILD) -ldflags '-X main.version=$(VERSION)' -o bin/bocage ./cmd/bocage

# What tests draw at random they draw anew in every run, so Go's cache does not answer
# for them; one that fails prints its seed, and BOCAGE_SEED repeats a run. A flag that a
# package does not know is refused, so the packages that draw by rapid run by themselves.
TEST = BOCAGE_REQUIRE_ROOT=$(REQUIRE_ROOT) go test -p 2 -timeout 30m $(TEST_FLAGS)
DRAWING = $(shell go list -f '{{.ImportPath}} {{.TestImports}} {{.XTestImports}}' ./... | sed -n 's/ .*pgregory.net\/rapid.*//p')
PLAIN = $(filter-out $(DRAWING) %/e2e,$(shell go list ./...))
.PHONY: test
test: ## everything: laws, unit, kernel, whole system; BOCAGE_SEED=n repeats what was drawn
	@scripts/setup test
	@$(MAKE) --no-print-directory format-check generate-check build .bin/kubectl .bin/informer
	go vet ./...
	@# Whole sites come last and by themselves: what they promise within seconds they
	@# promise on a machine of their own. One run tells all that fails.
	@failed=; \
	$(TEST) $(PLAIN) || failed=1; \
	$(TEST) $(DRAWING) $(if $(BOCAGE_SEED),-rapid.seed=$(BOCAGE_SEED),-count=1) || failed=1; \
	BOCAGE_PROGRAM=$(CURDIR)/bin/bocage $(TEST) ./e2e || failed=1; \
	[ -z "$$failed" ]

# Every run compares with an unfiltered path and a peer in the same run; see
# docs/benchmarks. BENCH picks others of the repository's benchmarks.
.PHONY: bench
bench: ## the figures that the documents name; BENCH=regexp for others
	@scripts/setup bench
	@$(MAKE) --no-print-directory build
ifeq ($(BENCH),)
	go run ./dataplane/bench -repeats 7 -only ' 1k'
	BOCAGE_REQUIRE_ROOT=1 go test -p 1 -timeout 30m -run '^$$' -bench Root ./dataplane
	BOCAGE_REQUIRE_ROOT=1 BOCAGE_PROGRAM=$(CURDIR)/bin/bocage go test -timeout 30m -run '^$$' -bench Root ./e2e
else
	BOCAGE_REQUIRE_ROOT=1 BOCAGE_PROGRAM=$(CURDIR)/bin/bocage go test -p 1 -timeout 60m -run '^$$' -bench '$(BENCH)' -benchmem ./...
endif

.PHONY: bench-policy
bench-policy: ## compile, edit, prove, simulate and publish at 10 to 300,000 workloads
	@mkdir -p bin
	GOMAXPROCS=1 go test -timeout 60m -run '^$$' -bench 'Full' -benchtime 1x -benchmem ./policy/compile
	go test -timeout 60m -run '^$$' -bench 'Edit|Policy|Quarantine' -benchtime 1x ./policy/compile
	GOMAXPROCS=1 go test -timeout 60m -run '^$$' -bench . -benchmem ./policy/simulate ./policy/prove ./policy/kubernetes ./policy/suggest
	go test -timeout 60m -run '^$$' -bench . -benchmem ./policy

# What the kernel does with packets, in every size, in less than 20 minutes on a quiet
# machine; FIGURES says where the figures go, for people and for machines.
FIGURES ?= bin/bench-dataplane
BENCH_PACKETS = go test -p 1 -timeout 60m -run '^$$' -bench 'Root(Packet|Crowded|Scan|Apply|Verify|Events)' -benchtime 100ms -count 7 ./dataplane
BENCH_SIZES = go test -p 1 -timeout 60m -run '^$$' -bench 'Root(Size|Amend)$$' -benchtime 1x -count 7 ./dataplane ./node
.PHONY: bench-dataplane
bench-dataplane: ## packets: beside an unfiltered path and nftables, up to 1,000,000 entries
	@scripts/setup bench
	@mkdir -p bin $(dir $(FIGURES))
	go build -o bin/bench-dataplane.bin ./dataplane/bench
	bin/bench-dataplane.bin -repeats 7 -duration 600ms -realtime -json $(FIGURES).json >$(FIGURES).txt
	BOCAGE_REQUIRE_ROOT=1 $(BENCH_PACKETS) >$(FIGURES).part || { cat $(FIGURES).part; exit 1; }
	bin/bench-dataplane.bin -json $(FIGURES).json -add "$(BENCH_PACKETS)" <$(FIGURES).part >>$(FIGURES).txt
	BOCAGE_REQUIRE_ROOT=1 $(BENCH_SIZES) >$(FIGURES).part || { cat $(FIGURES).part; exit 1; }
	bin/bench-dataplane.bin -json $(FIGURES).json -add "$(BENCH_SIZES)" <$(FIGURES).part >>$(FIGURES).txt
	@rm $(FIGURES).part
	@cat $(FIGURES).txt

# The tests that draw at random, of whatever package.
DRAWN = $(shell git ls-files '*_test.go' | xargs awk -F '[^A-Za-z0-9]+' '/^func /{f=$$2} /newRandom.t.|rapid.Check/ && f ~ /^Test/{print f}' | sort -u | paste -sd '|')
ROUNDS ?= 10
CHECKS ?= 1000
.PHONY: soak
soak: ## what is drawn at random, with new seeds, in ROUNDS rounds; CHECKS is how many drawings rapid makes in each
	@scripts/setup test
	@for round in $$(seq $(ROUNDS)); do \
	echo "round $$round" && \
	BOCAGE_SEED= BOCAGE_REQUIRE_ROOT=$(REQUIRE_ROOT) go test -p 1 -count=1 -timeout 120m $(TEST_FLAGS) -run '^($(DRAWN))$$' $(DRAWING) \
		-rapid.checks=$(CHECKS) -rapid.nofailfile || exit 1; \
	done

.PHONY: bench-api
bench-api: ## watchers, large lists, and the latency of watches under writes
	go run ./api/bench

.PHONY: generate
generate: ## re-make the eBPF objects and their Go twins
	@scripts/setup generate
	go generate ./...

.PHONY: generate-check
generate-check: ## see that what is committed is what would be generated
	@scripts/setup generate
	@scripts/generate-check

.PHONY: fmt
fmt: ## format the Go files
	@gofmt -w $(GO_FILES)

.PHONY: format-check
format-check:
	@unformatted=$$(gofmt -l $(GO_FILES)); [ -z "$$unformatted" ] || { \
		echo "not formatted: $$unformatted; run make fmt" >&2; exit 1; }

.PHONY: lint
lint: format-check .bin/staticcheck ## go vet and staticcheck
	go vet ./...
	cd tools && go vet ./...
	.bin/staticcheck ./...

.PHONY: clean
clean: ## remove what was built
	rm -rf bin .bin

# The pinned, real kubectl that tests speak to our API with.
.bin/kubectl: tools/go.mod tools/go.sum $(wildcard tools/cmd/kubectl/*.go)
	@mkdir -p .bin
	cd tools && $(GOBUILD) -o ../.bin/kubectl ./cmd/kubectl

# A controller of client-go's kind that follows our API in a test.
.bin/informer: tools/go.mod tools/go.sum $(wildcard tools/cmd/informer/*.go)
	@mkdir -p .bin
	cd tools && $(GOBUILD) -o ../.bin/informer ./cmd/informer

.bin/staticcheck: tools/go.mod tools/go.sum
	@mkdir -p .bin
	cd tools && $(GOBUILD) -o ../.bin/staticcheck honnef.co/go/tools/cmd/staticcheck
