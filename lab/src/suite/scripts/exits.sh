# Marks, and between them so many operations of one kind. The host counts exits at the marks.
mark() {
    echo "mark $1"
    sleep 1
}
want driver "$(basename "$(readlink -f /sys/block/sda/device/../../../../driver)")" ata_piix
want driver "$(basename "$(readlink /sys/class/net/eth0/device/driver)")" e1000
echo 3 >/proc/sys/vm/drop_caches
dd if=/dev/sda of=/dev/null bs=4k count=4 iflag=direct 2>/dev/null || fail read
mark ide-begin
dd if=/dev/sda of=/dev/null bs=4k count=1000 iflag=direct 2>/dev/null || fail read
sleep 1
mark ide-end

ip link set eth0 up
wait_until 10 grep -q 1 /sys/class/net/eth0/carrier || fail 'no link'
pg() { echo "$2" >"/proc/net/pktgen/$1" || fail "pktgen: $2"; }
pg kpktgend_0 'rem_device_all'
pg kpktgend_0 'add_device eth0'
for setting in 'count 2000' 'pkt_size 1400' 'delay 0' 'clone_skb 0' 'dst 10.7.0.1' 'dst_mac 52:54:00:07:00:01'; do
    pg eth0 "$setting"
done
sleep 1
mark tx-begin
pg pgctrl start
sleep 1
mark tx-end
want packets "$(sed -n 's/.*pkts-sofar: \([0-9]*\).*/\1/p' /proc/net/pktgen/eth0)" 2000
grep -E ' [0-9]+pps| errors' /proc/net/pktgen/eth0
grep eth0 /proc/interrupts
echo 'exits done'
