# make demo     shows the fault and the cure, in namespaces of its own (root)
# make test     everything, packets included (root)
# make help     lists the rest

STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
VERSION    ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo development)
LDFLAGS     = -s -w -X main.version=$(VERSION)
# Live tests run programs in namespaces and measure nothing by the clock, but
# a machine that is busy needs time.
TEST_TIMEOUT ?= 15m

.PHONY: help build demo test lab boot-test test-pure lint fmt bench tools clean

help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

## build      the static binary, bin/sisod
build:
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/sisod ./cmd/sisod

## demo       wrong replies, apply, right replies; needs root, touches nothing of the host
demo: build tools
	bin/sisod demo

## test       all tests; needs root for network namespaces
test: tools
	go test -timeout $(TEST_TIMEOUT) ./...

## lab        the tests that need IPVS and tunnels, on Debian's stock kernel in a virtual machine
lab: tools build
	@packaging/tools.sh lab
	CGO_ENABLED=0 go build -o bin/stockvm ./internal/lab/stockvm
	bin/stockvm build
	go test -tags stock -timeout $(TEST_TIMEOUT) ./internal/lab/stockvm
	go test -tags stock -timeout $(TEST_TIMEOUT) -exec "$(CURDIR)/bin/stockvm exec" ./internal/kernel
	SISOD_BINARY=$(CURDIR)/bin/sisod go test -tags stock -timeout $(TEST_TIMEOUT) -run Stock -exec "$(CURDIR)/bin/stockvm exec" ./cmd/sisod

## boot-test  the packages in a whole Debian with systemd: boot, reload, upgrade, removal
boot-test: tools
	@packaging/tools.sh boot
	go test -tags boot -timeout $(TEST_TIMEOUT) -v ./packaging/boot

## test-pure  the tests that need neither root nor a kernel
test-pure:
	go test -race ./profiles ./routing ./internal/state

## lint       formatting, vet, staticcheck, shellcheck
lint: tools
	@test -z "$$(gofmt -l .)" || { gofmt -l .; echo "run make fmt"; exit 1; }
	go mod tidy -diff
	go vet ./...
	go run $(STATICCHECK) ./...
	shellcheck .ci/run packaging/*.sh

## fmt        format the code
fmt:
	gofmt -w .

## bench      reaction times, idle passes and memory on this machine; needs root
bench: tools
	go test -run "^$$" -bench . -benchtime 1x -timeout $(TEST_TIMEOUT) ./cmd/sisod

## tools      install the Debian packages that tests and demo stand on
tools:
	@packaging/tools.sh

clean:
	rm -rf bin
