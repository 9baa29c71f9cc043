#!/bin/sh
# The image's entry point: with-secrets COMMAND... runs COMMAND with passwords from files.
# NAME_FILE=/run/secrets/x becomes NAME=<what is in x>, so that passwords show neither in
# `docker inspect` nor in a compose file. Ray needs no help: it reads RAY_AUTH_TOKEN_PATH itself.
set -eu
for name in PGPASSWORD MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY \
  MLFLOW_TRACKING_PASSWORD; do
  eval "file=\${${name}_FILE:-}"
  [ -n "$file" ] || continue
  value=$(cat "$file")
  if [ -z "$value" ]; then
    echo "with-secrets: $file is empty (${name}_FILE)" >&2
    exit 2
  fi
  export "$name=$value"
  unset "${name}_FILE"
done
exec "$@"
