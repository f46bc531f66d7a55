#!/bin/busybox sh
# The first program of a guest: loads the drivers and runs the test's script.
export PATH=/bin HOME=/ TERM=dumb
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
while read -r module; do
    insmod "/modules/$module" || echo "GUEST: insmod $module failed"
done </modules/order
ip link set lo up

# fail TEXT...: ends the test as failed.
fail() {
    echo "GUEST: failed: $*"
    finish 1
}

# want WHAT GOT WANTED: fails unless the two are equal.
want() {
    [ "$2" = "$3" ] || fail "$1 is '$2', not '$3'"
    echo "GUEST: $1 is $2"
}

# put NAME: sends standard input to the host as a small file.
put() {
    echo "GUEST-FILE: $1"
    base64
    echo "GUEST-FILE-END"
}

# wait_until SECONDS COMMAND...: repeats the command until it succeeds.
wait_until() {
    left=$(($1 * 5))
    shift
    while ! "$@"; do
        left=$((left - 1))
        [ $left -gt 0 ] || return 1
        usleep 200000
    done
}

# sum FILE: the checksum of a file's content.
sum() {
    md5sum <"$1" | cut -d' ' -f1
}

# finish CODE: tells the host and switches the machine off.
finish() {
    sync
    echo "GUEST: exit $1"
    poweroff -f
    sleep 60
    echo "GUEST: still running after power-off"
}

read -r up _ </proc/uptime
echo "GUEST: up after $up s, kernel $(uname -r)"
. /script
finish 0
