# The card was bound by its own driver, and its counters agree with the kernel's.
want driver "$(basename "$(readlink /sys/class/net/eth0/device/driver)")" e1000
want errors "$(cat /sys/class/net/eth0/statistics/rx_errors)" 0
want errors "$(cat /sys/class/net/eth0/statistics/tx_errors)" 0
test "$(cat /sys/class/net/eth0/statistics/tx_packets)" -gt 100 || fail 'few packets'
echo 'e1000 done'
