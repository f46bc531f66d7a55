# Pings, then moves $LARGE bytes each way.
want mac "$(cat /sys/class/net/eth0/address)" 52:54:00:07:00:02
want mtu "$(cat /sys/class/net/eth0/mtu)" 1500
ip addr add 10.7.0.2/24 dev eth0
ip link set eth0 up
wait_until 30 ping -c 1 -W 1 10.7.0.1 >/dev/null || fail 'no answer to ping'
ping -c 5 -i 0.2 10.7.0.1 | grep -q ' 0% packet loss' || fail 'lost pings'
mount -t tmpfs -o size=300m tmp /tmp
wait_until 30 wget -q -O /tmp/sum http://10.7.0.1/sum || fail 'no web server'
wget -q -O /tmp/large http://10.7.0.1/large || fail download
want size "$(wc -c </tmp/large)" "$LARGE"
want sum "$(sum /tmp/large)" "$(cat /tmp/sum)"
nc 10.7.0.1 5000 </tmp/large || fail upload
echo 'network done'
