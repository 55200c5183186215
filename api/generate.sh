#!/bin/sh
# Generates the Go of every .proto below this folder. Needs protoc; the plugins are tools of go.mod.
set -eu
cd "$(dirname "$0")"
for p in */*.proto; do
	dir=$(dirname "$p")
	(cd "$dir" && protoc \
		--plugin=protoc-gen-go="$(go tool -n protoc-gen-go)" \
		--plugin=protoc-gen-go-grpc="$(go tool -n protoc-gen-go-grpc)" \
		--go_out=. --go_opt=paths=source_relative \
		--go-grpc_out=. --go-grpc_opt=paths=source_relative \
		"$(basename "$p")")
done
