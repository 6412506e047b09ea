# Aval: one static binary and what proves it. `make demo` shows the main job,
# `make test` installs what the tests need and passes all of them.

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS  = -s -w -X main.version=$(VERSION)
TOOLS    = bin/tools
GOFILES  = $(shell git ls-files -co --exclude-standard '*.go')

.PHONY: build build-full demo test check bench fuzz generate setup clean help

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

build: ## bin/aval, static
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/aval ./cmd/aval

build-full: ## bin/aval with PKCS#11 (cgo, not static) and the SDKs of AWS, Google and Azure
	CGO_ENABLED=1 $(GO) build -tags full -trimpath -ldflags '$(LDFLAGS)' -o bin/aval ./cmd/aval

demo: build ## the main job, end to end, narrated; Ctrl-C ends it
	bin/aval demo

setup: ## install what the tests need (Debian, root)
	.ci/setup

test: setup build ## all tests, with real servers from Debian
	.ci/test

check: $(TOOLS)/staticcheck ## format, vet, staticcheck, floors, unit tests with -race
	@unformatted="$$(gofmt -l $(GOFILES))"; [ -z "$$unformatted" ] || { echo "not formatted: $$unformatted"; exit 1; }
	$(GO) vet ./...
	@fixes="$$($(GO) fix -diff ./... 2>&1)"; [ -z "$$fixes" ] || { echo "$$fixes"; exit 1; }
	$(TOOLS)/staticcheck ./...
	$(GO) test -race -short ./...

bench: setup ## benchmarks: ratios against a baseline in the same run
	.ci/bench

FUZZTIME ?= 10s
fuzz: ## each fuzz test for FUZZTIME
	.ci/fuzz $(FUZZTIME)

generate: $(TOOLS)/staticcheck ## the protocol's generated code (needs protoc)
	PATH="$(CURDIR)/$(TOOLS):$$PATH" $(GO) generate ./...

$(TOOLS)/staticcheck: .ci/tools/go.mod .ci/tools/go.sum
	cd .ci/tools && $(GO) build -o $(CURDIR)/$(TOOLS)/ tool

clean: ## remove what was built
	rm -rf bin
