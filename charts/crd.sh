#!/bin/sh
# Copies the HermesRun definition into the chart, where it can be switched off, is upgraded with the
# release and outlives it. Usage: sh charts/crd.sh [TARGET]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
target=${1:-$here/hermes/templates/crd/hermesruns.hermes.dev.yaml}
{
  echo '{{- if .Values.crds.enabled }}'
  sed 's/^metadata:$/&\n  annotations:\n    helm.sh\/resource-policy: keep/' "$here/../crds/hermesruns.hermes.dev.yaml"
  echo '{{- end }}'
} > "$target"
