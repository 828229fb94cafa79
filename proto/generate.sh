#!/bin/sh
# Generates Python code and type stubs from the .proto files into proto/gen (or $1).
# Called by `make generate` and by the test that proves the committed code fresh.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-"$here/gen"}
python=${PYTHON:-python3}
bin=$(dirname "$("$python" -c 'import sys; print(sys.executable)')")
mkdir -p "$out"
cd "$here"
find hermes -name '*.proto' | LC_ALL=C sort | xargs env PATH="$bin:$PATH" "$python" -m grpc_tools.protoc \
  --proto_path=. --python_out="$out" --grpc_python_out="$out" --mypy_out="quiet:$out" --mypy_grpc_out="quiet:$out"
find "$out/hermes" -type d | while read -r folder; do : > "$folder/__init__.py"; done
