#!/usr/bin/env bash
# Runs test packages under bad conditions, to find tests and code whose outcome depends on
# the machine's pace: on one core, beside one or two busy loops, and with the process
# group stopped (SIGSTOP) at random moments, mostly for 20 to 400 ms, one time in 25 for
# 1 to 2 s.
#
#   scripts/shake.sh [PACKAGE…]   default: all unit tests, one package after the other
#   SEED=7     chooses the moments; round N of a package uses SEED+N-1, so that
#              SEED=8 ROUNDS=1 repeats the second round
#   ROUNDS=1   runs of each package
#   RUN=REGEXP only these tests;  RACE=1 with the race detector
#
# The kernel's scheduling is not seeded: a failure may need several rounds to come again.
# Logs of failed rounds stay in .cache/shake. Exits 1 if a round failed.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
seed=${SEED:-$((RANDOM + 1))} rounds=${ROUNDS:-1} logs=$root/.cache/shake
[ $# -gt 0 ] || set -- ./proto/... ./services/{internal,apiserver,scheduler,controller-manager,cloud-controller,node}/... ./tools/...
core=$(taskset -cp $$ | sed 's/.*[^0-9]//')
scratch=$(mktemp -d)
mkdir -p "$logs"
test='' started=()
end() {
	if [ -n "$test" ]; then kill -CONT -- "-$test" && kill -KILL -- "-$test"; fi
	[ ${#started[@]} = 0 ] || kill "${started[@]}"
	rm -rf "$scratch"
} 2>/dev/null
trap end EXIT
trap 'exit 130' INT TERM

# pause waits LOW to HIGH milliseconds. Nothing is ever written to descriptor 9.
exec 9<> <(:)
pause() {
	local ms
	ms=$(($1 + RANDOM % ($2 - $1)))
	read -rt "$((ms / 1000)).$(printf %03d $((ms % 1000)))" -u 9 || true
}

# disturb stops and continues the process group that LEADER leads until LEADER ends.
disturb() { # LEADER SEED
	RANDOM=$2
	while kill -0 "$1"; do
		pause 5 200
		kill -STOP -- "-$1" || continue
		if [ $((RANDOM % 25)) = 0 ]; then pause 1000 2000; else pause 20 400; fi
		kill -CONT -- "-$1" || true
	done 2>/dev/null
}

# busy uses the core for at most half an hour.
busy() { taskset -cp "$core" "$BASHPID" >/dev/null 2>&1 && while [ $SECONDS -lt 1800 ]; do :; done; }

failed=()
while read -r package dir; do
	binary=$scratch/package.test
	rm -f "$binary"
	go test -c -vet=off ${RACE:+-race} -o "$binary" "$package"
	[ -x "$binary" ] || continue
	for ((round = 0; round < rounds; round++)); do
		s=$((seed + round)) log=$logs/${package//\//_}.$((seed + round)).log
		RANDOM=$s
		started=()
		for ((i = RANDOM % 2; i >= 0; i--)); do
			(SECONDS=0 && busy) &
			started+=($!)
		done
		began=$SECONDS code=0
		(cd "$dir" && exec setsid taskset -c "$core" "$binary" -test.timeout=20m ${RUN:+-test.run="$RUN"}) >"$log" 2>&1 </dev/null &
		test=$!
		disturb "$test" "$s" &
		started+=($!)
		wait "$test" || code=$?
		test=''
		kill "${started[@]}" 2>/dev/null || true
		wait "${started[@]}" 2>/dev/null || true
		started=()
		if [ $code = 0 ]; then
			echo "ok    $package SEED=$s $((SECONDS - began))s"
			rm -f "$log"
		else
			echo "FAIL  $package SEED=$s $((SECONDS - began))s, exit code $code: $log"
			grep -vE '^(PASS|FAIL|=== |---? (PASS|SKIP))' "$log" | tail -n 40 | sed 's/^/      /'
			failed+=("$package SEED=$s")
		fi
	done
done < <(go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}} {{.Dir}}{{end}}' "$@")
if [ ${#failed[@]} -gt 0 ]; then
	echo "failed when shaken:"
	printf '  %s\n' "${failed[@]}"
	exit 1
fi
