# The second card goes to a network of its own: what the two say to one another goes through both daemons.
unshare -n sleep 600 &
other=$!
there() { nsenter -t $other -n "$@"; }
sleep 1
ip link set eth1 netns $other || fail 'cannot move the second card'
ip addr add 10.9.0.1/24 dev eth0
ip link set eth0 up
there ip addr add 10.9.0.2/24 dev eth1 || fail 'cannot give the second card an address'
there ip link set eth1 up
wait_until 4 ping -c 1 -W 1 10.9.0.2 >/dev/null || fail 'no answer'
want 'answers' "$(ping -c 20 -i 0.05 -s 1400 10.9.0.2 | grep -c 'bytes from')" 20
dd if=/dev/urandom of=/tmp/data bs=1M count=8 2>/dev/null
there httpd -p 5000 -h /tmp || fail 'no server'
wget -q -O /arrived http://10.9.0.2:5000/data || fail 'cannot fetch'
want 'number of bytes' "$(wc -c </arrived)" 8388608
want 'sum' "$(sum /arrived)" "$(sum /tmp/data)"
