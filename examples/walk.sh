#!/bin/sh
# The whole API with nothing but curl. Needs `mesh dev` and `python examples/agent.py` running.
#   sh examples/walk.sh            MESH_URL and MESH_KEY are read as by every other client
set -eu
url=${MESH_URL:-http://127.0.0.1:7411}
key=${KEY:-walk-$(date +%s)-$$}

ask() { # ask METHOD PATH [curl options]: status line, our headers, body
    method=$1 path=$2
    shift 2
    printf '\n> %s %s\n' "$method" "$path"
    curl -sS -i -X "$method" "$url$path" ${MESH_KEY:+-H "Authorization: Bearer $MESH_KEY"} "$@" |
        tr -d '\r' | grep -iE '^(HTTP|location|retry-after|idempotency-replayed|preference-applied|mesh-)|^[^a-zA-Z]|^(id|event|data):' || true
}

echo '# Who can be called?'
ask GET /v1/endpoints/greeter

echo
echo '# Call, and wait at most 5 seconds for the answer. The key makes a repeat safe.'
body='{"endpoint": "greeter", "service": "greeter", "operation": "greet", "input": "Ada"}'
ask POST /v1/operations -H "Idempotency-Key: $key" -H 'Prefer: wait=5' -H 'Content-Type: application/json' -d "$body"

echo
echo '# The same again: the same operation, marked as replayed.'
ask POST /v1/operations -H "Idempotency-Key: $key" -H 'Prefer: wait=5' -H 'Content-Type: application/json' -d "$body"

echo
echo '# Other content under that key: refused, nothing changed.'
ask POST /v1/operations -H "Idempotency-Key: $key" -H 'Content-Type: application/json' \
    -d '{"endpoint": "greeter", "service": "greeter", "operation": "greet", "input": "Grace"}'

echo
echo '# Do not wait: 202 with the place where the answer will be.'
id=$(curl -sS -D - -o /dev/null -X POST "$url/v1/operations" ${MESH_KEY:+-H "Authorization: Bearer $MESH_KEY"} \
    -H 'Prefer: respond-async' -H 'Content-Type: application/json' -d "$body" |
    tr -d '\r' | awk -F': ' 'tolower($1) == "mesh-operation-id" { print $2 }')
echo "accepted as $id"

echo
echo '# Ask for the result and stay on the line for up to 10 seconds.'
ask GET "/v1/operations/$id/result?wait=10"

echo
echo '# Its history as an event stream; `Last-Event-ID` would resume it.'
ask GET "/v1/operations/$id/events" -H 'Accept: text/event-stream' --max-time 10

echo
echo '# By Nexus RPC, as any Nexus client does it.'
ask POST /nexus/endpoints/greeter/services/greeter/greet -H "Nexus-Request-Id: $key-nexus" \
    -H 'Request-Timeout: 5s' -H 'Content-Type: application/json' -d '"Ada"'
echo
