# Each card's other end is a tap with a web server behind it. The transfers of one processor use its own queue pair.
pairs=$(nproc)
# busybox sends text only.
head -c 3000000 /dev/urandom | base64 >/tmp/up
for at in 0 1; do
    host=10.9.$at.1
    ip addr add 10.9.$at.2/24 dev eth$at
    ip link set eth$at up
    want "queue pairs of eth$at" "$(ls -d /sys/class/net/eth$at/queues/tx-* | wc -l)" $pairs
    wait_until 4 ping -c 1 -W 1 $host >/dev/null || fail 'no answer'
    want "answers of $host" "$(ping -c 20 -i 0.05 -s 1400 $host | grep -c 'bytes from')" 20
    for cpu in $(seq 0 $((pairs - 1))); do
        taskset $((1 << cpu)) wget -q -O /tmp/down http://$host/data || fail 'cannot fetch'
        want 'sum of what came' "$(sum /tmp/down)" "$(wget -q -O - http://$host/data.sum)"
        answer=$(taskset $((1 << cpu)) wget -q -O - --post-file=/tmp/up http://$host/cgi-bin/sum) || fail 'cannot send'
        want 'sum of what went' "$answer" "$(sum /tmp/up)"
    done
done
# interrupts NAME: how many cards had interrupts of this queue.
interrupts() {
    awk -v name="-$1\$" '$NF ~ name { n = 0; for (i = 2; i < NF; i++) if ($i ~ /^[0-9]+$/) n += $i; if (n) cards++ }
        END { print cards + 0 }' /proc/interrupts
}
# Without MSI-X the queues share one interrupt.
grep -q -e -input.0 /proc/interrupts && for pair in $(seq 0 $((pairs - 1))); do
    want "cards with packets on pair $pair" "$(interrupts input.$pair)" 2
done
finish 0
