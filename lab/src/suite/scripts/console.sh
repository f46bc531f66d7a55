# port NAME: the device of a named port.
port() {
    for name in /sys/class/virtio-ports/*/name; do
        [ "$(cat "$name")" = "$1" ] && echo "/dev/$(basename "$(dirname "$name")")"
    done
}
wait_until 10 test -e "$(port talk)" || fail "no port called talk: $(ls /sys/class/virtio-ports)"
wait_until 10 test -e "$(port log)" || fail 'no port called log'
seq 1 20000 >"$(port log)" || fail 'write to the log'
echo 'talk now'
# A port whose other end is not there yet reads as empty.
hear() { read -r line <"$(port talk)" && [ -n "$line" ]; }
wait_until 20 hear || fail 'heard nothing'
want line "$line" 'hello guest'
echo "the guest heard: $line" >"$(port talk)"
