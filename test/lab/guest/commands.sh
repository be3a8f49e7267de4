# What the tests do in the machine; read by sh at the start of a command.

# keep NAME COMMAND...: what it prints and its exit code, as files of the share.
keep() {
  name=$1
  shift
  "$@" >"/lab/$name.stdout" 2>"/lab/$name.stderr"
  echo $? >"/lab/$name.exit-code"
}

# capture NAME FLAG...: a case of its own in the share. --force, since the share is a network mount.
capture() {
  name=$1
  shift
  mkdir -p "/lab/cases/$name"
  keep "$name" bin/ir capture-mem --yes --force --json --output "/lab/cases/$name" "$@"
}

# plan NAME FLAG...: what a capture would do, and why not otherwise.
plan() {
  name=$1
  shift
  keep "$name" bin/ir capture-mem --dry-run --json --force --output /lab "$@"
}

# plant: starts the canary and waits until it stands; leaves its pid in $canary.
plant() {
  python3 test/lab/guest/canary.py /lab/canary.json /run/canary-open &
  canary=$!
  until [ -e /lab/canary.json ]; do
    kill -0 "$canary" || return
    sleep 0.2
  done
}

# interrupt NAME MIB: Ctrl-C, once the image has so many MiB.
interrupt() {
  capture "$1" &
  until find "/lab/cases/$1" -name memory.lime -size "+$2M" 2>/dev/null | grep -q .; do
    [ -e "/lab/$1.exit-code" ] && return
    sleep 0.1
  done
  # The only one that runs: Node is what became of bin/ir.
  kill -INT "$(pgrep -f "capture-mem .*/lab/cases/$1")"
  wait
}
