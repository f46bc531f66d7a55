# What other people's tools make of the targets.
wait_until 20 [ -b /dev/sdb ] || { dmesg | tail -n 40; fail 'no disks'; }
# Which letter each got is a matter of who was quicker.
a=/dev/$(basename /sys/bus/scsi/devices/*:0:0:0/block/*)
b=/dev/$(basename /sys/bus/scsi/devices/*:0:1:0/block/*)
has() {
    grep -q "$2" /tmp/out || { cat /tmp/out; fail "$1: no '$2'"; }
}
run() {
    "$@" >/tmp/out 2>&1 || { cat /tmp/out; fail "$*"; }
}
run sg_inq $a
has sg_inq 'Product identification: DISK'
has sg_inq 'CmdQue=1'
run sg_vpd -p sv $a
for page in 0x80 0x83 0xb0 0xb1 0xb2; do
    run sg_vpd -p $page $a
done
run sg_vpd -p sn $a
has serial TREATY-A
run sg_vpd -p lbpv $a
has provisioning 'LBPU=1'
run sg_luns $a
run sg_readcap --16 $a
has sg_readcap 'Last LBA=32767'
has sg_readcap 'lbpme=1'
run sg_modes -a $a
run sg_opcodes $a
has sg_opcodes 'Persistent reserve in'

head -c 1m /dev/urandom >/tmp/random
dd if=/tmp/random of=$a bs=64k conv=fsync 2>/dev/null || fail write
run sg_unmap --lba=0 --num=128 $a
run sg_write_same --16 --lba=128 --num=128 --in=/tmp/random --xferlen=512 $a
run sg_write_same --10 --unmap --lba=256 --num=128 --in=/dev/zero --xferlen=512 $a
# Commands of 32 bytes are not for this driver.
echo 3 >/proc/sys/vm/drop_caches
block() {
    dd if=$a bs=512 skip=$1 count=1 2>/dev/null | md5sum
}
first=$(dd if=/tmp/random bs=512 count=1 2>/dev/null | md5sum)
nothing=$(dd if=/dev/zero bs=512 count=1 2>/dev/null | md5sum)
want 'an unmapped block' "$(block 5)" "$nothing"
want 'a block written by WRITE SAME 16' "$(block 255)" "$first"
want 'a block zeroed by WRITE SAME 10' "$(block 300)" "$nothing"
run sg_verify --lba=0 --count=2048 $a

key=0xabc123
run sg_persist --out --register --param-sark=$key $a
run sg_persist --in --read-keys $a
has keys $key
run sg_persist --out --reserve --param-rk=$key --prout-type=1 $a
run sg_persist --in --read-reservation $a
has reservation 'Write Exclusive'
run sg_persist --in --report-capabilities $a
run sg_persist --in --read-full-status $a
has 'full status' $key
run sg_persist --out --release --param-rk=$key --prout-type=1 $a
run sg_persist --out --clear --param-rk=$key $a

want 'read-only' "$(cat /sys/block/${b#/dev/}/ro)" 1
sg_unmap --lba=0 --num=1 $b >/tmp/out 2>&1 && fail 'a read-only disk was unmapped'
echo checked
