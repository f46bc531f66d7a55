# What a guest does in `cargo xtask demo`: disk, network, entropy.
note() { echo "GUEST: $*"; }
note "$(nproc) processors, $(sed -n 's/MemTotal: *//p' /proc/meminfo) of memory"

mkfs.ext4 -q /dev/vda || fail mkfs
mount -t ext4 /dev/vda /mnt || fail mount
dd if=/dev/urandom of=/mnt/data bs=1M count=16 2>/dev/null || fail write
before=$(sum /mnt/data)
umount /mnt || fail umount
mount -t ext4 /dev/vda /mnt || fail 'mount again'
want 'checksum of 16 MiB after a new mount' "$(sum /mnt/data)" "$before"
note "disk: $(df -h /mnt | tail -1 | tr -s ' ' | cut -d' ' -f1-4) (device, size, used, free)"

ip addr add 10.7.0.2/24 dev eth0
ip link set eth0 up
wait_until 30 ping -c 1 -W 1 10.7.0.1 >/dev/null || fail 'no answer to ping'
note "network: $(ping -c 3 -i 0.2 10.7.0.1 | grep 'packets transmitted')"
wait_until 20 wget -q -O /tmp/hello http://10.7.0.1/hello || fail 'no web page'
note "network: the host's web server says: $(cat /tmp/hello)"

note "entropy: $(head -c 16 /dev/hwrng | od -An -tx1) from $(cat /sys/class/misc/hw_random/rng_current)"
note "interrupts: $(grep virtio /proc/interrupts | awk '{ for (i = 2; i <= 3; i++) n += $i } END { print n }') for virtio"
echo 'demo done'
