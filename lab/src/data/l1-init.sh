#!/bin/busybox sh
# The first program of L1: makes the host's root the root of this machine, and runs the payload of the run's share.
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do
    insmod "/modules/$module" || echo "LAB: insmod $module failed"
done </modules/order

nine=trans=virtio,version=9p2000.L,msize=512000
mkdir -p /low /up /root
mount -t 9p -o $nine,cache=loose,ro host /low || echo "LAB: no root share"
mount -t tmpfs -o size=75% up /up
mkdir -p /up/upper /up/work
mount -t overlay -o lowerdir=/low,upperdir=/up/upper,workdir=/up/work root /root || echo "LAB: no overlay"

for dir in proc sys dev; do
    mkdir -p /root/$dir
    mount --move /$dir /root/$dir
done
mkdir -p /root/dev/pts /root/dev/shm /root/dev/net
mount -t devpts pts /root/dev/pts
mount -t tmpfs shm /root/dev/shm
mount -t tmpfs run /root/run
mkdir -p /root/run/lab
mount -t 9p -o $nine out /root/run/lab || echo "LAB: no result share"
mount -t debugfs debugfs /root/sys/kernel/debug
mount -t tracefs tracefs /root/sys/kernel/tracing
ip link set lo up

read -r up _ </root/proc/uptime
echo "LAB: up after $up s"
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb LAB_DIR=/run/lab
# The new root lies over the old one, and is not merely changed to: programs that make user namespaces are refused otherwise.
cd /root
mount --move . /
chroot . /bin/sh /run/lab/main.sh <dev/null
echo $? >run/lab/exit
sync
echo "LAB: done"
/bin/busybox reboot -f
