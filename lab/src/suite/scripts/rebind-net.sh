# Takes the driver away from a network card 50 times while it is flooded, and gives it back.
name=$(basename "$(readlink -f /sys/class/net/eth0/device)")
start() {
    wait_until 10 test -e /sys/class/net/eth0 || fail "no card in round $round"
    ip addr add 10.7.0.2/24 dev eth0
    ip link set eth0 up
}
round=0
start
wait_until 30 ping -c 1 -W 1 10.7.0.1 >/dev/null || fail 'no answer to ping'
while [ $round -lt 50 ]; do
    ping -i 0.002 -s 1400 10.7.0.1 >/dev/null 2>&1 &
    load=$!
    usleep $((20000 + round * 400))
    echo "$name" >/sys/bus/virtio/drivers/virtio_net/unbind || fail "unbind in round $round"
    kill $load 2>/dev/null
    wait
    echo "$name" >/sys/bus/virtio/drivers/virtio_net/bind || fail "bind in round $round"
    start
    round=$((round + 1))
done
wait_until 30 ping -c 1 -W 1 10.7.0.1 >/dev/null || fail 'no answer after 50 rounds'
echo 'rounds done'
