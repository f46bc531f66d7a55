# Functions for the tests, run by /bin/sh in L1. LAB_TESTS, LAB_TREATY, LAB_BUSYBOX are set before.
# The same functions serve on a host with KVM of its own, in a network namespace.
#
# For a test's scripts: $T is its directory of results, $W its scratch directory (in memory, and the current one),
# $API the machine's socket, $CONSOLE the guest's console so far, $ERRORS what treaty wrote to standard error.

# bb APPLET ARGUMENTS...: what L1 uses of programs that the host may not have.
bb() { "$LAB_BUSYBOX" "$@"; }

# ctl COMMAND...: talks to the machine.
ctl() { "$LAB_TREATY" ctl --socket "$API" "$@"; }

# fail TEXT...: ends the test's script as failed.
fail() {
    echo "$*" >>"$T/failed"
    exit 1
}

# want WHAT GOT WANTED: fails unless the two are equal.
want() { [ "$2" = "$3" ] || fail "$1 is '$2', not '$3'"; }

# on_console TEXT [SECONDS]: waits until the guest has printed it.
on_console() {
    left=$((${2:-60} * 5))
    until grep -q -- "$1" "$CONSOLE" 2>/dev/null; do
        left=$((left - 1))
        [ $left -gt 0 ] || fail "the guest did not print '$1' in ${2:-60} s"
        kill -0 "$LAB_PID" 2>/dev/null || grep -q -- "$1" "$CONSOLE" || fail "the machine ended before '$1'"
        sleep 0.2
    done
}

# host_tap NAME ADDRESS: waits for the tap that treaty makes and gives the host's side an address.
host_tap() {
    left=100
    until [ -e "/sys/class/net/$1" ]; do
        left=$((left - 1))
        [ $left -gt 0 ] || fail "treaty did not make the tap $1"
        sleep 0.2
    done
    bb ip addr add "$2" dev "$1" || fail "cannot give $1 an address"
    bb ip link set "$1" up
}

# sum FILE: the checksum of a file's content.
sum() { md5sum <"$1" | cut -d' ' -f1; }

# refused WORDS FLAGS...: `treaty run FLAGS` must end with code 1 and one line that has the words, and write nothing to
# standard output.
refused() {
    words=$1
    shift
    timeout -s KILL 20 "$LAB_TREATY" run "$@" >"$W/out" 2>"$W/err" </dev/null
    code=$?
    cat "$W/err"
    want "exit code of treaty run $*" $code 1
    want "number of lines about it" "$(wc -l <"$W/err")" 1
    [ ! -s "$W/out" ] || fail "treaty run $*: wrote to standard output: $(cat "$W/out")"
    grep -qi -- "$words" "$W/err" || fail "treaty run $*: '$(cat "$W/err")' does not say '$words'"
}

# threads_of PID: what each thread of the processes below PID does, for the evidence of a test that ran out of time.
threads_of() {
    for process in "$1" $(cat "/proc/$1/task/$1/children"); do
        for thread in /proc/"$process"/task/*; do
            echo "--- $process $(cat "$thread/comm"): $(cut -d' ' -f3,14,15 "$thread/stat") $(cat "$thread/wchan" "$thread/syscall")"
        done
    done
}

# exits_now: which exits a fifth of a second brings, and whether they are all the walk of a page table that leads out of
# the guest's memory: a processor that KVM enters in vain, for ever.
exits_now() {
    tracing=/sys/kernel/tracing
    [ -e $tracing/trace ] || mount -t tracefs none $tracing || return
    echo 1 >$tracing/events/kvm/kvm_exit/enable
    sleep 0.2
    echo 0 >$tracing/events/kvm/kvm_exit/enable
    awk '/ kvm_exit: / {
            sub(/.* kvm_exit: /, ""); seen[$0]++; all++
            if (/reason npf .* info1 0x0000000[23]/) walks++
        }
        END {
            for (one in seen) if (seen[one] > 10) print seen[one] " of " all ": " one
            if (all > 100 && walks == all) print "LOST: a page table of the guest leads nowhere"
        }' $tracing/trace
    echo >$tracing/trace
}

# lab_watch: shortly before the machine is killed, says what its threads do, twice, and what state it is in.
lab_watch() {
    sleep $((LAB_SECONDS - 8))
    threads_of "$LAB_PID"
    sleep 1
    threads_of "$LAB_PID"
    timeout -s KILL 3 "$LAB_TREATY" ctl --socket "$API" status
    exits_now
}

# lab_guest SECONDS: runs the guest with beside.sh next to it.
lab_guest() {
    BASE=
    . "$T/guest.sh"
    [ -z "$BASE" ] || cat "$BASE" "$T/script.cpio" >"$W/initrd"
    mkfifo "$W/serial"
    cat "$W/serial" >"$CONSOLE" &
    drain=$!
    timeout -s KILL -k 3 "$LAB_SECONDS" "$LAB_TREATY" "$@" </dev/null >"$W/serial" 2>"$ERRORS" &
    LAB_PID=$!
    lab_watch >"$T/watch.log" 2>&1 &
    watch=$!
    (. "$T/beside.sh") >>"$T/l1.log" 2>&1 || {
        [ -e "$T/failed" ] || echo "beside.sh ended with an error" >"$T/failed"
        # `timeout` passes this on, and kills what is still there 3 s later.
        kill -TERM $LAB_PID
    }
    wait $LAB_PID
    echo $? >"$T/code"
    kill $watch 2>/dev/null
    wait $drain
}

# lab_test NAME SECONDS: runs one test and leaves its results in its directory.
lab_test() {
    T=$LAB_TESTS/$1 W=${LAB_SCRATCH:-/tmp/lab}/$1 LAB_SECONDS=$2
    API=$W/api CONSOLE=$T/console.log ERRORS=$T/treaty.log
    echo "LAB: start $1"
    mkdir -p "$W"
    cd "$W" || return
    if (. "$T/before.sh") >"$T/l1.log" 2>&1; then
        [ ! -e "$T/guest.sh" ] || lab_guest
        [ -e "$T/failed" ] || (. "$T/after.sh") >>"$T/l1.log" 2>&1 || fail_note after.sh
    else
        fail_note before.sh
    fi
    echo 1 >"$T/ended"
    cd /
    rm -rf "$W"
    echo "LAB: end $1"
}

fail_note() { [ -e "$T/failed" ] || echo "$1 ended with an error" >"$T/failed"; }
