# A load on the one disk and the one card, whichever they are, until somebody ends the machine. The first boot makes the
# file system; the others must find it.
disk=/dev/vda
[ -e $disk ] || disk=/dev/sda
if ! e2fsck -n $disk >/dev/null 2>&1; then
    mkfs.ext4 -q -F $disk || fail mkfs
    mount -t ext4 $disk /mnt || fail mount
    head -c 2m /dev/urandom >/mnt/data
    sum /mnt/data >/mnt/sum
    umount /mnt
fi
mount -t ext4 -o ro $disk /mnt || fail 'mount again'
want 'sum of the data' "$(sum /mnt/data)" "$(cat /mnt/sum)"
if [ -e /sys/class/net/eth0 ]; then
    ip addr add 10.7.0.2/24 dev eth0
    ip link set eth0 up
    wait_until 30 ping -c 1 -W 1 10.7.0.1 >/dev/null || fail 'no answer to ping'
    ping -q -i 0.01 10.7.0.1 >/dev/null &
fi
echo 'load begins'
while :; do
    dd if=$disk of=/dev/null bs=4096 count=500 iflag=direct 2>/dev/null
done
