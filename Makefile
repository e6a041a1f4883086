# make demo     shows the fault and the cure, in namespaces of its own (root)
# make test     all but boot-test, packets included (root)
# make help     lists the rest

STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
VERSION    ?= $(shell packaging/version.sh)
LDFLAGS     = -s -w -X main.version=$(VERSION)
# Live tests run programs in namespaces and measure nothing by the clock, but
# a machine that is busy needs time.
TEST_TIMEOUT ?= 15m
LAB_TIMEOUT  ?= 45m
# Tests in the virtual machine wait for each other's hosts; three at once keep its
# two processors busy.
LAB_PARALLEL ?= 3
# Parts of bench, with commas (bin/bench -list); none is all, and writes the README.
ONLY ?=
RUNS ?= 5

.PHONY: help build demo test test-host lab boot-test test-pure lint package package-test schema fmt bench stockvm tools clean

help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

## build      the static binary, bin/sisod
build:
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/sisod ./cmd/sisod

## demo       wrong replies, apply, right replies; needs root, touches nothing of the host
demo: build tools
	bin/sisod demo

## test       all tests but boot-test, those on the stock kernel too; needs root for network namespaces
test: test-host lab

## test-host  the tests that this machine's own kernel is enough for
test-host: tools
	go test -timeout $(TEST_TIMEOUT) ./...

## lab        the tests that need IPVS and tunnels, on Debian's stock kernel in a virtual machine
lab: build stockvm
	go test -tags stock -timeout $(TEST_TIMEOUT) ./internal/lab/stockvm
	go test -tags stock -timeout $(LAB_TIMEOUT) -exec "$(CURDIR)/bin/stockvm exec -timeout $(LAB_TIMEOUT)" ./internal/kernel
	SISOD_BINARY=$(CURDIR)/bin/sisod go test -tags stock -timeout $(LAB_TIMEOUT) -parallel $(LAB_PARALLEL) -run Stock -exec "$(CURDIR)/bin/stockvm exec -timeout $(LAB_TIMEOUT)" ./cmd/sisod

## boot-test  the packages in a whole Debian with systemd: boot, reload, upgrade, removal
boot-test: tools
	@packaging/tools.sh boot
	go test -tags boot -timeout $(LAB_TIMEOUT) -v ./packaging/boot

## test-pure  the tests that need neither root nor a kernel
test-pure:
	go test -race ./profiles ./routing ./internal/state

## lint       formatting, vet, staticcheck, shellcheck
lint: tools
	@test -z "$$(gofmt -l .)" || { gofmt -l .; echo "run make fmt"; exit 1; }
	go mod tidy -diff
	go vet -tags stock,boot ./...
	go run $(STATICCHECK) -tags stock,boot ./...
	shellcheck .ci/run packaging/*.sh packaging/*/*.sh

## package    deb and rpm for amd64 and arm64 into dist/, and checks of them
package:
	@packaging/tools.sh package
	VERSION=$(VERSION) packaging/package.sh dist
	packaging/check-packages.sh dist

## package-test  install, upgrade and remove them on a copy of this machine; needs root
package-test: package
	packaging/check-install.sh dist

## schema     check the JSON schemas with taplo; needs npx
schema:
	packaging/check-schema.sh

## fmt        format the code
fmt:
	gofmt -w .

## bench      sisod beside ip, ipvsadm, keepalived and networkd: README's table; ONLY=prefixes,flap, RUNS=5
bench: build stockvm
	@packaging/tools.sh bench
	CGO_ENABLED=0 go build -o bin/bench ./internal/lab/bench
	bin/bench -runs $(RUNS) -only "$(ONLY)" -out internal/lab/bench/results -readme README.md

# The virtual machine, made once and kept.
stockvm: tools
	@packaging/tools.sh lab
	CGO_ENABLED=0 go build -o bin/stockvm ./internal/lab/stockvm
	bin/stockvm build

## tools      install the Debian packages that tests and demo stand on
tools:
	@packaging/tools.sh

clean:
	rm -rf bin dist
