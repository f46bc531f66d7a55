# Three boots. The host resets the first one in the middle of its work; the second one resets itself.
noise() {
    dd if=/dev/vda of=/dev/null bs=64k iflag=direct 2>/dev/null
}
ip addr add 10.9.0.2/24 dev eth0
ip link set eth0 up
wait_until 4 ping -c 1 -W 1 10.9.0.1 >/dev/null || fail 'no answer'
fetch() {
    wget -q -O /arrived http://10.9.0.1/data || fail 'cannot fetch'
    [ "$(sum /arrived)" = "$(wget -q -O - http://10.9.0.1/data.sum)" ] || fail 'what was fetched has changed'
}
mount -t ext4 /dev/vda /mnt 2>/dev/null || {
    mkfs.ext4 -q /dev/vda && mount -t ext4 /dev/vda /mnt || fail 'the first mount'
}
boot=$(cat /mnt/boot 2>/dev/null)
boot=$((boot + 1))
echo $boot >/mnt/boot
sync
echo "GUEST: boot $boot"
count=0
for file in /mnt/*.sum; do
    [ -s "$file" ] || continue
    [ "$(sum "${file%.sum}")" = "$(cat "$file")" ] || fail "$file has changed"
    count=$((count + 1))
done
echo "GUEST: $count files are as they were"
if [ $boot = 3 ]; then
    [ $count -ge 8 ] || fail "only $count files"
    fetch
    umount /mnt
    e2fsck -fn /dev/vda || fail 'the file system is damaged'
    finish 0
fi
while :; do
    fetch
done &
while :; do
    count=$((count + 1))
    noise &
    file=/mnt/$boot.$((count % 40))
    rm -f $file.sum
    dd if=/dev/urandom of=$file bs=64k count=8 conv=fsync 2>/dev/null || fail "write $count"
    sum $file >/tmp/sum
    dd if=/tmp/sum of=$file.sum conv=fsync 2>/dev/null
    echo 'GUEST: round'
    if [ $boot = 2 ] && [ $((count % 4)) = 0 ]; then
        fsfreeze --freeze /mnt && usleep 100000 && fsfreeze --unfreeze /mnt || fail 'the file system does not freeze'
        frozen=$((frozen + 1))
        [ $frozen -lt 3 ] || reboot -f
    fi
done
