want 'queue pairs' "$(ls -d /sys/class/net/eth0/queues/rx-* | wc -l)" 2
ip addr add 10.7.0.2/24 dev eth0
ip link set eth0 up
wait_until 30 ping -c 1 -W 1 10.7.0.1 >/dev/null || fail 'no answer to ping'
for mask in 1 2; do
    taskset $mask ping -c 3 -i 0.2 10.7.0.1 | grep -q ' 0% packet loss' || fail "processor mask $mask"
done
